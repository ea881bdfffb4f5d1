"""`eagleray dashboards publish`: puts our dashboards into a Grafana; a second time, nothing changes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eagleray import __version__
from eagleray.errors import InputError
from eagleray.monitoring import Grafana, training_dashboard


@dataclass(frozen=True)
class Published:
    """What publishing did. `changes`: one sentence each, empty where everything was there already."""

    url: str
    changes: tuple[str, ...]


def publish(
    url: str | None = None,
    token: str | None = None,
    folder: str = "Eagleray",
    datasource: str | None = None,
    *,
    prometheus_url: str | None = None,
) -> Published:
    """Put "Eagleray / Training" into a Grafana; an edited one is overwritten (its history keeps the edit).

    Args:
        url: Grafana's address; None takes EAGLERAY_GRAFANA_URL.
        token: A service account token; None takes EAGLERAY_GRAFANA_TOKEN. Never logged or shown.
        folder: Title of the folder, made where there is none.
        datasource: Name of the Prometheus data source to start with; None leaves it to Grafana's default.
        prometheus_url: Where Grafana finds Prometheus: `datasource` is then made where there is none.

    Raises:
        InputError: No address or token, they cannot be right, or there is no such data source.
        ServiceError: Grafana cannot be reached or refuses.
    """
    grafana = Grafana(_given("address", url, "URL"), _given("service account token", token, "TOKEN"))
    changes: list[str] = []
    source = _datasource(grafana, datasource, prometheus_url, changes)
    folder_uid, is_new = grafana.ensure_folder(folder, _folder_uid(folder))
    if is_new:
        changes.append(f"made folder {folder!r}")
    path = _upsert(grafana, training_dashboard(source), folder_uid, changes)
    return Published(f"{grafana.url}/{path.lstrip('/')}", tuple(changes))


def _folder_uid(title: str) -> str:
    """The same uid for the same title, so that a folder renamed in Grafana is still found."""
    return f"eagleray-{hashlib.sha256(title.encode()).hexdigest()[:12]}"


def _given(what: str, value: str | None, suffix: str) -> str:
    variable = f"EAGLERAY_GRAFANA_{suffix}"
    found = (value if value is not None else os.environ.get(variable, "")).strip()
    if not found:
        raise InputError(f"dashboards publish: no {what} of Grafana is given; set {variable}")
    return found


def _datasource(
    grafana: Grafana, name: str | None, prometheus_url: str | None, changes: list[str]
) -> tuple[str, str] | None:
    """(name, uid) of the data source, made where that was asked; None where no name was given."""
    if name is None:
        if prometheus_url is not None:
            raise InputError("dashboards publish: a Prometheus address needs the name of its data source too")
        return None
    found = grafana.datasource(name)
    if found is None and prometheus_url is not None:
        found = grafana.create_datasource(name, prometheus_url)
        changes.append(f"made data source {name!r} ({prometheus_url})")
    names = "" if found is not None else ", ".join(grafana.datasource_names("prometheus")) or "none"
    if found is None:
        raise InputError(
            f"Grafana at {grafana.url}: no data source {name!r}; Prometheus data sources there: {names}; "
            "name one of them, or give a Prometheus address to make it"
        )
    if found.get("type") != "prometheus":
        raise InputError(
            f"Grafana at {grafana.url}: data source {name!r} is a {found.get('type')}, not a prometheus"
        )
    return name, str(found["uid"])


def _upsert(grafana: Grafana, model: dict[str, Any], folder_uid: str, changes: list[str]) -> str:
    """Save the dashboard where it differs; appends to `changes`. Returns: the path of its page."""
    held = grafana.dashboard(model["uid"])
    version = None if held is None else int(held["dashboard"].get("version", 0))
    if held is not None and _is_same(held, model, folder_uid):
        return str(held.get("meta", {}).get("url") or f"/d/{model['uid']}")
    saved = grafana.save_dashboard(
        model, folder_uid=folder_uid, version=version, message=f"eagleray {__version__}"
    )
    step = "made" if version is None else f"overwrote (version {version} -> {saved.get('version')})"
    changes.append(f"{step} dashboard {model['title']!r}")
    return str(saved.get("url") or f"/d/{model['uid']}")


def _is_same(held: Mapping[str, Any], model: Mapping[str, Any], folder_uid: str) -> bool:
    theirs = held["dashboard"]
    is_migrated = int(theirs.get("schemaVersion", 0)) >= model["schemaVersion"]
    ours = {key: value for key, value in model.items() if key != "schemaVersion"}
    return is_migrated and held.get("meta", {}).get("folderUid") == folder_uid and _holds(theirs, ours)


def _holds(theirs: Any, ours: Any) -> bool:
    """Whether `theirs` says all that `ours` says; keys beside ours are defaults that Grafana filled in."""
    if isinstance(ours, Mapping):
        return isinstance(theirs, Mapping) and all(
            key in theirs and _holds(theirs[key], value) for key, value in ours.items()
        )
    if isinstance(ours, list):
        return (
            isinstance(theirs, list)
            and len(theirs) == len(ours)
            and all(_holds(their, our) for their, our in zip(theirs, ours, strict=True))
        )
    return theirs == ours
