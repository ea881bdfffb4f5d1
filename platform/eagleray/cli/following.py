"""Submitting a job, and following its log until it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from eagleray.cli.shared import INTERRUPTED, job_client

if TYPE_CHECKING:
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
