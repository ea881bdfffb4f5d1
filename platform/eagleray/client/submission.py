"""From a spec to a job: what it carries, and what Ray is asked to run."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import eagleray
from eagleray.client.jobs import JobClient
from eagleray.client.package import Package, pack
from eagleray.errors import InputError, SpecError

if TYPE_CHECKING:
    from eagleray.specs import FileSpec

SPEC_NAME = "spec.json"
JOB_KINDS = ("train", "tune", "evaluate")
"""Kinds of spec files whose work is a job: `python -m eagleray.workflows.<kind> SPEC`."""
_STAMP = re.compile(r"-\d{8}-\d{6}-.*")
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
# A driver belongs on the head (workers come and go) and takes no CPU, so that it never starts a node; one
# that computes on a GPU itself goes where there is one.
_DRIVER_RESOURCES = {"node:__internal_head__": 0.001}


def submit_spec(client: JobClient, spec: FileSpec | str | Path, overrides: Sequence[str] = ()) -> str:
    """Submit what a spec, or the file of one, describes: a run, a search or an evaluation; the job's id.

    Raises:
        SpecError: the file does not validate, or is of a kind that is no job.
        InputError: the code is too large, or two of its paths have one name.
        ServiceError, AuthError: the cluster does not answer or refuses.
    """
    from eagleray.specs import load_any

    if isinstance(spec, str | Path):
        spec = load_any(spec, overrides)
    elif overrides:
        raise InputError("overrides are for the path of a spec; change the spec itself (model_copy)")
    kind = getattr(spec, "kind", "")
    if kind not in JOB_KINDS:
        raise SpecError(f"a {kind} spec is no job; submit one of the kinds {', '.join(JOB_KINDS)}")
    return _submit(
        client,
        kind,
        getattr(spec, "name", kind),
        [SPEC_NAME],
        working_dir=pack(_working_dir(spec)),
        num_gpus=getattr(spec, "gpus", 0),
    )


def submit_resume(client: JobClient, run: str) -> str:
    """Submit `python -m eagleray.workflows.resume RUN`; returns the job's id. Raises: as `submit_spec`."""
    return _submit(client, "resume", _id(run, "run"), [run])


def submit_tune_resume(client: JobClient, search: str) -> str:
    """Submit what goes on with a stopped search; returns the job's id. Raises: as `submit_spec`."""
    return _submit(client, "tune", _id(search, "search"), ["--resume", search])


def submit_publish(
    client: JobClient,
    run: str,
    *,
    name: str | None = None,
    aliases: Sequence[str] = (),
    search: str | None = None,
    parent: str | None = None,
) -> str:
    """Submit what makes a finished run the next version of model `name`; returns the job's id.

    Args:
        client: Of the cluster.
        run: Its id.
        name: Of the model; the run's own name where not given.
        aliases: Point to the new version afterwards.
        search: The search whose trial the run was, for the lineage.
        parent: The version that it was made from, any reference ("digits@production").

    Raises:
        InputError: a name, an alias or a reference is wrong.
        ServiceError, AuthError: the cluster does not answer or refuses.
    """
    from eagleray.specs.model_ref import Ref, check_alias, check_name

    arguments = [_id(run, "run")]
    if name is not None:
        arguments += ["--name", check_name(name)]
    for alias in aliases:
        arguments += ["--alias", check_alias(alias)]
    if search is not None:
        arguments += ["--search", _id(search, "search")]
    if parent is not None:
        Ref.parse(parent)
        arguments += ["--parent", parent]
    return _submit(client, "publish", name or _STAMP.sub("", run), arguments)


def _id(text: str, noun: str) -> str:
    if not _ID.fullmatch(text):
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise InputError(
            f"{noun} {shown!r}: expected the id of a {noun}, such as digits-20260131-120000-1f2e"
        )
    return text


def _submit(
    client: JobClient,
    verb: str,
    name: str,
    arguments: Sequence[str],
    *,
    working_dir: Package | None = None,
    num_gpus: int = 0,
) -> str:
    runtime_env: dict[str, Any] = {"py_modules": [client.upload(eagleray_package())]}
    if working_dir is not None:
        runtime_env["working_dir"] = client.upload(working_dir)
    return client.submit(
        shlex.join(["python", "-m", f"eagleray.workflows.{verb}", *arguments]),
        job_id=f"{verb}-{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
        runtime_env=runtime_env,
        metadata={"eagleray_verb": verb, "eagleray_name": name},
        resources=None if num_gpus else _DRIVER_RESOURCES,
        num_gpus=num_gpus,
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
