"""Node types of a local cluster: cluster.yaml's, with what local.toml says each gets on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagleray.capacity.placement import NodeCapacity
from eagleray.errors import SpecError
from eagleray.specs import LocalSpec

HEAD = "head"
_MIB = 2**20
_TOO_MANY = 2**62
_CLUSTER_KEYS_WITHOUT_DEFAULT: Mapping[str, Any] = {
    # Ray fills these in for its own providers only, and reads them for all (autoscaler v2, 2.60).
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    "cluster_synced_files": [],
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


def read_types(spec: LocalSpec) -> list[NodeCapacity]:
    """The worker types of `spec.cluster_file` as they are on this machine.

    Raises:
        SpecError: the file is no cluster-launcher file, something in it is of the wrong type, or local.toml
            names a type that it does not have.
    """
    table, head = _read(Path(spec.cluster_file))
    table = {str(name): entry for name, entry in table.items()}
    unknown = sorted(set(spec.node_types) - set(table) | ({head} & set(spec.node_types)))
    if unknown:
        known = ", ".join(sorted(set(table) - {head}))
        raise SpecError(
            f"node_types.{unknown[0]}: {spec.cluster_file} has no such worker type; it has: {known}"
        )
    found = [_local_type(name, entry, spec) for name, entry in table.items() if name != head]
    wanted = spec.serving.gateway_labels
    if not any(one.max_nodes and one.matches(wanted) for one in found) and wanted:
        raise SpecError(
            f"serving.gateway_labels: no worker type of {spec.cluster_file} has {wanted}; there are: "
            + ", ".join(f"{one.name} {dict(one.labels or {})}" for one in found)
        )
    return found


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Node types by name, and which one is the head."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"cluster_file: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"cluster_file: {path} is not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"cluster_file: {path} is not valid YAML: {reason}") from None
    table = config.get("available_node_types") if isinstance(config, dict) else None
    head = config.get("head_node_type") if isinstance(config, dict) else None
    if not isinstance(table, dict) or not isinstance(head, str) or head not in table:
        raise SpecError(
            f"cluster_file: {path} is no cluster-launcher file: it needs available_node_types and a "
            "head_node_type that is one of them"
        )
    return table, head


class _Entry:
    """A node type as the cluster file has it; what is of another type than it should be is a SpecError."""

    def __init__(self, path: str, name: str, entry: Any):
        self._path, self._name = path, f"available_node_types.{name}"
        self._entry = self._table("", entry)

    @property
    def resources(self) -> dict[str, int]:
        found = self._table(".resources", self._entry.get("resources") or {})
        return {str(key): self._number(f".resources.{key}", value) for key, value in found.items()}

    @property
    def labels(self) -> dict[str, str]:
        found = self._table(".labels", self._entry.get("labels") or {})
        for key, value in found.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise self._wrong(f".labels.{key}", "text", value)
        return found

    @property
    def max_workers(self) -> int:
        return self._number(".max_workers", self._entry.get("max_workers", 0))

    def _table(self, place: str, value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise self._wrong(place, "a table (a YAML mapping)", value)
        return value

    def _number(self, place: str, value: Any) -> int:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value < _TOO_MANY:  # which is so for NaN as well
            raise self._wrong(place, "a number, 0 or more", value)
        return int(value)

    def _wrong(self, place: str, wanted: str, found: Any) -> SpecError:
        return SpecError(
            f"cluster_file: {self._path}: {self._name}{place}: should be {wanted} (found {found!r:.60})"
        )


def _local_type(name: str, written: Any, spec: LocalSpec) -> NodeCapacity:
    """One worker type with local.toml laid over it."""
    local = spec.node_types.get(name)
    entry = _Entry(spec.cluster_file, name, written)
    resources, most = entry.resources, entry.max_workers
    if local is None:
        # A cloud machine's CPUs are not here; one each, so that every type can be tried.
        resources |= {"CPU": 1, "memory": 2048 * _MIB}
    else:
        resources |= {"CPU": local.cpus, "memory": local.memory_mib * _MIB}
        if local.gpus is not None:
            resources["GPU"] = local.gpus
        most = most if local.max_workers is None else local.max_workers
    kept = {key: value for key, value in resources.items() if value > 0}
    return NodeCapacity(name, kept, entry.labels, min(most, spec.max_nodes))


def autoscaling_config(
    types: list[NodeCapacity], spec: LocalSpec, *, cluster_name: str, module: str, directory: Path
) -> dict[str, Any]:
    """Ray's autoscaling config: our provider class `module`, its state in `directory`, and the node types."""
    workers = {
        node_type.name: {
            "resources": dict(node_type.resources),
            "labels": dict(node_type.labels or {}),
            "node_config": {"object_store_mib": spec.object_store_mib},
            "min_workers": 0,
            "max_workers": node_type.max_nodes,
        }
        for node_type in types
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0}
    return {
        "cluster_name": cluster_name,
        "max_workers": spec.max_nodes,
        "idle_timeout_minutes": spec.idle_timeout_s / 60,
        "upscaling_speed": 100.0,
        "provider": {
            "type": "external",
            "module": module,
            "directory": str(directory),
            "disable_node_updaters": True,
        },
        "head_node_type": HEAD,
        "available_node_types": {HEAD: head, **workers},
        **_CLUSTER_KEYS_WITHOUT_DEFAULT,
    }
