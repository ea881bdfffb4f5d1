"""Rows of single requests: the platform, bare and the peers in alternating blocks."""

from __future__ import annotations

from typing import Any

import bodies
import peers
import workloads
from blocks import alternate
from kit.results import RowFailed, Teller
from load import Requests, Seen
from rig import Rig, check

MOST = 16
"""Connections of a closed loop that is to show what a server can do."""
OPEN = 64
"""Of an open one: as many may wait."""
RAW = 8
MOST_WAITING = 300
"""Connections of one class of several in an open loop."""


def rate(tell: Teller, reps: int, rig: Rig, *, model: str, connections: int, is_binary: bool = False) -> None:
    """Answers per second in a closed loop, of bare and of ours, and what a request takes more than bare."""
    if is_binary:
        rig.ours.up()
        rig.ours.require_binary()
    targets = rig.requests(model, is_binary=is_binary)
    tell.facts(connections=connections, **_pinned(rig))
    blocks = alternate(
        {name: lambda one=one: rig.one(one, connections) for name, one in targets.items()}, reps
    )
    for number, found in enumerate(blocks):
        bare, ours = found["bare"], found["ours"]
        tell.repetition(
            bare_per_s=bare.ok_per_s,
            ours_per_s=ours.ok_per_s,
            ratio=ours.ok_per_s / bare.ok_per_s,
            **_added(bare, ours),
        )
        tell.note(f"{number + 1}/{reps}: bare {bare.ok_per_s:,.0f}/s, ours {ours.ok_per_s:,.0f}/s {ours.bad}")


def half(tell: Teller, reps: int, rig: Rig, *, model: str) -> None:
    """The 99th percentile under an open loop at half of what bare can do, of bare and of ours, in pairs."""
    targets = rig.requests(model)
    most = rig.one(targets["bare"], MOST)
    wanted = most.ok_per_s / 2
    tell.facts(bare_most_per_s=most.ok_per_s, rate_per_s=wanted)
    blocks = alternate(
        {name: lambda one=one: rig.one(one, OPEN, rate=wanted) for name, one in targets.items()}, reps
    )
    for number, found in enumerate(blocks):
        bare, ours = found["bare"], found["ours"]
        tell.repetition(
            **_added(bare, ours),
            bare_p99_ms=bare.latency_us.p99 / 1e3,
            ours_p99_ms=ours.latency_us.p99 / 1e3,
            answered=ours.ok / max(1, ours.due),
        )
        tell.note(
            f"{number + 1}/{reps}: at {wanted:,.0f}/s p99 bare {bare.latency_us.p99 / 1e3:.2f} ms, "
            f"ours {ours.latency_us.p99 / 1e3:.2f} ms {ours.bad}"
        )
    if any(one["answered"] < 0.95 for one in tell.result["repetitions"]):
        tell.facts(remark="ours cannot keep that rate: its latencies are those of a queue that grows")


def peer(tell: Teller, reps: int, rig: Rig, *, name: str) -> None:
    """One peer with the tiny forward beside bare, and beside ours where it runs: 16 connections, then one."""
    values = workloads.samples("tiny")
    bare_port = rig.bare("tiny")
    bare = bare_port, bodies.written(rig.folder, "bare-tiny", bodies.infer_json(bare_port, "tiny", values))
    with peers.server(name, rig.folder).running(peers.PEERS[name].limit_s) as server:
        request = peers.request(name, server.port)
        check(server.name, server.port, request, peers.values_of, bodies.ask(*_bytes(bare)).values())
        target = server.port, bodies.written(rig.folder, name, request)
        tell.facts(title=server.name, protocol=peers.PEERS[name].protocol)
        blocks = alternate(
            {
                "bare": lambda: rig.one(bare, MOST),
                "peer": lambda: rig.one(target, MOST),
                "bare, one": lambda: rig.one(bare, 1),
                "peer, one": lambda: rig.one(target, 1),
            },
            reps,
        )
        for number, found in enumerate(blocks):
            most, mine = found["bare"], found["peer"]
            tell.repetition(
                ours_per_s=mine.ok_per_s,
                bare_per_s=most.ok_per_s,
                ratio=mine.ok_per_s / most.ok_per_s,
                **_added(found["bare, one"], found["peer, one"]),
            )
            tell.note(f"{number + 1}/{reps}: {mine.ok_per_s:,.0f}/s {mine.bad}, bare {most.ok_per_s:,.0f}/s")


def peer_raw(tell: Teller, reps: int, rig: Rig, *, name: str) -> None:
    """One peer with 600 KB of raw numbers, 8 connections, beside bare with a binary tensor."""
    bare_port = rig.bare("wide")
    request = bodies.infer_binary(bare_port, "wide", workloads.samples("wide"))
    bare = bare_port, bodies.written(rig.folder, "bare-wide", request)
    with peers.server(name, rig.folder, "wide").running(peers.PEERS[name].limit_s) as server:
        request = peers.raw_request(name, server.port)
        check(server.name, server.port, request, peers.values_of, bodies.ask(*_bytes(bare)).values())
        target = server.port, bodies.written(rig.folder, f"{name}-raw", request)
        tell.facts(title=server.name, protocol="raw numbers")
        blocks = alternate({"bare": lambda: rig.one(bare, RAW), "peer": lambda: rig.one(target, RAW)}, reps)
        for found in blocks:
            bare_per_s, mine = found["bare"].ok_per_s, found["peer"].ok_per_s
            tell.repetition(ours_per_s=mine, bare_per_s=bare_per_s, ratio=mine / bare_per_s)


def overload(
    tell: Teller, reps: int, rig: Rig, *, model: str, samples: int, times: float, objective_ms: int
) -> None:
    """Keys of several weights that together ask for several times of what there is.

    Each of them alone asks for more than its due. What every request may take is said in its header.
    """
    weights = {"one": 1, "two": 2, "three": 3}
    rig.ours.serve(model)
    values, port = workloads.samples(model, samples), rig.ours.port
    limit = {"x-request-timeout-ms": str(objective_ms)}
    files = {}
    for name, weight in weights.items():
        headers = {**bodies.bearer(rig.ours.key(f"bench-{name}", weight=weight)), **limit}
        request = bodies.infer_binary(port, model, values, headers)
        files[name] = bodies.written(rig.folder, f"overload-{name}", request)
    tell.facts(objective_ms=objective_ms, weights=weights, times=times)
    peak_after = 0.0  # of the block before serves the next: both sides of each overload are measured
    for number in range(reps):
        peak = peak_after or rig.one((port, files["three"]), OPEN).ok_per_s
        each = times * peak / len(weights)
        # As many as may be under way at once: a request that waits for a connection waits at the client.
        connections = max(2 * OPEN, min(MOST_WAITING, round(peak * objective_ms / 1000)))
        requests = [Requests(path, connections, each, seed=number) for path in files.values()]
        seen = dict(zip(files, rig.block(port, *requests, seconds=2 * rig.block_s).classes, strict=True))
        peak_after = rig.one((port, files["three"]), OPEN).ok_per_s
        tell.repetition(**overloaded(seen, (peak + peak_after) / 2, weights))
        last = tell.result["repetitions"][-1]
        tell.note(
            f"{number + 1}/{reps}: peak {last['peak_per_s']:,.0f}/s, then {last['goodput']:.0%} of it, p99 "
            f"{last['p99_ms']:.0f} ms, off its share {last['off_share']:.1%}"
        )


def overloaded(seen: dict[str, Seen], peak_per_s: float, weights: dict[str, int]) -> dict[str, Any]:
    """What came of keys under too much load."""
    import blocks

    refused = [one.refused_us for one in seen.values() if one.refused_us.count]
    off = blocks.shares({name: one.ok for name, one in seen.items()}, weights)
    return {
        "peak_per_s": peak_per_s,
        "goodput": sum(one.ok_per_s for one in seen.values()) / peak_per_s,
        "p99_ms": max(one.latency_us.p99 for one in seen.values()) / 1e3,
        "off_share": max(map(abs, off.values())),
        "refused_p50_ms": max(times.p50 for times in refused) / 1e3 if refused else None,
        "bad": {name: one.bad for name, one in seen.items() if one.bad},
    }


def _added(bare: Seen, ours: Seen) -> dict[str, Any]:
    """Of two blocks beside each other; milliseconds."""
    return {
        "bare_p50_ms": bare.latency_us.p50 / 1e3,
        "ours_p50_ms": ours.latency_us.p50 / 1e3,
        "added_p50_ms": (ours.latency_us.p50 - bare.latency_us.p50) / 1e3,
        "added_p99_ms": (ours.latency_us.p99 - bare.latency_us.p99) / 1e3,
        "bad": ours.bad,
    }


def _bytes(target: Any) -> tuple[int, bytes]:
    return target[0], target[1].read_bytes()


def _pinned(rig: Rig) -> dict[str, Any]:
    if rig.ours.admin is None:
        raise RowFailed("the platform is not up")
    return {"gateways": len(rig.ours.gateways()), "extensions": rig.ours.extensions()}
