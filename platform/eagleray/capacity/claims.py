"""What the policy looks at: claims, nodes, and the moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import TypedDict, Unpack

from eagleray.capacity.decisions import Notice, Suspend, Units, Wait
from eagleray.capacity.placement import Capacity, label_matches, require
from eagleray.capacity.resources import Resources, num_fitting, plus
from eagleray.errors import CapacityError, InputError


class ClaimClass(IntEnum):
    """What comes first when not everything fits: the larger may have back what the smaller was lent."""

    BATCH = 0
    TRAINING_SHARE = 1
    TUNING = 2
    TRAINING_MINIMUM = 3
    SERVING_BURST = 4
    SERVING_FLOOR = 5

    @property
    def words(self) -> str:
        """For instance "training share"."""
        return self.name.lower().replace("_", " ")


class More(TypedDict, total=False):
    """What any request may say beside; as the fields of `Request`."""

    label_selector: Mapping[str, str]
    is_yieldable: bool
    budget: int | None
    yield_s: float


@dataclass(frozen=True)
class Request:
    """What a holder asks for: `wanted` units of `bundle`, each of them on one node.

    Made by `service`, `run`, `search` and `job`, which know the classes.

    Raises:
        InputError: of itself it cannot be right; the message says what to change.
    """

    claim: str
    """Id; the same for the holder's whole life, restarts of the ledger included."""
    holder: str
    """Who it is, in words: "run gpt-7f3a"."""
    bundle: Resources
    """Of one unit: a replica, a worker, a trial, a node's part of a job."""
    minimum: int
    wanted: int
    minimum_class: ClaimClass
    rest_class: ClaimClass
    """Of the units above the minimum."""
    label_selector: Mapping[str, str] = field(default_factory=dict)
    """Ray's label selector syntax."""
    is_gang: bool = False
    """Fewer units than the minimum are of no use: they are granted together, and taken together."""
    is_yieldable: bool = True
    """Whether a notice is of any use. A plain job cannot shrink: what it has it keeps to its end."""
    budget: int | None = None
    """Units that may lie on nodes started on demand; more only on machines that are there anyway."""
    yield_s: float = 10.0
    """Seconds from a notice to its deadline."""

    @classmethod
    def service(
        cls, claim: str, holder: str, bundle: Resources, *, floor: int, wanted: int, **more: Unpack[More]
    ) -> Request:
        """Replicas: the floor is never lent, the rest is burst."""
        classes = (ClaimClass.SERVING_FLOOR, ClaimClass.SERVING_BURST)
        return cls(claim, holder, bundle, floor, max(floor, wanted), *classes, **more)

    @classmethod
    def run(
        cls, claim: str, holder: str, bundle: Resources, *, minimum: int, wanted: int, **more: Unpack[More]
    ) -> Request:
        """Workers of a training run."""
        classes = (ClaimClass.TRAINING_MINIMUM, ClaimClass.TRAINING_SHARE)
        return cls(claim, holder, bundle, minimum, wanted, *classes, is_gang=True, **more)

    @classmethod
    def search(
        cls, claim: str, holder: str, bundle: Resources, *, wanted: int, **more: Unpack[More]
    ) -> Request:
        """Trials of a search, each of one unit."""
        return cls(claim, holder, bundle, 0, wanted, ClaimClass.TUNING, ClaimClass.TUNING, **more)

    @classmethod
    def job(
        cls, claim: str, holder: str, bundle: Resources, *, units: int = 1, **more: Unpack[More]
    ) -> Request:
        """A plain job: all of it or nothing, and to its end."""
        classes = (ClaimClass.BATCH, ClaimClass.BATCH)
        more = {"is_yieldable": False, **more}
        return cls(claim, holder, bundle, units, units, *classes, is_gang=True, **more)

    def __post_init__(self) -> None:
        wrong = None
        if any(amount < 0 for amount in self.bundle.values()):
            wrong = f"a unit of {dict(self.bundle)}: no amount may be below 0"
        elif not any(amount > 0 for amount in self.bundle.values()):
            wrong = "a unit of nothing; give it some CPU or GPU"
        elif self.minimum < 0 or self.wanted < 0:
            wrong = f"minimum ({self.minimum}) and wanted ({self.wanted}) must be 0 or more"
        elif self.minimum > self.wanted:
            wrong = f"minimum ({self.minimum}) exceeds wanted ({self.wanted}); lower one or raise the other"
        elif self.minimum_class < self.rest_class:
            wrong = f"the minimum ({self.minimum_class.words}) ranks below the rest ({self.rest_class.words})"
        elif self.budget is not None and self.budget < 0:
            wrong = f"budget ({self.budget}) must be 0 or more units"
        elif self.yield_s <= 0:
            wrong = f"yield_s ({self.yield_s:g}) must be above 0 seconds"
        if wrong:
            raise InputError(f"claim of {self.holder}: {wrong}")

    def check(self, capacity: Capacity) -> None:
        """Check that the minimum could ever be placed, with nothing else on the cluster.

        Raises:
            CapacityError: never, whatever nodes are started; the message says what the cluster allows.
        """
        noun = "floor replica" if self.minimum_class is ClaimClass.SERVING_FLOOR else "unit"
        try:
            require(capacity, [self.bundle] * self.minimum, self.label_selector, noun=noun)
        except CapacityError as error:
            raise CapacityError(f"{self.holder} {error}") from None


@dataclass(frozen=True)
class Facts:
    """What the choice of a victim goes by."""

    since_commit_s: float = 0.0
    """Seconds of work that would be lost by force."""
    progress: float = 0.0
    """0 to 1."""
    restart_cost_s: float = 1.0
    """Seconds in which nothing is done, for each change of size."""


@dataclass(frozen=True)
class Claim:
    """A request, and what has become of it."""

    request: Request
    opened_s: float
    """Its place among equals: who came first."""
    renewed_s: float
    """When its holder was last heard of."""
    held: Units = field(default_factory=dict)
    """Granted and not given back, in use or not."""
    used: Units = field(default_factory=dict)
    """Of those held: the ones its holder has taken into use."""
    ended_on: frozenset[str] = frozenset()
    """Nodes on which units that ran have ended, and its holder has not shown yet that it knows."""
    facts: Facts = Facts()
    notice: Notice | None = None
    """Outstanding."""
    keep: Units = field(default_factory=dict)
    """With a notice: what stays when it is obeyed."""
    evicted_s: float | None = None
    """When what the notice asked for was ended by force."""
    granted_s: float | None = None
    """Times of the last grant, of the last notice's begin or end, and of the last withdrawal."""
    noticed_s: float | None = None
    withdrawn_s: float | None = None
    wait: Wait | None = None
    """Why units are missing, by the last round, and since when."""
    waiting_s: float | None = None
    version: int = 0
    """Of the allotment: one more with every change that its holder did not make."""

    @property
    def id(self) -> str:
        """The request's."""
        return self.request.claim

    @property
    def size(self) -> int:
        """Units held."""
        return sum(self.held.values())

    @property
    def giving(self) -> dict[str, int]:
        """What an outstanding notice still waits for."""
        if self.notice is None:
            return {}
        left = {node: units - self.keep.get(node, 0) for node, units in self.held.items()}
        return {node: units for node, units in left.items() if units > 0}

    @property
    def starting(self) -> dict[str, int]:
        """Held, and not yet in use."""
        left = {node: units - self.used.get(node, 0) for node, units in self.held.items()}
        return {node: units for node, units in left.items() if units > 0}

    @property
    def is_suspending(self) -> bool:
        """Whether its notice leaves it nothing."""
        return isinstance(self.notice, Suspend)

    def class_of(self, unit: int) -> ClaimClass:
        """The class of the `unit`-th unit, counted from 0."""
        return self.request.minimum_class if unit < self.request.minimum else self.request.rest_class

    def on(self, nodes: Iterable[str]) -> Claim:
        """The claim without what it holds elsewhere."""
        there = set(nodes)
        held, used, keep = (
            {node: units for node, units in mapping.items() if node in there}
            for mapping in (self.held, self.used, self.keep)
        )
        return replace(self, held=held, used=used, keep=keep)


@dataclass(frozen=True)
class Node:
    """A node that lives."""

    id: str
    total: Resources
    other: Resources = field(default_factory=dict)
    """In use by what has no claim."""
    labels: Mapping[str, str] = field(default_factory=dict)
    node_type: str = ""
    is_on_demand: bool = False
    """It was started for work, costs as long as it is there, and goes away when it is idle."""
    is_draining: bool = False
    leaves_s: float | None = None
    """When a draining node goes, where that is known."""
    name: str = ""
    """By which people know it; empty: its id."""

    def with_use(
        self,
        in_use: Resources,
        claims: Iterable[Claim],
        before: Node | None,
        *,
        unsaid_since_s: float,
        leaving: Resources = MappingProxyType({}),
    ) -> Node:
        """The node with `other` derived from all that Ray says is in use on it.

        What a claim holds but has not said to use may be part of it or not: it may just have started. So
        `other` stays what it was, as far as the bounds of both readings allow.

        Args:
            in_use: Resources in use on the node.
            claims: All claims.
            before: The node as it was observed last; None at first: then the upper bound holds.
            unsaid_since_s: What was granted earlier would have been said to be in use, if it were.
            leaving: What claims gave back a moment ago: `in_use` may still have it.
        """
        least, most = plus(in_use, leaving, -1), dict(in_use)
        for claim in claims:
            bundle, used = claim.request.bundle, claim.used.get(self.id, 0)
            is_new = claim.granted_s is not None and claim.granted_s >= unsaid_since_s
            least = plus(least, bundle, -(claim.held.get(self.id, 0) if is_new else used))
            most = plus(most, bundle, -used)
        other = {}
        for key in self.total:
            low, high = max(0.0, least.get(key, 0.0)), max(0.0, most.get(key, 0.0))
            other[key] = high if before is None else min(max(before.other.get(key, 0.0), low), high)
        return replace(self, other={key: amount for key, amount in other.items() if amount > 0})

    def after_end_of(self, claim: Claim) -> Node:
        """The node when the claim was struck out: what it ran there goes on, as far as is known."""
        used = claim.used.get(self.id, 0)
        return replace(self, other=plus(self.other, claim.request.bundle, used)) if used else self

    def matches(self, selector: Mapping[str, str]) -> bool:
        """Whether its labels are what `selector` asks for."""
        return all(label_matches(self.labels.get(key), wanted) for key, wanted in selector.items())

    def num_empty(self, bundle: Resources) -> int:
        """How many of `bundle` would fit if no claim held anything."""
        return num_fitting(bundle, plus(self.total, self.other, -1))


@dataclass(frozen=True)
class Observation:
    """The cluster at one moment."""

    time_s: float
    """Seconds since the epoch, by a clock that never jumps; every other time is of the same clock."""
    nodes: tuple[Node, ...]
    claims: tuple[Claim, ...]
    capacity: Capacity | None = None
    """What can be started; None: nothing."""


@dataclass(frozen=True)
class Settings:
    """How patient the policy is; all in seconds."""

    lease_s: float = 15.0
    """A claim whose holder has not been heard of for so long is struck out."""
    cool_down_s: float = 10.0
    """What gave units back, and ranks below serving, gets none for so long."""
    grow_every_s: float = 5.0
    """A gang grows no more often: each change of its size stops all of it for a moment."""
    after_withdrawal_s: float = 2.0
    """A claim whose notice was withdrawn gets no other for so long."""
    patience_s: float = 60.0
    """What has nothing yet, or not its minimum, is overtaken by equals for no longer than that."""
    ask_after_s: float = 1.0
    """What has waited so long has nodes asked for."""
    start_limit_s: float = 20.0
    """What was granted and does not run after so long goes back, if something has taken its place."""
    evict_every_s: float = 5.0
    """Between two attempts to end the same units by force."""
