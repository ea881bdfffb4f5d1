"""Short ways to write claims, nodes and rounds down in tests."""

from __future__ import annotations

from dataclasses import replace

from eagleray.capacity import Claim, Decision, Node, Observation, Request, Settings, decide
from eagleray.capacity.placement import Capacity
from eagleray.capacity.policy import DEFAULTS

CPU, GPU = {"CPU": 1}, {"CPU": 1, "GPU": 1}
NOW_S = 1000.0


def node(name: str, cpus: float = 1, gpus: float = 0, **more) -> Node:
    return Node(name, {"CPU": cpus, **({"GPU": gpus} if gpus else {})}, **more)


def service(name: str = "s", floor: int = 1, wanted: int = 1, bundle=CPU, **state) -> Claim:
    return claim(Request.service(name, f"service {name}", bundle, floor=floor, wanted=wanted), **state)


def run(name: str = "r", minimum: int = 1, wanted: int = 1, bundle=CPU, **state) -> Claim:
    return claim(Request.run(name, f"run {name}", bundle, minimum=minimum, wanted=wanted), **state)


def search(name: str = "t", wanted: int = 1, bundle=CPU, **state) -> Claim:
    return claim(Request.search(name, f"search {name}", bundle, wanted=wanted), **state)


def job(name: str = "j", units: int = 1, bundle=CPU, **state) -> Claim:
    return claim(Request.job(name, f"job {name}", bundle, units=units), **state)


def claim(request: Request, **state) -> Claim:
    """A claim that was opened long ago and whose units run, unless `state` says otherwise."""
    asked = {
        key: state.pop(key) for key in ("label_selector", "budget", "yield_s", "is_yieldable") if key in state
    }
    values = {"opened_s": 0.0, "renewed_s": NOW_S, "used": state.get("held", {}), **state}
    return Claim(replace(request, **asked), **values)


def decided(
    nodes: list[Node],
    claims: list[Claim],
    capacity: Capacity | None = None,
    now_s: float = NOW_S,
    settings: Settings = DEFAULTS,
) -> list[Decision]:
    return decide(Observation(now_s, tuple(nodes), tuple(claims), capacity), settings)


def only(kind: type, decisions: list[Decision]) -> list:
    """The decisions of exactly this kind."""
    return [decision for decision in decisions if type(decision) is kind]


def given(decisions: list[Decision], kind: type) -> dict[str, dict[str, int]]:
    """Units by claim and node, of Grant, Notice, Suspend or Evict."""
    return {d.claim: dict(getattr(d, "units", None) or d.give) for d in only(kind, decisions)}
