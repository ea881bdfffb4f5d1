"""From what is to be served and what Serve runs to the next steps: pure, so that a table can test it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from eagleray.serving.services import APP_PREFIX, Record, ServedVersion, Service, Trouble, retire

_OUR_ERROR = re.compile(r"eagleray(?:\.\w+)*\.\w+: (.+?)(?=\n\s*\n|\Z)", re.DOTALL)


_FAILED_START = re.compile(r"failed to start(?: (\d+) times| with exception)")
"""In what Serve says of a deployment."""
_MAX_RETRIES = 2
_MOST_REASON = 500


@dataclass(frozen=True)
class Seen:
    """A Serve application, as Serve sees it."""

    status: Literal["deploying", "running", "failed", "deleting"]
    message: str = ""
    num_replicas: int = 0
    """Those that answer."""


@dataclass(frozen=True)
class Apply:
    """Hand the version to Serve; `is_new`: Serve has no application of its name."""

    served: ServedVersion
    is_new: bool


@dataclass(frozen=True)
class MarkReady:
    """Requests may go there."""

    name: str
    version: int


@dataclass(frozen=True)
class Fail:
    """Give the version up: what it says would come again."""

    name: str
    version: int
    message: str


@dataclass(frozen=True)
class Retry:
    """Let Serve end the application, and start it anew: what went wrong may have been the node's fault."""

    name: str
    version: int
    app: str


@dataclass(frozen=True)
class Switch:
    """Let the plain name lead to the version."""

    name: str
    version: int


@dataclass(frozen=True)
class Retire:
    """Let nothing lead to the version any more."""

    name: str
    version: int


@dataclass(frozen=True)
class Delete:
    """Let Serve end the application."""

    app: str


@dataclass(frozen=True)
class Forget:
    """The application has ended."""

    app: str


Action = Apply | MarkReady | Fail | Retry | Switch | Retire | Delete | Forget


def decide(
    record: Record, seen: Mapping[str, Seen], drained: Collection[str], now_s: float, *, drain_limit_s: float
) -> list[Action]:
    """The steps that bring what Serve runs nearer to the record.

    Args:
        record: What is to be served.
        seen: Serve's applications by name, those of others left out.
        drained: Applications on which no ingress has a request under way, nor will have.
        now_s: Seconds since the epoch.
        drain_limit_s: A retired application is ended after so long, whatever is under way on it.
    """
    actions: list[Action] = []
    for name in sorted(record.services):
        actions += _of_service(record, record.services[name], seen)
    for app, retiring in sorted(record.retiring.items()):
        if app not in seen:
            actions.append(Forget(app))
        elif not retiring.is_deleted and (
            app in drained or not retiring.served.is_ready or now_s - retiring.since > drain_limit_s
        ):
            actions.append(Delete(app))
    served = {version.app for service in record.services.values() for version in service.versions.values()}
    strangers = sorted(
        app
        for app in set(seen) - served - set(record.retiring)
        if app.startswith(APP_PREFIX) and seen[app].status != "deleting"
    )
    return actions + [Delete(app) for app in strangers]


def _of_service(record: Record, service: Service, seen: Mapping[str, Seen]) -> Iterator[Action]:
    for _, served in sorted(service.versions.items()):
        if served.app not in record.retiring:  # else its last life has to end first
            yield from _of_version(served, seen.get(served.app), record.applied.get(served.app))
    for number, served in sorted(service.versions.items()):
        is_current = number in (service.default, service.wanted)
        if not is_current and served.spec.default and not served.failure:
            yield Retire(served.name, number)
    wanted = service.versions[service.wanted]
    if service.default != service.wanted and wanted.is_ready and not wanted.failure:
        yield Switch(wanted.name, wanted.version)


def _of_version(served: ServedVersion, seen: Seen | None, applied: str | None) -> Iterator[Action]:
    if seen is not None and seen.status == "deleting":
        return
    if served.failure:
        if seen is not None:
            yield Delete(served.app)
    elif seen is None or applied != served.fingerprint:
        yield Apply(served, is_new=seen is None)
    elif seen.status == "running" and not served.is_ready:
        yield MarkReady(served.name, served.version)
    elif seen.status == "failed" and not served.is_ready:
        ours = our_error(seen.message)
        if ours is not None or served.retries >= _MAX_RETRIES:
            yield Fail(served.name, served.version, ours or " ".join(seen.message.split()))
        else:
            yield Retry(served.name, served.version, served.app)


def ailing(record: Record, seen: Mapping[str, Seen]) -> dict[str, Trouble]:
    """Which versions that have answered were to start a replica, and it did not come up; by application."""
    found: dict[str, Trouble] = {}
    for service in record.services.values():
        for served in service.versions.values():
            message = seen[served.app].message if served.is_ready and served.app in seen else ""
            if matched := _FAILED_START.search(message):
                ours, tries = our_error(message), int(matched[1] or 1)
                reason = ours or " ".join(message.split())[-_MOST_REASON:]
                is_final = ours is not None or tries > _MAX_RETRIES
                found[served.app] = Trouble(tries, reason, is_final)
    return found


def our_error(message: str) -> str | None:
    """What an error of ours says, in what Serve says of a replica that did not start: it would come again."""
    found = _OUR_ERROR.findall(message)
    return " ".join(found[-1].split()) if found else None


def carry_out(record: Record, action: Action, now_s: float) -> Record:
    """The record after `action`."""
    match action:
        case Apply(served, is_new):
            applied = {**record.applied, served.app: served.fingerprint}
            record = replace(record, applied=applied)
            if is_new:
                served = replace(served, is_ready=False, applied_at=now_s)
            return record.with_version(served)
        case MarkReady(name, version):
            served = record.version(name, version)
            return record.with_version(replace(served, is_ready=True, start_s=now_s - served.applied_at))
        case Fail(name, version, message):
            record = record.with_version(replace(record.version(name, version), failure=message))
            service = record.services[name]
            if service.wanted == version:
                record = record.with_service(name, replace(service, wanted=service.default))
            return record
        case Retry(name, version, app):
            served = record.version(name, version)
            record = carry_out(record, Delete(app), now_s)
            return record.with_version(replace(served, retries=served.retries + 1))
        case Switch(name, version):
            return record.with_service(name, replace(record.services[name], default=version))
        case Retire(name, version):
            return retire(record, name, version, now_s)
        case Delete(app):
            applied = {other: print_ for other, print_ in record.applied.items() if other != app}
            retiring = dict(record.retiring)
            if app in retiring:
                retiring[app] = replace(retiring[app], is_deleted=True)
            return replace(record, applied=applied, retiring=retiring)
        case Forget(app):
            retiring = {other: entry for other, entry in record.retiring.items() if other != app}
            return replace(record, retiring=retiring)
