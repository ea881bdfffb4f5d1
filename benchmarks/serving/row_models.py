"""Rows in which the model counts: batches against torch alone, streams of events, one and many at once."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import place  # first: it says where eagleray is
from blocks import alternate
from kit.results import RowFailed, Teller
from rig import Rig

_RAW_S = 120.0


def batches(
    tell: Teller,
    reps: int,
    rig: Rig,
    *,
    model: str,
    samples: int,
    connections: int,
    batch: int,
) -> None:
    """Samples per second through the platform, and of torch alone at the batch that the service allows."""
    rig.ours.up()
    rig.ours.require_binary()
    target = rig.requests(model, is_binary=True, samples=samples)["ours"]
    tell.facts(samples_per_request=samples, connections=connections, batch=batch)
    blocks = alternate(
        {"raw": lambda: raw(model, batch, rig.block_s / 2), "ours": lambda: rig.one(target, connections)},
        reps,
    )
    for number, found in enumerate(blocks):
        alone: Any = found["raw"]
        ours: Any = found["ours"]
        per_s = ours.ok_per_s * samples
        tell.repetition(
            share=per_s / alone["samples_per_s"],
            ours_per_s=per_s,
            raw_per_s=alone["samples_per_s"],
            batch_ms=alone["batch_ms"],
            bad=ours.bad,
        )
        tell.note(
            f"{number + 1}/{reps}: torch alone {alone['samples_per_s']:,.0f} samples/s "
            f"({alone['batch_ms']:.1f} ms a batch of {batch}), ours {per_s:,.0f}/s"
        )


def raw(model: str, batch: int, seconds: float) -> dict[str, float]:
    """Torch alone, in a process of its own. Raises: RowFailed."""
    words = [sys.executable, str(place.HERE / "raw.py"), model, str(batch), f"{seconds:g}"]
    found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_RAW_S)
    if found.returncode != 0:
        raise RowFailed(f"torch alone failed: {found.stderr.strip().splitlines()[-1:]}")
    return json.loads(found.stdout)


def first_event(tell: Teller, reps: int, rig: Rig, *, model: str, tokens: int) -> None:
    """From a request to its first event, one stream at a time, of bare and of ours."""
    targets = rig.texts(model, tokens, is_stream=True)
    blocks = alternate(
        {name: lambda one=one: rig.one(one, 1, is_stream=True) for name, one in targets.items()}, reps
    )
    for number, found in enumerate(blocks):
        bare, ours = found["bare"].first_us.p50 / 1e3, found["ours"].first_us.p50 / 1e3
        tell.repetition(added_ms=ours - bare, bare_ms=bare, ours_ms=ours, bad=found["ours"].bad)
        tell.note(f"{number + 1}/{reps}: first event after {ours:.2f} ms, bare {bare:.2f} ms")


def events(tell: Teller, reps: int, rig: Rig, *, model: str, tokens: int, streams: int) -> None:
    """Server-sent events per second, by the CPU time of the gateways: what one whole core of them carries."""
    target = rig.texts(model, tokens, is_stream=True)["ours"]
    gateways = rig.ours.gateways()
    tell.facts(streams=streams, gateways=len(gateways))
    for number in range(reps):
        seen, cores = rig.with_cpu(gateways, lambda: rig.one(target, streams, is_stream=True))
        tell.repetition(
            per_core=seen.events_per_s / max(cores, 1e-3),
            events_per_s=seen.events_per_s,
            gateway_cores=cores,
            bad=seen.bad,
        )
        tell.note(f"{number + 1}/{reps}: {seen.events_per_s:,.0f} events/s at {cores:.0%} of a core")


def at_once(tell: Teller, reps: int, rig: Rig, *, model: str, tokens: int, streams: int) -> None:
    """Tokens per second of so many streams at once against one after the other, both through the platform.

    Counted are the tokens of the streams that ended in a block's window.
    """
    target = rig.texts(model, tokens, is_stream=True)["ours"]
    tell.facts(tokens=tokens, streams=streams)
    blocks = alternate(
        {
            "one": lambda: rig.one(target, 1, is_stream=True),
            "all": lambda: rig.one(target, streams, is_stream=True),
        },
        reps,
    )
    for number, found in enumerate(blocks):
        one, many = (found[name].ok_per_s * tokens for name in ("one", "all"))
        tell.repetition(ratio=many / one, one_per_s=one, all_per_s=many, bad=found["all"].bad)
        tell.note(f"{number + 1}/{reps}: {many:,.0f} tokens/s of {streams} streams, {one:,.0f}/s of one")
