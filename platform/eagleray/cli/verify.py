"""`verify-run`: the proof that each sample of a run took effect exactly once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from eagleray.cli.output import print_json, print_table
from eagleray.cli.shared import json_option

if TYPE_CHECKING:
    from eagleray.data.replay import EpochCount
    from eagleray.workflows.verify import Verification

_SHOWN_FINDINGS = 20


@click.command("verify-run")
@click.argument("run")
@json_option
def verify_run(run: str, as_json: bool) -> int:
    """Prove that each sample of RUN took effect exactly once.

    Reads the run's folder in $EAGLERAY_STORAGE and its data, without a cluster. Exit code 1 where it is not
    so; the steps and samples are named.
    """
    from eagleray.workflows.verify import verify

    found = verify(run, lambda text: click.echo(text, err=True))
    if as_json:
        print_json(found)
    else:
        _print(found)
    return 0 if found.is_proven else 1


def _print(found: Verification) -> None:
    from eagleray.workflows.words import count

    verdict = "each sample was taken exactly once" if found.is_proven else "NOT each sample exactly once"
    click.echo(f"run {found.run_id}, {count(found.step, 'step')}: {verdict}")
    for finding in found.findings[:_SHOWN_FINDINGS]:
        click.echo(f"  {finding.text}")
    if (more := len(found.findings) - _SHOWN_FINDINGS) > 0:
        click.echo(f"  … and {count(more, 'finding')} more (--json has all)")
    for line in _how(found):
        click.echo(f"  {line}")
    columns = ["epoch", "samples", "reached", "exactly once", "missing", "repeated", "no effect", "unknown"]
    rows = []
    for numbers, alike in itertools.groupby(found.epochs, key=_numbers):
        epochs = [epoch.epoch for epoch in alike]
        rows.append([epochs[0] if len(epochs) == 1 else f"{epochs[0]}-{epochs[-1]}", *numbers])
    print_table(columns, rows, right=columns)


def _numbers(epoch: EpochCount) -> tuple[int, ...]:
    """What the table says of an epoch; neighbours that are alike share a line."""
    return (
        epoch.num_samples,
        epoch.num_reached,
        epoch.num_once,
        epoch.num_missing,
        epoch.num_repeated,
        epoch.num_without_effect,
        epoch.num_unknown,
    )


def _how(found: Verification) -> Iterator[str]:
    """Who took the steps, and which of them had no effect."""
    from eagleray.workflows.words import count

    sizes = ", ".join(
        f"{count(number, 'step')} by {count(size, 'rank')}" for size, number in found.world_sizes.items()
    )
    if sizes:
        yield f"{sizes}; {count(len(found.formations), 'formation')} of ranks"
    if found.skipped_steps:
        shown = ", ".join(map(str, found.skipped_steps[:_SHOWN_FINDINGS]))
        more = ", …" if len(found.skipped_steps) > _SHOWN_FINDINGS else ""
        yield (
            f"{count(len(found.skipped_steps), 'step')} without effect, because the gradient was not finite: "
            f"{shown}{more}"
        )
