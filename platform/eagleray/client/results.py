"""What the SDK's methods return: values, without a way back to the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eagleray.errors import InputError
from eagleray.protocol.key_terms import KeyTerms
from eagleray.protocol.tensors import Array


@dataclass(frozen=True)
class Prediction:
    """A model's outputs for one sample or a batch of them; every output has the batch first."""

    model: str
    version: int
    outputs: Mapping[str, Array]
    """By name: label, class and probabilities; value; or logits."""

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __len__(self) -> int:
        """Samples."""
        return len(next(iter(self.outputs.values()), ()))

    @property
    def label(self) -> str:
        """The class of the only sample. Raises: InputError where there are more, or no classes."""
        if len(self) != 1:
            raise InputError(f"label is for one sample, and this prediction has {len(self)}; use labels")
        return self.labels[0]

    @property
    def labels(self) -> list[str]:
        """The class of each sample."""
        return [str(label) for label in self._output("label")]

    @property
    def probabilities(self) -> Array:
        """Of each class [B, classes], float32."""
        return self._output("probabilities")

    @property
    def values(self) -> Array:
        """What was predicted where the target is a number [B, V], float32."""
        return self._output("value")

    def _output(self, name: str) -> Array:
        if name not in self.outputs:
            raise InputError(f"this prediction has no {name!r}; it has: {', '.join(self.outputs)}")
        return self.outputs[name]


@dataclass(frozen=True)
class Generation:
    """A whole text."""

    model: str
    text: str
    finish_reason: str
    """"stop": a stop string came; "length": `max_tokens` were made."""
    prompt_tokens: int
    completion_tokens: int

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1: any size."""


@dataclass(frozen=True)
class DeployedVersion:
    """One version behind the ingress."""

    version: int
    state: str
    """ready, starting, failed or stopping."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True)
class Model:
    """One model behind the ingress."""

    name: str
    default: int
    """The version that answers for the plain name."""
    aliases: Mapping[str, int]
    versions: tuple[DeployedVersion, ...]
    input_kind: str
    """tabular, image, audio, text or tokens."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    is_generative: bool


@dataclass(frozen=True)
class RegisteredModel:
    """One model of the registry, deployed or not."""

    name: str
    versions: tuple[int, ...]
    aliases: Mapping[str, int]
    deployed: tuple[int, ...] = ()


@dataclass(frozen=True)
class RegisteredVersion:
    """One version in the registry."""

    name: str
    version: int
    digest: str
    """Of its package."""
    aliases: tuple[str, ...]
    metrics: Mapping[str, float]
    lineage: Mapping[str, Any]
    created_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Run:
    """One training run, as the cluster's tracking knows it."""

    id: str
    name: str
    """Of its spec."""
    kind: str
    """train, or trial (of a search)."""
    status: str
    """finished, failed, stopped or running, as its driver said last."""
    started_at: float
    """Seconds since the epoch."""
    metric: str | None = None
    """Name of the metric that says most; None where there is none yet."""
    value: float | None = None


@dataclass(frozen=True)
class Service:
    """One deployed version, as the control plane sees it."""

    name: str
    version: int
    state: str
    """ready, starting, failed or stopping."""
    replicas: int
    is_default: bool = False
    aliases: tuple[str, ...] = ()
    message: str = ""
    """Why it failed, where it did."""
    wanted: int | None = None
    """Replicas that its load asks for; None where nobody has said yet."""
    reason: str = ""
    """Why, in words, as of the last change."""
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Gateways:
    """The processes that take requests."""

    number: int
    """As asked for."""
    running: int
    is_settled: bool
    """Whether they are as asked for, and none of an earlier order is left."""
    restarts: int
    """How often all of them were replaced for the asking."""
    message: str = ""
    """What keeps them from that."""


@dataclass(frozen=True)
class ApiKey:
    """One API key. `key` itself is there once, when it was made."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: float
    """Seconds since the epoch."""
    key: str | None = field(default=None, repr=False)
    terms: KeyTerms = field(default_factory=KeyTerms)
    """What it may use."""
    old_text_until: float | None = None
    """Until when the text before the last rotation is good, in seconds since the epoch."""


def tensor(entry: Mapping[str, Any]) -> Tensor:
    """From the server's JSON."""
    return Tensor(str(entry["name"]), str(entry["datatype"]), tuple(entry["shape"]))


def model(entry: Mapping[str, Any]) -> Model:
    """From the server's JSON."""
    return Model(
        name=str(entry["name"]),
        default=int(entry["default"]),
        aliases=dict(entry["aliases"]),
        versions=tuple(
            DeployedVersion(v["version"], v["state"], dict(v.get("metrics") or {}), v.get("message", ""))
            for v in entry["versions"]
        ),
        input_kind=str(entry["input_kind"]),
        inputs=tuple(map(tensor, entry["inputs"])),
        outputs=tuple(map(tensor, entry["outputs"])),
        is_generative=bool(entry["is_generative"]),
    )


def registered_model(entry: Mapping[str, Any]) -> RegisteredModel:
    """From the server's JSON."""
    return RegisteredModel(
        str(entry["name"]), tuple(entry["versions"]), dict(entry["aliases"]), tuple(entry.get("deployed", ()))
    )


def registered_version(name: str, entry: Mapping[str, Any]) -> RegisteredVersion:
    """From the server's JSON."""
    return RegisteredVersion(
        name=name,
        version=int(entry["version"]),
        digest=str(entry["digest"]),
        aliases=tuple(entry["aliases"]),
        metrics=dict(entry["metrics"]),
        lineage=dict(entry["lineage"]),
        created_at=float(entry["created_at"]),
    )


def run(entry: Mapping[str, Any]) -> Run:
    """From the server's JSON."""
    return Run(
        id=str(entry["id"]),
        name=str(entry["name"]),
        kind=str(entry["kind"]),
        status=str(entry["status"]),
        started_at=float(entry["started_at"]),
        metric=entry.get("metric"),
        value=entry.get("value"),
    )


def service(entry: Mapping[str, Any]) -> Service:
    """From the server's JSON."""
    scaling = entry.get("scaling") or {}
    return Service(
        name=str(entry["name"]),
        version=int(entry["version"]),
        state=str(entry["state"]),
        replicas=int(entry.get("replicas", 0)),
        is_default=bool(entry.get("is_default", False)),
        aliases=tuple(entry.get("aliases", ())),
        message=str(entry.get("message") or ""),
        wanted=scaling.get("wanted"),
        reason=str(scaling.get("reason") or ""),
        spec=dict(entry.get("spec") or {}),
    )


def gateways(entry: Mapping[str, Any]) -> Gateways:
    """From the server's JSON."""
    return Gateways(
        number=int(entry["number"]),
        running=int(entry["running"]),
        is_settled=bool(entry["is_settled"]),
        restarts=int(entry["restarts"]),
        message=str(entry.get("message") or ""),
    )


def api_key(entry: Mapping[str, Any]) -> ApiKey:
    """From the server's JSON."""
    return ApiKey(
        id=str(entry["id"]),
        name=str(entry["name"]),
        scopes=tuple(entry["scopes"]),
        created_at=entry["created_at"],
        key=entry.get("key"),
        terms=KeyTerms.from_json(entry.get("terms", {})),
        old_text_until=entry.get("old_text_until"),
    )
