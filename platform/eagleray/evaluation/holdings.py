"""Who held what over time, from the ledger's events: as step curves, and as one PNG.

An event tells all that its claim holds, so the curves need no other source. Holders are told apart by what
they do: serve, train, tune, or run a plain job.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eagleray.capacity.events import Event
from eagleray.evaluation.canvas import BLUE, GREEN, ORANGE, PURPLE, figure, time_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"serving": BLUE, "training": ORANGE, "tuning": GREEN, "batch": PURPLE}
"""By the first word of a class, in the order in which they are stacked."""
_LIGHTER = (0.0, 0.38, 0.58, 0.7, 0.8)
"""One holder of a kind after the other; who comes later is shown with the last of these."""
_MAX_NODES = 12
_LANE, _FREE = 0.84, "#EEEEEE"
_NOTHING: Mapping[str, float] = {}
_NO_NAMES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Holding:
    """What one holder has of one resource over time."""

    holder: str
    kind: str
    """serving, training, tuning or batch."""
    times: Sequence[float]
    """Of its changes, rising, seconds since the epoch."""
    amounts: Sequence[Mapping[str, float]]
    """By node id, from each of these times on."""

    def at(self, time: float, node: str | None = None) -> float:
        """How much it has then, on one node or in sum."""
        index = bisect_right(self.times, time) - 1
        found = self.amounts[index] if index >= 0 else _NOTHING
        return sum(found.values()) if node is None else found.get(node, 0.0)

    @property
    def nodes(self) -> set[str]:
        """All that it ever had some on."""
        return {node for amounts in self.amounts for node in amounts}


def holdings(events: Iterable[Event], resource: str = "CPU") -> list[Holding]:
    """What each holder has of `resource` over time, its claims added up.

    Args:
        events: In the order of their times; of a wait or an ask, which change nothing, they may be left out.
        resource: "CPU", "GPU" or one of your own.

    Returns:
        Holders that ever had some: first those that serve, then train, tune and run plain jobs; among these
        who came first.
    """
    claims: dict[tuple[str, str], dict[str, Mapping[str, float]]] = {}
    found: dict[tuple[str, str], dict[float, Mapping[str, float]]] = {}
    for event in events:
        key = (event.rank.partition("_")[0], event.holder)
        held = {node: amounts[resource] for node, amounts in event.held.items() if amounts.get(resource)}
        of_holder = claims.setdefault(key, {})
        of_holder[event.claim] = held
        found.setdefault(key, {})[event.time_s] = _added(of_holder.values())
    made = [
        Holding(holder, kind, list(changes), list(changes.values()))
        for (kind, holder), changes in found.items()
        if any(changes.values())
    ]
    order = list(_COLOURS)
    return sorted(made, key=lambda one: order.index(one.kind) if one.kind in order else len(order))


def plot_holdings(
    events: Sequence[Event],
    path: Path,
    *,
    title: str,
    resource: str = "CPU",
    totals: Mapping[str, float] = _NOTHING,
    names: Mapping[str, str] = _NO_NAMES,
    since_s: float | None = None,
    until_s: float | None = None,
) -> None:
    """Draw who held what into the PNG file `path` (1200 pixels wide, replaced where it exists).

    Above, what all holders have in sum; below, one lane for each node, with a mark where a holder was asked
    to give something back.

    Args:
        events: In the order of their times; none is fine.
        path: The file; its folder exists.
        title: Stands above.
        resource: "CPU", "GPU" or one of your own.
        totals: How much each node has, where that is known; its nodes are shown first, in this order. The
            others come in the order in which they were first held.
        names: What to call a node; where none is given, by the first letters of its id.
        since_s: Seconds since the epoch; None: from the first event on.
        until_s: The same; None: until the last event.
    """
    found = _few(holdings(events, resource))
    moments = [event.time_s for event in events] or [0.0]
    begin = max(since_s or 0.0, min(moments))
    end = max(begin + 1e-3, max(moments) if until_s is None else until_s)
    held_on = sorted({node for one in found for node in one.nodes}, key=lambda node: _first(found, node))
    nodes = list(dict.fromkeys([*totals, *held_on]))[:_MAX_NODES][::-1]  # the first one on top
    rows = [_Lane(node, names.get(node, node[:6]), totals.get(node, 0.0)) for node in nodes]
    with figure(path, (10, 4.6 + 0.42 * len(nodes))) as drawn:
        drawn.suptitle(title, fontsize=13)
        total, lanes = drawn.subplots(2, 1, sharex=True, height_ratios=(3.2, 0.3 + 0.5 * max(1, len(nodes))))
        unit_s = time_axis(lanes, end - begin)
        lanes.set_xlabel(f"{lanes.get_xlabel()} since then")
        lanes.set_xlim(0, (end - begin) / unit_s)
        times = sorted({begin, end, *(time for one in found for time in one.times if begin < time < end)})
        scale = _Scale(times, begin, unit_s)
        _total(total, found, scale, resource, totals)
        _lanes(lanes, found, scale, rows)
        _notices(lanes, [event for event in events if begin <= event.time_s <= end], scale, nodes)
        handles, labels = total.get_legend_handles_labels()
        more_handles, more_labels = lanes.get_legend_handles_labels()
        if handles or more_handles:
            drawn.legend(
                [*handles, *more_handles], [*labels, *more_labels],
                loc="outside lower center", ncols=3, frameon=False, fontsize=9.5,
            )  # fmt: skip


@dataclass(frozen=True)
class _Lane:
    """A node."""

    node: str
    label: str
    total: float
    """How much it has; 0: that is not known."""


@dataclass(frozen=True)
class _Scale:
    """The moments at which something changes, and where they are on the x axis."""

    times: Sequence[float]
    begin: float
    unit_s: float

    @property
    def x(self) -> list[float]:
        return [self.of(time) for time in self.times]

    def of(self, time: float) -> float:
        return (time - self.begin) / self.unit_s


def _total(
    axes: Axes, found: Sequence[Holding], scale: _Scale, resource: str, totals: Mapping[str, float]
) -> None:
    from matplotlib.ticker import MaxNLocator

    below = [0.0] * len(scale.times)
    for holding, colour in _coloured(found):
        above = [low + holding.at(time) for low, time in zip(below, scale.times, strict=True)]
        axes.fill_between(
            scale.x,
            below,
            above,
            step="post",
            color=colour,
            linewidth=0,
            label=holding.holder or holding.kind,
        )
        axes.step(scale.x, above, where="post", color="white", linewidth=0.8)
        below = above
    if totals:
        capacity = sum(totals.values())
        axes.axhline(capacity, color="black", linestyle="--", linewidth=1.1, label="all nodes together")
    if not found:
        axes.text(0.5, 0.5, f"nobody held a {resource}", transform=axes.transAxes, ha="center", color="grey")
    axes.set_ylim(0, 1.06 * max([*below, sum(totals.values()), 1e-3]))
    all_amounts = [amount for one in found for amounts in one.amounts for amount in amounts.values()]
    axes.yaxis.set_major_locator(MaxNLocator(integer=all(float(one).is_integer() for one in all_amounts)))
    axes.set_ylabel(f"{resource}s held")
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _lanes(axes: Axes, found: Sequence[Holding], scale: _Scale, lanes: Sequence[_Lane]) -> None:
    for row, lane in enumerate(lanes):
        held = [sum(one.at(time, lane.node) for one in found) for time in scale.times]
        full = max([lane.total, *held]) or 1.0
        below = [float(row)] * len(scale.times)
        if lane.total:
            axes.axhspan(row, row + _LANE, color=_FREE, linewidth=0)
        for holding, colour in _coloured(found):
            above = [
                low + _LANE * holding.at(time, lane.node) / full
                for low, time in zip(below, scale.times, strict=True)
            ]
            axes.fill_between(scale.x, below, above, step="post", color=colour, linewidth=0)
            below = above
        axes.axhline(row, color="black", linewidth=0.6)
    middle = [row + _LANE / 2 for row in range(len(lanes))]
    axes.set_yticks(middle, [lane.label for lane in lanes], fontsize=9.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(0, max(len(lanes), 1))
    axes.set_ylabel("by node")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _notices(axes: Axes, events: Sequence[Event], scale: _Scale, nodes: Sequence[str]) -> None:
    asked = [
        (scale.of(event.time_s), nodes.index(node) + _LANE)
        for event in events
        if event.kind in ("notice", "suspend")
        for node in event.resources
        if node in nodes
    ]
    if asked:
        x, y = zip(*asked, strict=True)
        axes.scatter(
            x, y, marker="v", s=52, color="black", edgecolor="white", zorder=4, label="asked to give it back"
        )


def _first(found: Sequence[Holding], node: str) -> float:
    """When somebody held something on the node for the first time."""
    moments = (
        time
        for one in found
        for time, amounts in zip(one.times, one.amounts, strict=True)
        if amounts.get(node)
    )
    return min(moments, default=math.inf)


def _coloured(found: Sequence[Holding]) -> list[tuple[Holding, str]]:
    """Each with the colour of its kind, lighter from one holder to the next."""
    seen: dict[str, int] = {}
    coloured = []
    for one in found:
        number = seen[one.kind] = seen.get(one.kind, -1) + 1
        coloured.append((one, _lighter(_COLOURS.get(one.kind, "#555555"), _LIGHTER[number])))
    return coloured


def _lighter(colour: str, share: float) -> str:
    parts = [int(colour[index : index + 2], 16) for index in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)


def _few(found: Sequence[Holding]) -> list[Holding]:
    """Of each kind the first holders, and the others as one."""
    few: list[Holding] = []
    for kind in dict.fromkeys(one.kind for one in found):
        of_kind = [one for one in found if one.kind == kind]
        if len(of_kind) > len(_LIGHTER):
            rest = of_kind[len(_LIGHTER) - 1 :]
            times = sorted({time for one in rest for time in one.times})
            nodes = sorted({node for one in rest for node in one.nodes})
            amounts = [{node: sum(one.at(time, node) for one in rest) for node in nodes} for time in times]
            of_kind = [
                *of_kind[: len(_LIGHTER) - 1], Holding(f"{len(rest)} others ({kind})", kind, times, amounts)
            ]  # fmt: skip
        few += of_kind
    return few


def _added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for node, amount in part.items():
            total[node] = total.get(node, 0.0) + amount
    return total
