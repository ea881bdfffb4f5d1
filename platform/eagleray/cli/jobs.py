"""`jobs`, `logs`, `stop`: what the cluster was asked to run."""

from __future__ import annotations

import click

from eagleray.cli.following import follow as follow_job
from eagleray.cli.shared import job_client, json_option, name_option, to_json


@click.command()
@name_option
@json_option
def jobs(name: str | None, as_json: bool) -> None:
    """List the jobs of the cluster, newest first."""
    with job_client(name) as client:
        found = client.list()
    if as_json:
        click.echo(to_json(found))
        return
    if not found:
        click.echo("no jobs yet; start one with `eagleray train SPEC`")
        return
    width = max(len(job.id) for job in found)
    for job in found:
        click.echo(
            f"{job.id:<{width}}  {job.status:<9}  {_lasted(job.started_s, job.ended_s):>8}  {job.entrypoint}"
        )


@click.command()
@click.argument("job")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@name_option
def logs(job: str, follow: bool, name: str | None) -> int:
    """Print what JOB has printed."""
    with job_client(name) as client:
        if follow:
            return follow_job(client, job)
        click.echo(client.logs(job), nl=False)
        return 0


@click.command()
@click.argument("job")
@name_option
def stop(job: str, name: str | None) -> None:
    """End JOB; its checkpoints stay, for `resume`."""
    with job_client(name) as client:
        was_running = client.stop(job)
    click.echo(f"{job}: {'asked to stop' if was_running else 'had ended before'}")


def _lasted(started_s: float | None, ended_s: float | None) -> str:
    import time

    if started_s is None:
        return "-"
    seconds = int((ended_s or time.time()) - started_s)
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
