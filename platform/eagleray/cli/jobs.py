"""`jobs`, `logs`, `stop`: what the cluster was asked to run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from eagleray.cli.following import follow as follow_job
from eagleray.cli.following import outcome
from eagleray.cli.output import next_steps, print_json, print_table
from eagleray.cli.shared import INTERRUPTED, flags_of, job_client, json_option, name_option

if TYPE_CHECKING:
    from eagleray.client import JobClient


@click.command()
@name_option
@json_option
def jobs(name: str | None, as_json: bool) -> None:
    """List the jobs of the cluster, newest first."""
    with job_client(name) as client:
        found = client.list()
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("no jobs yet; start one with `eagleray train SPEC`")
        return
    print_table(
        ["job", "status", "lasted", "entrypoint"],
        [(job.id, job.status, _lasted(job.started_s, job.ended_s), job.entrypoint) for job in found],
        right=["lasted"],
    )
    running = next((job for job in found if not job.is_finished), None)
    step = f"eagleray logs -f {running.id}" if running else f"eagleray logs {found[0].id}"
    next_steps(step, flags=flags_of(name))


@click.command()
@click.argument("job")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@name_option
@json_option
def logs(job: str, follow: bool, name: str | None, as_json: bool) -> int:
    """Print what JOB has printed."""
    with job_client(name) as client:
        if as_json:
            return _logs_as_json(client, job, follow)
        if follow:
            return follow_job(client, job)
        click.echo(client.logs(job), nl=False)
        return 0


def _logs_as_json(client: JobClient, job: str, follow: bool) -> int:
    from eagleray.client import JobResult

    exit_code = follow_job(client, job, on_stderr=True) if follow else 0
    if exit_code != INTERRUPTED:
        result = JobResult(client.status(job), client.logs(job))
        print_json({**outcome(result), "log": result.log})
    return exit_code


@click.command()
@click.argument("job")
@name_option
@json_option
def stop(job: str, name: str | None, as_json: bool) -> None:
    """End JOB; its checkpoints stay, for `resume`."""
    with job_client(name) as client:
        was_running = client.stop(job)
        found = client.status(job)
    if as_json:
        print_json({**dataclasses.asdict(found), "was_running": was_running})
        return
    click.echo(f"{job}: {'asked to stop' if was_running else 'had ended before'}")
    next_steps(f"eagleray logs -f {job}" if was_running else "eagleray jobs", flags=flags_of(name))


def _lasted(started_s: float | None, ended_s: float | None) -> str:
    import time

    from eagleray.workflows.words import clock

    return "-" if started_s is None else clock((ended_s or time.time()) - started_s)
