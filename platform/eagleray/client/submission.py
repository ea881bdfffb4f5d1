"""From a spec to a job: what it carries, and what Ray is asked to run."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import eagleray
from eagleray.client.jobs import JobClient
from eagleray.client.package import Package, pack
from eagleray.errors import InputError, SpecError

if TYPE_CHECKING:
    from eagleray.specs import FileSpec, TrainSpec

SPEC_NAME = "spec.json"
JOB_KINDS = ("train", "tune", "evaluate")
"""Kinds of spec files whose work is a job: `python -m eagleray.workflows.<kind> SPEC`."""
_RUN = re.compile(r"[a-z0-9][a-z0-9._-]*")
# The driver belongs on the head (workers come and go) and takes no CPU, so that it never starts a node.
_DRIVER_RESOURCES = {"node:__internal_head__": 0.001}


def submit_run(client: JobClient, verb: str, spec: TrainSpec) -> str:
    """Submit `python -m eagleray.workflows.<verb>` with the resolved spec and its code; returns the job's id.

    Raises:
        InputError: the code is too large, or two of its paths have one name.
        ServiceError, AuthError: the cluster does not answer or refuses.
    """
    return _submit(client, verb, spec.name, SPEC_NAME, pack(_working_dir(spec)))


def submit_spec(client: JobClient, spec: FileSpec | str | Path, overrides: Sequence[str] = ()) -> str:
    """Submit what a spec, or the file of one, describes: a run, a search or an evaluation; the job's id.

    Raises:
        SpecError: the file does not validate, or is of a kind that is no job.
        InputError, ServiceError, AuthError: as `submit_run`.
    """
    from eagleray.specs import load_any

    if isinstance(spec, str | Path):
        spec = load_any(spec, overrides)
    elif overrides:
        raise InputError("overrides are for the path of a spec; change the spec itself (model_copy)")
    kind = getattr(spec, "kind", "")
    if kind not in JOB_KINDS:
        raise SpecError(f"a {kind} spec is no job; submit one of the kinds {', '.join(JOB_KINDS)}")
    return _submit(client, kind, getattr(spec, "name", kind), SPEC_NAME, pack(_working_dir(spec)))


def submit_resume(client: JobClient, run: str) -> str:
    """Submit `python -m eagleray.workflows.resume RUN`; returns the job's id. Raises: as `submit_run`."""
    if not _RUN.fullmatch(run):
        raise InputError(f"run {run!r}: expected the id of a run, such as digits-20260131-120000-1f2e")
    return _submit(client, "resume", run, run, None)


def _submit(client: JobClient, verb: str, name: str, argument: str, working_dir: Package | None) -> str:
    runtime_env: dict[str, Any] = {"py_modules": [client.upload(eagleray_package())]}
    if working_dir is not None:
        runtime_env["working_dir"] = client.upload(working_dir)
    return client.submit(
        f"python -m eagleray.workflows.{verb} {argument}",
        job_id=f"{verb}-{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
        runtime_env=runtime_env,
        metadata={"eagleray_verb": verb, "eagleray_name": name},
        resources=_DRIVER_RESOURCES,
    )


def eagleray_package() -> Package:
    """This installation's package, so that a job runs the code that submitted it."""
    return pack({"eagleray": Path(eagleray.__file__).parent})


def _working_dir(spec: FileSpec) -> Mapping[str, Path | bytes]:
    """The resolved spec, and each path of `code` under its own name: the job's folder is importable."""
    sources: dict[str, Path | bytes] = {}
    owner: Any = getattr(spec, "base", spec)  # a search runs its base's code
    for path in map(Path, owner.code):
        if path.name in sources or path.name == SPEC_NAME:
            raise InputError(f"code: two paths are named {path.name!r}; a job has one folder, so rename one")
        sources[path.name] = path
    resolved = spec.model_dump(mode="json")
    (resolved if owner is spec else resolved["base"])["code"] = list(sources)
    return {**sources, SPEC_NAME: json.dumps(resolved, indent=1).encode()}
