"""Submitting a job, and following its log until it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from eagleray.cli.shared import INTERRUPTED, job_client

if TYPE_CHECKING:
    from rich.console import Console

    from eagleray.cli.live import LiveLog
    from eagleray.client.jobs import JobClient


def submit_and_follow(name: str | None, submit: Callable[[JobClient], str]) -> int:
    """Submit a job to the cluster `name` and follow it; returns its exit code."""
    with job_client(name) as client:
        job_id = submit(client)
        click.echo(f"job {job_id}")
        return follow(client, job_id)


def follow(client: JobClient, job_id: str) -> int:
    """Print the job's log until it ends; returns its exit code. Ctrl-C leaves the job running."""
    try:
        with log_on_stdout() as log:
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

    def __enter__(self) -> PlainLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, text: str) -> None:
        """Print a piece of the log."""
        click.echo(text, nl=False)


def log_on_stdout(console: Console | None = None) -> PlainLog | LiveLog:
    """What a job's log is written to: on a terminal (`console`, if one is given) its progress is a bar."""
    if not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return PlainLog()
    from eagleray.cli.live import LiveLog

    return LiveLog(console)
