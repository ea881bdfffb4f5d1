"""Submitting a job, following its log until it ends, and saying what came of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

import click

from eagleray.cli.output import next_steps, print_json
from eagleray.cli.shared import INTERRUPTED, flags_of, job_client

if TYPE_CHECKING:
    from rich.console import Console

    from eagleray.cli.live import LiveLog
    from eagleray.client import JobClient, JobResult


def submit_and_follow(
    name: str | None,
    submit: Callable[[JobClient], str],
    *,
    as_json: bool = False,
    then: Callable[[JobResult], list[str]] = lambda _: [],
) -> int:
    """Submit a job to the cluster `name` and follow it; returns its exit code.

    Args:
        name: A local cluster; where none is given, the one that the environment names.
        submit: Starts the job; returns its id.
        as_json: Print what came of it as JSON on stdout, and all else on stderr.
        then: The commands that come next when it has done what it was asked.
    """
    with job_client(name) as client:
        job_id = submit(client)
        click.echo(f"job {job_id}", err=as_json)
        exit_code = follow(client, job_id, on_stderr=as_json)
        if exit_code == 0 or (as_json and exit_code != INTERRUPTED):
            result = _result(client, job_id)
            if as_json:
                print_json(outcome(result))
            elif exit_code == 0:
                next_steps(*then(result), flags=flags_of(name))
        return exit_code


def _result(client: JobClient, job_id: str) -> JobResult:
    from eagleray.client import JobResult

    return JobResult(client.status(job_id), client.logs(job_id))


def outcome(result: JobResult) -> dict[str, Any]:
    """What came of a job, for programs."""
    return {
        "job": asdict(result.job),
        "exit_code": result.exit_code,
        "id": result.made,
        "folder": result.folder,
        "version": result.version,
        "report": result.report,
    }


def follow(client: JobClient, job_id: str, *, on_stderr: bool = False) -> int:
    """Print the job's log until it ends; returns its exit code. Ctrl-C leaves the job running."""
    try:
        with log_to(sys.stderr if on_stderr else sys.stdout) as log:
            for text in client.follow(job_id):
                log.write(text)
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


class PlainLog:
    """Prints a log as it comes: for files, pipes, and terminals that cannot move their cursor."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __enter__(self) -> PlainLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, text: str) -> None:
        """Print a piece of the log."""
        click.echo(text, nl=False, file=self._stream)


def log_to(stream: TextIO, console: Console | None = None) -> PlainLog | LiveLog:
    """What a job's log is written to: on a terminal (`console`, if one is given) its progress is a bar."""
    if not stream.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return PlainLog(stream)
    from eagleray.cli.live import LiveLog

    if console is None:
        from rich.console import Console

        console = Console(file=stream)
    return LiveLog(console)
