"""The command line: one module per noun, one function per verb.

A room is imported only inside the function that needs it. So `eagleray --help` costs what click costs, and
`check`, `jobs` or `env` work without ray and torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import NoReturn

import click

from eagleray import __version__
from eagleray.cli import (
    cluster,
    dashboards,
    gateways,
    jobs,
    keys,
    models,
    predictions,
    run_list,
    runs,
    services,
    status,
    verify,
)
from eagleray.cli.shared import INTERRUPTED, InOrder
from eagleray.errors import EaglerayError


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """One elastic Ray cluster that trains, tunes and serves models.

    Exit codes: 0 done, 1 it failed, 2 the input is wrong, 3 no capacity, 130 interrupted.
    """


for _verbs in (
    (cluster.up, cluster.attach, cluster.down, status.status, cluster.env),
    (runs.check, runs.train, runs.resume, runs.tune, runs.evaluate, runs.publish, verify.verify_run),
    (run_list.runs, models.models, services.deploy, services.undeploy, predictions.predict),
    (jobs.jobs, jobs.logs, jobs.stop),
    (keys.keys, gateways.gateways, dashboards.dashboards),
):
    for _verb in _verbs:
        cli.add_command(_verb)


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
            "pip install '.[platform]' in a checkout, or 'WHEEL[platform]'"
        )
    reason = " ".join(str(error).split())
    return f"eagleray: {type(error).__name__}: {reason} (`eagleray --debug {verb} …` shows where)"
