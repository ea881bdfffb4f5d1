"""`ServiceSpec`: one version of a model behind the ingress, and how many replicas of it there may be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from eagleray.specs.base import FileSpec, Name, located

LATEST = "latest"
FORMER = {
    "batch_wait_s": "no request waits for others any more: what comes while the model runs shares the next "
    "forward pass; take this line out",
}
"""Keys that had a meaning once, and what to do with them."""
_ALIAS = re.compile(r"@[a-z0-9][a-z0-9._-]{0,62}")


def _version(value: object) -> object:
    """`value` itself. Raises: ValueError where it names no version."""
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    is_word = isinstance(value, str) and (value == LATEST or _ALIAS.fullmatch(value))
    if not is_number and not is_word:
        raise ValueError(f'{value!r} is no version; write a number, "{LATEST}", or an alias as "@candidate"')
    return value


def _schedule(text: str) -> str:
    """`text` itself. Raises: ValueError where it is no schedule."""
    from eagleray.specs import schedule

    return schedule.parse(text).text


def _zone(name: str) -> str:
    """`name` itself. Raises: ValueError where it is no time zone."""
    from eagleray.specs import schedule

    return schedule.time_zone(name).key


ScheduleText = Annotated[str, AfterValidator(_schedule)]
ZoneName = Annotated[str, AfterValidator(_zone)]


class ServiceSpec(FileSpec):
    """One model version, served."""

    kind: Literal["service"]
    name: Name
    """The model's name in the registry, and in the routes of the ingress."""
    version: Annotated[int | str, BeforeValidator(_version)] = LATEST
    """A number, "latest", or an alias of the registry ("@candidate"), looked up when it is deployed."""
    default: bool = True
    """Whether the plain name leads to this version: the one it led to is replaced, without a failed request.
    If not, it is served beside, under NAME/versions/NUMBER and its aliases, until it is undeployed."""
    min_replicas: int = Field(default=1, ge=0)
    """0: none while nothing is asked; the next request waits until one is up."""
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float = Field(default=2.0, gt=0)
    """Requests per replica, running and waiting, that the number of replicas is chosen for where there is no
    objective, and for texts."""
    objective_p95_ms: float | None = Field(default=None, gt=0)
    """95 of 100 predictions are to take no longer at the replica: the number of replicas is chosen for that,
    by what comes, what waits, and what a forward pass takes."""
    idle_s: float = Field(default=30.0, ge=0)
    """A replica more than needed goes away after so long; with an objective only the last one, and others
    after 60 s or this, whichever is longer."""
    schedules: tuple[ScheduleText, ...] = ()
    """Times at which min_replicas is higher: "08:00-20:00 min 2", "mon-fri 22:00-06:00 min 1"."""
    time_zone: ZoneName | None = None
    """Of the schedules: "Europe/Berlin"."""
    max_queued_requests: int = Field(default=100, ge=1)
    """Requests that may wait for a replica; one more is answered 503 with a Retry-After."""
    max_batch_size: int = Field(default=16, ge=1)
    """Samples of one forward pass, from requests that came while the model ran: none waits for others."""
    cache_mib: float = Field(default=0.0, ge=0, le=100_000)
    """Answers to v2 inference that each gateway keeps and gives again to the same body, least recently used
    first out; 0: none. For models that answer the same to the same."""
    cpus_per_replica: float = Field(default=1.0, ge=0)
    gpus_per_replica: float = Field(default=0.0, ge=0)
    """A part of one GPU, or whole ones."""
    label_selector: dict[str, str] = {}
    """Node labels that a replica's node must have (Ray's label selector syntax)."""
    allow_code: bool = False
    """Load a package that brings code of the user's own: it runs with all rights of the cluster's user."""

    @model_validator(mode="before")
    @classmethod
    def _has_no_former_keys(cls, table: Any) -> Any:
        """`table` itself. Raises: ValidationError for a key that had a meaning once."""
        if isinstance(table, Mapping):
            found = [((key,), FORMER[key], table[key]) for key in FORMER if key in table]
            if found:
                raise located(found)
        return table

    @model_validator(mode="after")
    def _fits(self) -> ServiceSpec:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) exceeds max_replicas ({self.max_replicas}); "
                "lower one or raise the other"
            )
        self._check_schedules()
        if self.gpus_per_replica > 1 and not self.gpus_per_replica.is_integer():
            raise ValueError(
                f"gpus_per_replica ({self.gpus_per_replica:g}) must be a whole number above 1; "
                "give a part of one GPU, or whole ones"
            )
        if self.cpus_per_replica == 0 and self.gpus_per_replica == 0:
            raise ValueError("cpus_per_replica and gpus_per_replica are both 0; a replica needs one of them")
        return self

    def _check_schedules(self) -> None:
        if self.schedules and self.time_zone is None:
            raise located([(("time_zone",), 'schedules need one; write "Europe/Berlin" or "UTC"', None)])
        if self.schedules:
            from eagleray.specs import schedule

            most = max((schedule.parse(text) for text in self.schedules), key=lambda found: found.minimum)
            if most.minimum > self.max_replicas:
                sentence = (
                    f"{most.text!r} exceeds max_replicas ({self.max_replicas}); lower one or raise the other"
                )
                raise located([(("schedules",), sentence, None)])

    @property
    def ref(self) -> str:
        """The version as a reference of the registry: "digits", "digits@candidate", "digits/versions/3"."""
        if self.version == LATEST:
            return self.name
        separator = "" if isinstance(self.version, str) else "/versions/"
        return f"{self.name}{separator}{self.version}"

    @property
    def resources(self) -> dict[str, float]:
        """What one replica takes of its node."""
        found = {"CPU": self.cpus_per_replica, "GPU": self.gpus_per_replica}
        return {key: amount for key, amount in found.items() if amount > 0}
