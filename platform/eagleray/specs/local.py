"""`LocalSpec`: what only a local cluster needs; its node types come from cluster.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from eagleray.specs.base import ExistingPath, FileSpec, Spec, located

ProfileName = Literal["default", "fast", "lossy"]
_LOOPBACK = "127.0.0.1"


def _own_ipv4(host: str) -> str:
    """`host`, an IPv4 address of this machine. Raises: ValueError where it is anything else."""
    if host == _LOOPBACK:
        return host
    import ipaddress
    import socket

    advice = f"give an IPv4 address of this machine (see `ip -4 addr`), or {_LOOPBACK}"
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        raise ValueError(f"{host!r} is not an IPv4 address; {advice}") from None
    if address.is_unspecified or address.is_multicast or address.is_reserved:
        raise ValueError(f"{host!r} is not the address of one machine; {advice}")
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise ValueError(f"Ray cannot listen on {host!r} ({error.strerror}); {advice}") from None
    return host


def network(text: str) -> str:
    """`text`, an address or a network. Raises: ValueError where it is neither."""
    import ipaddress

    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(f"{text!r} is no address and no network, as 10.0.0.7 or 10.1.0.0/16") from None


class LocalNodeType(Spec):
    """What one node of a type gets on this machine, in place of cluster.yaml's resources."""

    cpus: int = Field(default=1, ge=0)
    gpus: int | None = Field(default=None, ge=0)
    """Logical GPUs; where not given, as many as cluster.yaml says."""
    memory_mib: int = Field(default=2048, ge=256)
    max_workers: int | None = Field(default=None, ge=0)


class LocalServing(Spec):
    """The ingress: one HTTP address for all models and for the admin API."""

    enabled: bool = True
    """Without it the cluster trains and tunes only, and its head takes less memory."""
    host: Annotated[str, AfterValidator(_own_ipv4)] = _LOOPBACK
    """The address on which the ingress listens."""
    port: int = Field(default=0, ge=0, le=65535)
    """0 takes any free one."""
    gateways: int = Field(default=1, ge=1, le=64)
    """Processes that take requests, all on that port: more than one where it has cores to spare."""
    gateway_labels: dict[str, str] = {}
    """Labels of the nodes on which they run, such as {"eagleray.io/pool" = "serve"}; none: on the head."""
    trusted_proxies: tuple[Annotated[str, AfterValidator(network)], ...] = ()
    """Addresses and networks (10.1.0.0/16) of proxies in front, whose X-Forwarded-For is believed; with any,
    models need a key."""
    access_log_mib: float = Field(default=0.0, ge=0, le=100_000)
    """A line of JSON for each answered request, in files of the serving folder that together have no more for
    each gateway; 0: none."""
    parked_mib: float = Field(default=256.0, ge=0, le=1_000_000)
    """Bodies that wait on one gateway for models without a replica (min_replicas = 0) take no more."""
    tls_cert: ExistingPath | None = None
    """A file with a certificate, and those that lead to its root, in PEM: requests then come by HTTPS. Read
    again when it changes."""
    tls_key: ExistingPath | None = None
    """The file with its private key."""
    insecure: bool = False
    """Let the ingress listen beyond this machine, in plain HTTP: keys and data can be read on the way."""
    require_key: bool = False
    """Models need a key on loopback too: true where a proxy in front brings requests from elsewhere."""
    max_body_mib: float = Field(default=16.0, gt=0, le=512)
    """A larger request is answered 413."""
    request_timeout_s: float = Field(default=60.0, gt=0)
    """Until an answer, the wait for a replica included."""

    @model_validator(mode="after")
    def _is_said_aloud(self) -> LocalServing:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together; give both, or none")
        if not (self.host.startswith("127.") or self.insecure or self.tls_cert):
            raise ValueError(
                f"host {self.host} opens the ingress to the network in plain HTTP; give tls_cert and "
                f"tls_key, or put a proxy with TLS in front, keep {_LOOPBACK} and say require_key = true, or "
                "say insecure = true"
            )
        return self


class LocalSpec(FileSpec):
    """A local cluster: every node a process group on this machine."""

    kind: Literal["local"]
    cluster_file: ExistingPath = "cluster.yaml"
    """The cluster-launcher file whose node types are used."""
    idle_timeout_s: float = Field(default=30.0, ge=30.0)
    """An idle node goes away after so long; below 30 s nodes would be drained while they start."""
    max_nodes: int = Field(default=4, ge=1)
    """Worker nodes at one time, over all types."""
    head_memory_mib: int = Field(default=2048, ge=512)
    object_store_mib: int = Field(default=100, ge=80)
    """Of each node."""
    profile: ProfileName = "default"
    """Recovery settings: `fast` finds dead nodes and hung workers sooner, and gives false alarms on a loaded
    machine; `lossy` rides out a minute without a network."""
    host: Annotated[str, AfterValidator(_own_ipv4)] = _LOOPBACK
    """The address on which Ray listens. Any but a loopback address opens the cluster to the network."""
    dashboard_port: int = Field(default=0, ge=0, le=65535)
    """Port of Ray's dashboard and job API; 0 takes any free one."""
    serving: LocalServing = LocalServing()
    env: dict[str, str] = {}
    """Environment variables for every process of the cluster."""
    node_types: dict[str, LocalNodeType] = {}

    @model_validator(mode="after")
    def _caps(self) -> LocalSpec:
        for name, node_type in self.node_types.items():
            if node_type.max_workers is not None and node_type.max_workers > self.max_nodes:
                raise ValueError(
                    f"node_types.{name}.max_workers ({node_type.max_workers}) exceeds max_nodes "
                    f"({self.max_nodes}); lower one or raise the other"
                )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> LocalSpec:
        port = self.dashboard_port
        if port and self.serving.enabled and port == self.serving.port:
            sentence = f"{port} is serving.port as well; give each its own, or 0 for any free one"
            raise located([(("dashboard_port",), sentence, port)])
        return self
