"""The command line: one function per verb. A room is imported only inside the function that needs it.

So `eagleray --help` costs what click costs, and `check`, `jobs` or `env` work without ray and torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NoReturn

import click

from eagleray import __version__
from eagleray.errors import EaglerayError, InputError

if TYPE_CHECKING:
    from eagleray.client.jobs import JobClient
    from eagleray.specs import FileSpec

INTERRUPTED = 130
DEFAULT_CLUSTER = "local"


class _InOrder(click.Group):
    """Lists the verbs in the order of this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """One elastic Ray cluster that trains, tunes and serves models.

    Exit codes: 0 done, 1 it failed, 2 the input is wrong, 3 no capacity, 130 interrupted.
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; an error is one message on stderr."""
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code. Raises: only with --debug."""
    is_debug = "--debug" in takewhile(lambda argument: argument.startswith("-"), arguments)
    try:
        result = cli.main(arguments, prog_name="eagleray", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) went away; nothing is left to tell it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if is_debug:
            raise
        click.echo(_message(error, arguments), err=True)
        return error.exit_code if isinstance(error, EaglerayError) else 1


def _message(error: Exception, arguments: Sequence[str]) -> str:
    if isinstance(error, EaglerayError):
        return f"eagleray: {error}"
    verb = next((argument for argument in arguments if not argument.startswith("-")), "")
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("eagleray"):
        return (
            f"eagleray: `{verb}` needs {error.name}, which the light install leaves out: "
            "pip install 'eagleray[platform]'"
        )
    reason = " ".join(str(error).split())
    return f"eagleray: {type(error).__name__}: {reason} (`eagleray --debug {verb} …` shows where)"


_name = click.option("--name", default=None, metavar="NAME", help=f"The local cluster [{DEFAULT_CLUSTER}].")
_set = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Change one value of the spec."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


# --- the cluster ---------------------------------------------------------------------------------


@cli.command()
@click.argument("spec", default="local.toml")
@_name
@_set
def up(spec: str, name: str | None, overrides: tuple[str, ...]) -> None:
    """Start a local elastic cluster as SPEC (local.toml) says."""
    from eagleray.workflows.up import up

    up(name or DEFAULT_CLUSTER, spec, overrides, click.echo)


@cli.command()
@_name
def down(name: str | None) -> None:
    """Stop a local cluster and all that it started."""
    from eagleray.workflows.down import down

    down(name or DEFAULT_CLUSTER, click.echo)


@cli.command()
@_name
@_json
def status(name: str | None, as_json: bool) -> None:
    """Show what runs: head, nodes, addresses."""
    from eagleray.workflows.status import as_json as to_json
    from eagleray.workflows.status import as_text, status

    found = status(name or DEFAULT_CLUSTER)
    click.echo(to_json(found) if as_json else as_text(found))


@cli.command()
@_name
def env(name: str | None) -> None:
    """Print exports for Ray's own commands, for `eval`."""
    from eagleray.workflows.env import as_shell, env

    click.echo(as_shell(env(name or DEFAULT_CLUSTER)))


# --- specs and runs ------------------------------------------------------------------------------


@cli.command()
@click.argument("spec")
@_set
@_json
def check(spec: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Validate a spec without a cluster."""
    from eagleray.specs import load_any

    found = load_any(spec, overrides)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    click.echo(f"{spec}: a valid {getattr(found, 'kind', '')} spec")
    for line in _summary(found):
        click.echo(f"  {line}")


def _summary(spec: FileSpec) -> Iterator[str]:
    """One line per table of the spec, with the values that differ from the defaults."""
    tables = spec.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    width = max(map(len, tables), default=0)
    for key, value in tables.items():
        yield f"{key:<{width}}  {_inline(value)}"


def _inline(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    first = [str(value["kind"])] if "kind" in value else []
    rest = (
        f"{key}={f'({_inline(item)})' if isinstance(item, dict) else item}"
        for key, item in value.items()
        if key != "kind"
    )
    return " ".join([*first, *rest])


@cli.command()
@click.argument("spec")
@_name
@_set
def train(spec: str, name: str | None, overrides: tuple[str, ...]) -> int:
    """Train what SPEC describes, as a job of the cluster."""
    from eagleray.client.submission import submit_run
    from eagleray.specs import TrainSpec, load

    loaded = load(TrainSpec, spec, overrides)
    return _submit_and_follow(name, lambda client: submit_run(client, "train", loaded))


@cli.command()
@click.argument("run")
@_name
def resume(run: str, name: str | None) -> int:
    """Go on with a stopped or failed RUN."""
    from eagleray.client.submission import submit_resume

    return _submit_and_follow(name, lambda client: submit_resume(client, run))


# --- jobs ----------------------------------------------------------------------------------------


@cli.command()
@_name
@_json
def jobs(name: str | None, as_json: bool) -> None:
    """List the jobs of the cluster, newest first."""
    with _jobs(name) as client:
        found = client.list()
    if as_json:
        click.echo(_as_json(found))
        return
    if not found:
        click.echo("no jobs yet; start one with `eagleray train SPEC`")
        return
    width = max(len(job.id) for job in found)
    for job in found:
        click.echo(
            f"{job.id:<{width}}  {job.status:<9}  {_lasted(job.started_s, job.ended_s):>8}  {job.entrypoint}"
        )


@cli.command()
@click.argument("job")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@_name
def logs(job: str, follow: bool, name: str | None) -> int:
    """Print what JOB has printed."""
    with _jobs(name) as client:
        if follow:
            return _follow(client, job)
        click.echo(client.logs(job), nl=False)
        return 0


@cli.command()
@click.argument("job")
@_name
def stop(job: str, name: str | None) -> None:
    """End JOB; its checkpoints stay, for `resume`."""
    with _jobs(name) as client:
        was_running = client.stop(job)
    click.echo(f"{job}: {'asked to stop' if was_running else 'had ended before'}")


# --- monitoring ----------------------------------------------------------------------------------


@cli.group(cls=_InOrder)
def dashboards() -> None:
    """Grafana dashboards of what the cluster exports."""


@dashboards.command()
@click.option("--url", help="Grafana's address [$EAGLERAY_GRAFANA_URL].")
@click.option("--folder", default="Eagleray", show_default=True, help="Folder, made where there is none.")
@click.option("--datasource", help="Prometheus data source to start with [Grafana's default].")
@click.option("--prometheus-url", help="Makes that data source where there is none.")
def publish(url: str | None, folder: str, datasource: str | None, prometheus_url: str | None) -> None:
    """Put the dashboards into a Grafana (its token: $EAGLERAY_GRAFANA_TOKEN); twice changes nothing."""
    from eagleray.workflows.dashboards import publish

    published = publish(url, None, folder, datasource, prometheus_url=prometheus_url)
    for change in published.changes or ("nothing to change",):
        click.echo(change)
    click.echo(published.url)


# --- shared --------------------------------------------------------------------------------------


@contextmanager
def _jobs(name: str | None) -> Iterator[JobClient]:
    """The job API of the local cluster `name`; where none is given, of the one that the environment names."""
    from eagleray.client.jobs import JobClient

    address = os.environ.get("RAY_API_SERVER_ADDRESS") if name is None else None
    if address:
        token = _token_from_environment()
    else:
        from eagleray.cluster import state

        found = state.find(name or DEFAULT_CLUSTER)
        address, token = found.dashboard_url, found.token
    with JobClient(address, token) as client:
        yield client


def _token_from_environment() -> str | None:
    """Ray's own variables, as `eagleray env` exports them."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path is None or "RAY_AUTH_TOKEN" in os.environ:
        return os.environ.get("RAY_AUTH_TOKEN")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError as error:
        raise InputError(f"RAY_AUTH_TOKEN_PATH {path}: cannot be read: {error.strerror}") from None


def _submit_and_follow(name: str | None, submit: Callable[[JobClient], str]) -> int:
    with _jobs(name) as client:
        job_id = submit(client)
        click.echo(f"job {job_id}")
        return _follow(client, job_id)


def _follow(client: JobClient, job_id: str) -> int:
    """Print the job's log until it ends; returns its exit code. Ctrl-C leaves the job running."""
    try:
        for text in client.follow(job_id):
            click.echo(text, nl=False)
        job = client.status(job_id)
    except KeyboardInterrupt:
        click.echo(
            f"\ndetached; the job goes on. `eagleray logs -f {job_id}` follows it again, "
            f"`eagleray stop {job_id}` ends it",
            err=True,
        )
        return INTERRUPTED
    if job.status == "FAILED" and job.driver_exit_code is None:
        click.echo(f"eagleray: job {job_id} failed to start: {job.message}", err=True)
    elif job.status == "STOPPED":
        click.echo(f"eagleray: job {job_id} was stopped", err=True)
    return job.exit_code


def _as_json(found: Any) -> str:
    """Dataclasses, and lists of them, as JSON; paths as text."""
    import dataclasses
    import json

    plain = (
        [dataclasses.asdict(item) for item in found] if isinstance(found, list) else dataclasses.asdict(found)
    )
    return json.dumps(plain, indent=2, default=str)


def _lasted(started_s: float | None, ended_s: float | None) -> str:
    import time

    if started_s is None:
        return "-"
    seconds = int((ended_s or time.time()) - started_s)
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


if __name__ == "__main__":
    main()
