"""What a job is about to be asked for, looked up at the ingress first: a name that is wrong costs no job.

Where the ingress does not answer nothing is refused; the job finds out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eagleray.errors import EaglerayError, InputError, ModelNotFound
from eagleray.specs.model_ref import Ref, pick, similar

if TYPE_CHECKING:
    from eagleray.client import Client, Run

_NUM_COMPARED = 200
_NUM_NAMED = 3


def require_run(client: Client, ref: str, *, or_name: bool = False) -> None:
    """Raises: InputError where no run has that id, nor (`or_name`) a spec of that name a run."""
    try:
        found = client.runs(ref, limit=1)
        if any(or_name or run.id == ref for run in found):
            return
        known = client.runs(limit=_NUM_COMPARED)
    except EaglerayError:
        return
    raise InputError(f"no run {_short(ref)!r}{_those_there(ref, known, or_name)}")


def require_model(client: Client, ref: str) -> None:
    """Raises: InputError where `ref` is none; ModelNotFound where the registry has nothing of that name."""
    wanted = Ref.parse(ref)
    try:
        versions = client.admin.versions(wanted.name)
    except ModelNotFound:
        if _has_control_plane(client):
            raise
        return
    except EaglerayError:
        return
    pick(wanted, versions)


def _has_control_plane(client: Client) -> bool:
    """Whether a 404 is the registry's word, and not that of a proxy which lets only models through."""
    try:
        client.runs(limit=1)
    except EaglerayError:
        return False
    return True


def _those_there(ref: str, known: list[Run], or_name: bool) -> str:
    """What the user may have meant."""
    if not known:
        return ": there is none yet; `eagleray train SPEC` makes one"
    names = [run.id for run in known] + (sorted({run.name for run in known}) if or_name else [])
    near = similar(ref, names)
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    newest = ", ".join(run.id for run in known[:_NUM_NAMED])
    return f"{meant}; the newest: {newest}; `eagleray runs list` shows more"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
