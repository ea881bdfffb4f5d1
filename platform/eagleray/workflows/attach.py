"""`eagleray attach`: the ledger, and all that serves models, on a Ray cluster that somebody else started."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from eagleray.cluster import attached, ledger, profiles, settings, state
from eagleray.cluster.attached import AttachedCluster
from eagleray.cluster.names import ON_HEAD
from eagleray.errors import ClusterError, InputError, ServiceError
from eagleray.serving import preconditions, start
from eagleray.serving.control_settings import ControllerSettings, url_of
from eagleray.serving.gateway.settings import GatewaySettings
from eagleray.serving.preconditions import NodeFacts
from eagleray.specs.local import network
from eagleray.workflows.joining import joined

DEFAULT_PORT = 8000
_ALL_INTERFACES = ("0.0.0.0", "::")
_UNKNOWN = "/nonexistent"
_LOOK_S = 60.0
_START_S = 120.0


def attach(
    address: str,
    name: str = state.DEFAULT_NAME,
    *,
    host: str = state.LOOPBACK,
    port: int = DEFAULT_PORT,
    is_insecure: bool = False,
    is_key_required: bool = False,
    gateways: int = 1,
    gateway_labels: Mapping[str, str] | None = None,
    trusted_proxies: Sequence[str] = (),
    tls_cert: str = "",
    tls_key: str = "",
    access_log_mib: float = 0.0,
    profile: str | None = None,
    say: Callable[[str], None] = print,
) -> AttachedCluster:
    """Start the ledger, the serving controller and the ingress on the cluster at `address`.

    Run on a machine of the cluster.

    Args:
        address: Of its GCS, as host:port.
        name: By which other commands find it from now on.
        host: On which the ingress listens, on the head.
        port: Of the ingress.
        is_insecure: Let it listen beyond the head, in plain HTTP.
        is_key_required: Models need a key on a loopback `host` too: for a proxy in front of it.
        gateways: Processes that take requests.
        gateway_labels: Of the nodes on which they run; None: on the head.
        trusted_proxies: Addresses and networks of proxies in front; with any, models need a key.
        tls_cert: A file on the head with a certificate in PEM: requests then come by HTTPS.
        tls_key: A file on the head with its private key.
        access_log_mib: Of one gateway's access log on the head; 0: none.
        profile: Of recovery, for what starts from now on; None leaves the one that the cluster has.
        say: Takes lines for people.

    Raises:
        InputError: the name is taken, there is no such profile, or `host` opens the ingress and nobody said
            that it may.
        ClusterError: the cluster cannot be reached, or something is missing on it; the message says what.
        ServiceError: the ingress did not start.
    """
    _check_name(name)
    recovery = None if profile is None else profiles.named(profile)
    _check_tls(tls_cert, tls_key)
    if not (state.is_loopback(host) or is_insecure or tls_cert):
        raise InputError(
            f"host {host} opens the ingress to the network in plain HTTP; give --tls-cert and --tls-key, or "
            f"put a proxy with TLS in front, keep {state.LOOPBACK} and say --require-key, or say --insecure"
        )
    if gateway_labels and host not in _ALL_INTERFACES:
        raise InputError(
            f"gateways on other nodes than the head need a host that each has: {_ALL_INTERFACES[0]}"
        )
    try:
        trusted = tuple(map(network, trusted_proxies))
    except ValueError as error:
        raise InputError(f"trusted proxies: {error}") from None
    wanted = ControllerSettings(
        cluster=name,
        directory=_UNKNOWN,  # the head says where
        admin_key_path="",
        host=host,
        port=port,
        storage_url=settings.storage_url(),
        tracking_uri=settings.tracking_uri(),
        is_key_needed_for_infer=is_key_required or bool(trusted) or not state.is_loopback(host),
        gateway=GatewaySettings(
            gateways,
            labels=dict(gateway_labels or {}),
            trusted_proxies=trusted,
            tls_cert=tls_cert,
            tls_key=tls_key,
            access_log_bytes=int(access_log_mib * 2**20),
        ),
    )
    with joined(address, recovery.of_serve if recovery else {}):
        if (before := start.find()) is not None:
            _check_same(before, wanted)
        nodes = _facts(wanted.storage_url)
        say(f"nodes: {', '.join(f'{node.name} ({node.version or node.trouble})' for node in nodes)}")
        preconditions.check_nodes(nodes, storage_url=wanted.storage_url, tracking_uri=wanted.tracking_uri)
        if warning := preconditions.warning(nodes):
            say(warning)
        serve = _serve()
        preconditions.check_serve(serve, port=port)
        head = _address(wanted.gateway.labels)
        cluster = AttachedCluster(name, address, reachable_url(wanted, head), time.time())
        attached.write(cluster)  # before anything is started: `down` ends what a failure below leaves
        policy = ledger.POLICY if recovery is None else ledger.patient(ledger.POLICY, recovery)
        of_ledger = ledger.start(ledger.LedgerSettings(name, wanted.storage_url, policy))
        controller = start.start(replace(wanted, directory=start.directory_on_head(name)))
        _await_start(controller)
        _write_key(cluster, controller)
        if recovery is not None:
            _apply(recovery)
            lease_s, is_serve_older = _lease_s(of_ledger), serve is not None
            for line in what_holds(recovery, nodes, is_serve_older=is_serve_older, lease_s=lease_s):
                say(line)
    say(f"models are served at {cluster.ingress_url}; the admin key is in {cluster.admin_key_path}")
    if state.is_loopback(host) and not is_mine(head):
        say(_far_loopback(wanted, head))
    return cluster


def _check_tls(cert: str, key: str) -> None:
    """Raises: InputError where the head could not find both files."""
    if bool(cert) != bool(key):
        raise InputError("--tls-cert and --tls-key belong together; give both, or none")
    for path in filter(None, (cert, key)):
        if not os.path.isabs(path):
            raise InputError(f"{path}: give the file's whole path on the head")


def _apply(profile: profiles.Profile) -> None:
    from eagleray.cluster import recovery_ray260

    recovery_ray260.publish(profile)


def _lease_s(actor: Any) -> float:
    """How long a holder may be silent, for the ledger that runs: it may be one of an earlier `attach`."""
    import ray

    said: Any = ray.get(actor.ping.remote(), timeout=_LOOK_S)
    return said.get("lease_s", ledger.POLICY.lease_s)


def what_holds(
    profile: profiles.Profile, nodes: Sequence[NodeFacts], *, is_serve_older: bool, lease_s: float
) -> list[str]:
    """What of the profile holds on a cluster that runs, and what does not, with the way to it."""
    lines = [
        f"recovery profile {profile.name}: a rank without a sign of life for {profile.heartbeat_s:g} s hangs"
    ]
    if is_serve_older:
        lines.append("warning: Serve ran before, and goes on checking its proxies as often as it did")
    if lease_s < (wanted_s := ledger.patient(ledger.POLICY, profile).lease_s):
        lines.append(
            f"warning: the ledger ran before, and goes on to end claims whose holder has been silent for "
            f"{lease_s:g} s, not {wanted_s:g}; `eagleray down` and another `attach` give it the profile's"
        )
    if others := [node.name for node in nodes if node.profile != profile.name]:
        lines.append(
            f"warning: Ray on {', '.join(others)} was started without this profile, and reads only at its "
            f"start how soon a dead node is noticed; where you start it: "
            f'eval "$(python -m eagleray.cluster.profiles {profile.name})" (docs/elasticity.md)'
        )
    return lines


def reachable_url(wanted: ControllerSettings, head: str) -> str:
    """The ingress's address for other hosts too: one that listens on all interfaces has that of the head."""
    host = head if wanted.host in _ALL_INTERFACES else wanted.host
    return url_of(host, wanted.port, is_tls=wanted.gateway.is_tls)


def _far_loopback(wanted: ControllerSettings, head: str) -> str:
    host, port = wanted.host, wanted.port
    return (
        f"warning: that is {host} of the head, {head}, and this is another machine: commands here reach it "
        f"through `ssh -N -L {port}:{host}:{port} {head}` only; or `eagleray down --name {wanted.cluster}`, "
        f"and attach with --host {head} and --tls-cert or --insecure, or on the head"
    )


def _address(labels: Mapping[str, str]) -> str:
    """The head's, or that of a node with these labels, as Ray names it. Raises: ClusterError."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    if not labels:
        return next(node for node in alive if not ON_HEAD.keys() - node["Resources"].keys())[
            "NodeManagerAddress"
        ]
    found = [node for node in alive if labels.items() <= node.get("Labels", {}).items()]
    if not found:
        said = ", ".join(f"{key}={value}" for key, value in labels.items())
        raise ClusterError(
            f"no node of this cluster has the labels for gateways, {said}; start one (`ray start --labels`), "
            "or let them run on the head"
        )
    return found[0]["NodeManagerAddress"]


def is_mine(address: str) -> bool:
    """Whether that is an address of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _check_name(name: str) -> None:
    if state.read(name) is not None or state.damage(name) is not None:
        raise InputError(
            f"a local cluster is called {name!r}; choose another --name, or `eagleray down --name {name}`"
        )


def _facts(storage_url: str) -> list[NodeFacts]:
    """What each node has, asked of all at once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    from eagleray.packaging import Folder

    folder, probe = Folder(storage_url), f".attach-{secrets.token_hex(6)}"
    folder.write_bytes(probe, b"")
    # Not a function of a module: that would be looked up on a node which may not have our package.
    look: Any = ray.remote(num_cpus=0, max_retries=0)(_looker())
    alive = [node for node in ray.nodes() if node["Alive"]]
    try:
        asked = [
            look.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote(folder.url, probe)
            for node in alive
        ]
        ray.wait(asked, num_returns=len(asked), timeout=_LOOK_S)
        return [_fact(node, answer) for node, answer in zip(alive, asked, strict=True)]
    finally:
        folder.remove(probe)


def _looker() -> Callable[[str, str], dict[str, Any]]:
    def look(url: str, probe: str) -> dict[str, Any]:
        import os

        try:
            import eagleray
            from eagleray.packaging import Folder

            return {
                "version": eagleray.__version__,
                "sees_storage": Folder(url).exists(probe),
                # The node's own, not the driver's; `ray start` sets it where it finds a token.
                "asks_for_token": os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
                "profile": os.environ.get("EAGLERAY_PROFILE", ""),
            }
        except Exception as error:
            return {"trouble": f"{type(error).__name__}: {error}"}

    return look


def _fact(node: Any, answer: Any) -> NodeFacts:
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    name, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
    try:
        found: dict[str, Any] = ray.get(answer, timeout=0.1)
        return NodeFacts(name, address, **found)
    except GetTimeoutError:
        return NodeFacts(name, address, trouble=f"no answer in {_LOOK_S:.0f} s")
    except RayError as error:
        return NodeFacts(name, address, trouble=" ".join(str(error).split())[-300:])


def _serve() -> Any:
    from eagleray.serving.serve_control_ray260 import ServeControl

    return ServeControl().facts()


def _check_same(controller: Any, wanted: ControllerSettings) -> None:
    """Raises: ClusterError where somebody attached the cluster before, otherwise than `wanted`."""
    import ray

    said: Any = ray.get(controller.ping.remote(), timeout=_LOOK_S)
    if said["is_ending"]:
        raise ClusterError(
            f"this cluster is attached as {said['cluster']!r}, and what was started there is being taken "
            f"down; run `eagleray down --name {said['cluster']}` where it was attached, then attach it anew"
        )
    if (said["cluster"], said["url"]) != (wanted.cluster, wanted.url):
        raise ClusterError(
            f"this cluster is attached already, as {said['cluster']!r}, its ingress at {said['url']}; use "
            f"that, or end it with `eagleray down --name {said['cluster']}` where it was attached"
        )
    if wanted.is_key_needed_for_infer and not said["is_key_needed_for_infer"]:
        raise ClusterError(
            f"this cluster is attached already, as {said['cluster']!r}, and its models need no key; end that "
            f"with `eagleray down --name {said['cluster']}`, and attach it anew with --require-key"
        )


def _await_start(controller: Any) -> None:
    """Return when the ingress is up. Raises: ServiceError where it does not come up, with the reason."""
    import ray

    deadline = time.monotonic() + _START_S
    trouble = "it is starting"
    while time.monotonic() < deadline:
        said: Any = ray.get(controller.ping.remote(), timeout=_START_S)
        if not (trouble := said["trouble"]):
            return
        time.sleep(0.2)
    raise ServiceError(f"the ingress did not start in {_START_S:.0f} s: {trouble}")


def _write_key(cluster: AttachedCluster, controller: Any) -> None:
    """An admin key for this machine's commands, unless there is a good one."""
    import ray

    known: Any = ray.get(controller.admin.remote("keys", []))
    with suppress(OSError, ValueError):
        _, key_id, _ = cluster.admin_key_path.read_text().split("_")
        if key_id in [key["id"] for key in known.get("result", [])]:
            return
    name = f"attached by {os.uname().nodename}"[:64]  # a host's name has up to 64 letters itself
    answer: Any = ray.get(controller.admin.remote("create_key", [name, ["infer", "admin"]]))
    if "error" in answer:
        raise ServiceError(answer["error"]["message"])
    cluster.admin_key_path.unlink(missing_ok=True)
    descriptor = os.open(cluster.admin_key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(answer["result"]["key"])
