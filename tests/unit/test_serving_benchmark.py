"""The arithmetic of benchmarks/serving, and its load generator against a server that counts for itself."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import sys
import threading
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support.benchmarks import FOLDER, module_of, shared

aims, blocks, bodies, load, rows = (
    module_of("serving", name) for name in ("aims", "blocks", "bodies", "load", "rows")
)
empty = shared("results").empty


@pytest.fixture
def report(monkeypatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "aims", aims)
    return module_of("serving", "report")


# ---- arithmetic


def test_contestants_take_turns_in_any_order_and_all_of_them():
    order: list[str] = []
    contestants = {name: lambda name=name: order.append(name) or name.upper() for name in "abc"}
    found = list(blocks.alternate(contestants, 20))
    assert found == [{"a": "A", "b": "B", "c": "C"}] * 20
    rounds = [tuple(order[at : at + 3]) for at in range(0, 60, 3)]
    assert {frozenset(one) for one in rounds} == {frozenset("abc")}
    assert len(set(rounds)) > 3


def test_a_key_s_part_is_off_by_its_distance_to_what_its_weight_gives():
    off = blocks.shares({"one": 100, "two": 210, "three": 290}, {"one": 1, "two": 2, "three": 3})
    assert off == pytest.approx({"one": 0.0, "two": 0.05, "three": -1 / 30})
    assert blocks.shares({}, {"one": 1}) == {"one": -1.0}


def test_decisions_are_read_from_the_controller_s_log():
    line = (
        "INFO 2026-11-26 07:00:00,123 controller 71 -- m--a--v1: wants 3 replicas, before 1: 40/s come\n"
    ).strip()
    assert blocks.decision(line, "m--a--v1") == (3, 1, "40/s come")
    assert blocks.decision(line, "m--b--v1") is None
    assert blocks.decision("INFO controller 71 -- all is well", "m--a--v1") is None


@pytest.mark.parametrize(
    ("wanted", "turns"),
    [([1, 1, 1], 0), ([1, 2, 3], 0), ([1, 2, 2, 1], 1), ([1, 2, 1, 2, 2, 3, 1], 3), ([], 0)],
)
def test_a_reversal_is_a_turn_and_no_step_further(wanted, turns):
    assert blocks.reversals(wanted) == turns


def test_growth_is_from_what_is_settled_to_the_end():
    samples = [50, 70, 100, 101, 99, 500, 100, 100, 103, 102, 101]
    assert blocks.growth(samples, settled=2) == pytest.approx(0.02)
    assert blocks.growth(samples[:7], settled=2) is None


def test_a_leak_is_what_never_goes_back():
    assert blocks.more([9, 10, 14, 10, 12, 10, 11], settled=1) == 0
    assert blocks.more([9, 10, 10, 11, 12, 14, 14], settled=1) == 2
    assert blocks.more([1, 2], settled=1) is None


def test_of_processes_those_count_that_lived_all_the_time():
    samples = {1: [1.0, 2.0], 2: [1.0, 5.0], 3: [9.0]}
    titles = {1: "one", 2: "two", 3: "three"}
    assert blocks.most(samples, titles, lambda one: one[-1] - one[0]) == (4.0, "two")
    assert blocks.most(samples, titles, lambda one: None) is None
    assert blocks.most({}, {}, lambda one: 0.0) is None


def test_the_busiest_functions_are_those_in_which_samples_end():
    raw = (
        "main (a.py:1);read (b.py:2) 30\nmain (a.py:1) 10\nmain (a.py:1);write x (c.py:3);read (b.py:2) 60\n"
    )
    assert blocks.busiest(raw, 2) == [(0.9, "read (b.py:2)"), (0.1, "main (a.py:1)")]
    assert blocks.busiest("", 2) == []


def test_a_replica_less_is_waited_for(monkeypatch):
    modules = {"rig": ModuleType("rig"), "workloads": ModuleType("workloads")}
    monkeypatch.setattr(modules["rig"], "Rig", object, raising=False)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    row_failures = module_of("serving", "row_failures")
    monkeypatch.setattr(row_failures, "LOOK_S", 0.0)

    class Ours:
        asked = running = 2
        looks = 0

        def deploy(self, name: str, version: int, *, max_replicas: int, **service: Any) -> None:
            self.asked = max_replicas

        def replicas(self, name: str) -> list[int]:
            self.looks += 1
            self.running = self.running if self.looks % 3 else self.asked
            return [1] * self.running

    rig = SimpleNamespace(ours=Ours())
    for number, replicas in enumerate((1, 2, 1)):
        row_failures._scale_down(rig, [1], number)
        assert rig.ours.running == replicas
    monkeypatch.setattr(row_failures, "SETTLED_S", 0.0)
    rig.ours.replicas = lambda name: [1, 2, 3]
    with pytest.raises(shared("results").RowFailed, match=r"3 processes are replicas of .* it was to have 2"):
        row_failures._scale_down(rig, [1], 1)


# ---- aims and tables


def row(key: str, *values: float, **more) -> dict:
    return {**empty(), "repetitions": [{key: value} for value in values], "seconds": 1.0, **more}


def test_the_median_binds_or_the_worst():
    most = aims.Aim("a", "", "ms", 1.0)
    assert aims.judge(most, {"a": row("ms", 0.5, 0.9, 7.0)}).is_met is True
    assert aims.judge(most, {"a": row("ms", 0.5, 1.1, 7.0)}).is_met is False
    none = aims.Aim("a", "", "failed", 0, "", binds="worst")
    assert aims.judge(none, {"a": row("failed", 0, 0, 1)}).is_met is False
    least = aims.Aim("a", "", "ratio", 2.4, "x", at_least=True)
    assert aims.judge(least, {"a": row("ratio", 2.3, 2.5, 2.6)}).is_met is True


def test_a_row_that_was_not_measured_or_broke_off_meets_nothing():
    aim = aims.Aim("a", "", "ms", 1.0)
    assert aims.judge(aim, {"a": row("ms")}).is_met is None
    assert aims.judge(aim, {}).is_met is None
    assert aims.judge(aim, {"a": row("ms", 0.5, failure="it broke")}).is_met is False


def test_a_goal_may_be_the_row_s_own_and_a_line_may_need_something():
    own = aims.Aim("a", "", "p99_ms", "objective_ms")
    assert aims.judge(own, {"a": row("p99_ms", 90.0, facts={"objective_ms": 100})}).is_met is True
    needs = aims.Aim("a", "", "share", 0.9, "%", at_least=True, needs=("batch_ms", 5.0))
    quick = {**row("share"), "repetitions": [{"share": 0.95, "batch_ms": 3.0}]}
    found = aims.judge(needs, {"a": quick})
    assert found.is_met is None
    assert "batch_ms is 3.0, below 5" in found.remark
    slow = {**row("share"), "repetitions": [{"share": 0.95, "batch_ms": 8.0}]}
    assert aims.judge(needs, {"a": slow}).is_met is True


def test_every_aim_has_a_row_and_every_row_a_function():
    assert {aim.row for aim in aims.AIMS} <= set(rows.ROWS)
    assert {name for aim in aims.AIMS for name in aim.beside} <= set(rows.ROWS)
    for one in rows.ROWS.values():
        module, _, function = one.function.partition(":")
        tree = ast.parse((FOLDER / "serving" / f"{module}.py").read_text())
        [found] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
        names = [argument.arg for argument in found.args.args + found.args.kwonlyargs]
        assert names[:3] == ["tell", "reps", "rig"]
        assert set(one.arguments) == set(names[3:]) - ({"is_binary"} - set(one.arguments))


def test_the_table_says_what_is_not_there_and_why(report):
    aim = aims.Aim("overload", "goodput", "goodput", 0.95, "%", at_least=True)
    absent = row("goodput", not_available="POST /admin/keys with ['weight']: 400 unknown key 'terms'")
    said = report.table({"overload": absent}, [aim]).splitlines()[-1]
    assert "not available: POST /admin/keys with ['weight']: 400 unknown key 'terms'" in said
    assert "≥ 95.0%" in said
    broken = row("goodput", failure="no good answer in 5 s\nmore")
    assert "failed: no good answer in 5 s |" in report.table({"overload": broken}, [aim])


def test_peers_stand_beside_ours(report):
    aim = aims.Aim("tiny", "tiny", "ours_per_s", 10_000, "/s", at_least=True, beside=("peer_a",))
    peer = {
        **row("ours_per_s", 1000.0, 1200.0, 1100.0, facts={"title": "A", "protocol": "JSON of its own"}),
    }
    measured = {"tiny": row("ours_per_s", 12_000.0, 11_000.0), "peer_a": peer}
    assert "| yes | A 1,100/s |" in report.table(measured, [aim])
    assert "| A | JSON of its own | 1,100/s |" in report.peers_table(measured)
    assert report.peers_table({"tiny": measured["tiny"]}) is None


def test_what_disturbed_a_run_is_told(report):
    quiet = {"count": 2, "generator_cores": 0.1, "stolen": 0.02}
    measured = {
        "a": row("x", 1.0, blocks=quiet),
        "b": row("x", 1.0, blocks={**quiet, "generator_cores": 0.3}),
    }
    assert "up to 30% of a core, neighbours up to 2%" in report.disturbances({**measured, "c": row("x")})


def test_results_are_kept_whole_and_read_again(report, tmp_path):
    report.save({"tiny": row("ours_per_s", 12_000.0)}, {"started": 1.0}, tmp_path)
    assert report.read(tmp_path) == {"tiny": row("ours_per_s", 12_000.0)}
    assert (tmp_path / "serving.png").stat().st_size > 0
    assert not list(tmp_path.glob("*.part"))


# ---- requests and answers


def test_a_binary_request_says_where_its_numbers_begin():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    request = bodies.infer_binary(80, "m", values, {"Authorization": "Bearer k"})
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer k" in head
    lines = dict(line.split(": ") for line in head.decode().split("\r\n")[1:])
    size = int(lines["Inference-Header-Content-Length"])
    assert int(lines["Content-Length"]) == len(body)
    told = json.loads(body[:size])["inputs"][0]
    assert (told["shape"], told["parameters"]["binary_data_size"]) == ([2, 3], 24)
    assert body[size:] == values.tobytes()


def test_numbers_are_read_from_json_and_from_bytes():
    told = {"outputs": [{"name": "value", "data": [[1.5, 2.5]]}]}
    assert list(bodies.Answer(200, {}, json.dumps(told).encode()).values()) == [1.5, 2.5]
    sized = {"outputs": [{"name": "value", "parameters": {"binary_data_size": 8}}]}
    head, raw = json.dumps(sized).encode(), np.array([3, 4], np.float32).tobytes()
    answer = bodies.Answer(200, {"inference-header-content-length": str(len(head))}, head + raw)
    assert list(answer.values()) == [3, 4]
    with pytest.raises(ValueError, match="503"):
        bodies.Answer(503, {}, b'{"error": "busy"}').values()


# ---- the load generator


class Tiny:
    """An HTTP server of one thread that answers by the path, and counts."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.lengths: set[int] = set()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._is_up.wait(10)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        await self._over.wait()
        server.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._answer(reader, writer):
                await writer.drain()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        path = head.split()[1]
        if path == "/early":  # before the body has come
            writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
            return False
        length = int(head.partition("content-length: ")[2].split("\r\n")[0])
        self.lengths.add(len(await reader.readexactly(length)))
        self.counts[path] += 1
        match path:
            case "/ok":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            case "/busy":
                writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
            case "/close":
                writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                return False
            case "/until-the-end":
                writer.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")
                return False
            case "/cut":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nok")
                return False
            case "/slow":
                await asyncio.sleep(0.02)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            case "/events":
                await self._events(writer)
        return True

    async def _events(self, writer: asyncio.StreamWriter) -> None:
        """Five events and some other lines, in chunks and packets that are cut anywhere."""
        text = b": hello\n\n" + b'event: x\r\ndata: {"a": "data: no"}\r\n\r\n' * 4 + b"data: [DONE]\n\n"
        sent = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        for at in range(0, len(text), 7):
            piece = text[at : at + 7]
            sent += b"%X;x=1\r\n%b\r\n" % (len(piece), piece)
        sent += b"0\r\nx-trailer: y\r\n\r\n"
        for at in range(0, len(sent), 40):
            writer.write(sent[at : at + 40])
            await writer.drain()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("loadgen")
    try:
        load.program(found)
    except load.LoadError as error:
        if "no C compiler" in str(error):
            pytest.skip(str(error))
        raise
    return found


@pytest.fixture
def tiny():
    server = Tiny()
    yield server
    server.stop()


def seen(tiny: Tiny, folder: Path, path: str, connections: int = 4, body: bytes = b"{}", **more):
    request = bodies.written(folder, path.strip("/"), bodies.post(tiny.port, path, body))
    requests = load.Requests(request, connections, more.get("rate", 0.0), more.get("is_stream", False))
    seconds, found = more.get("seconds", 0.15), None
    # On a busy machine the window may be over before anything could begin.
    while found is None or found.latency_us.count + found.refused_us.count + found.broken < 3:
        tiny.counts.clear()
        found = load.run(tiny.port, [requests], seconds, warm_s=0, drain_s=30, folder=folder).only
        seconds *= 2
    return found


def test_in_a_closed_loop_every_answer_is_counted_once(tiny, folder):
    found = seen(tiny, folder, "/ok", body=b"x" * 300_000)
    assert found.done == found.ok == sum(found.statuses.values())
    # Those under way when the window ended are waited for: they have a time, and are not in the rate.
    assert 0 <= tiny.counts["/ok"] - found.ok <= 4
    assert tiny.lengths == {300_000}
    assert found.latency_us.count == found.due == tiny.counts["/ok"] > 0
    assert 0 < found.latency_us.p50 <= found.latency_us.p99 <= found.latency_us.max
    assert found.bad == ""


def test_refusals_have_times_of_their_own(tiny, folder):
    found = seen(tiny, folder, "/busy")
    assert found.ok == found.latency_us.count == 0
    assert found.refused_us.count == found.due > 0
    assert found.bad == (f"{found.done} x 503" if found.done else "")


@pytest.mark.parametrize("path", ["/close", "/until-the-end"])
def test_a_connection_that_ends_with_its_answer_is_dialled_anew(tiny, folder, path):
    found = seen(tiny, folder, path)
    assert found.latency_us.count == tiny.counts[path] > 0
    assert found.reconnects >= found.latency_us.count
    assert found.broken == 0


def test_an_answer_that_breaks_off_is_told_and_the_rest_goes_on(tiny, folder):
    found = seen(tiny, folder, "/cut")
    assert found.ok == 0
    assert found.broken == tiny.counts["/cut"] > 0
    assert found.bad == f"{found.broken} broken"


def test_an_answer_before_the_body_was_sent_is_an_answer(tiny, folder):
    found = seen(tiny, folder, "/early", body=b"x" * 3_000_000)
    assert found.refused_us.count + found.broken == found.due > 0
    assert found.ok == 0


def test_events_are_counted_wherever_they_are_cut(tiny, folder):
    found = seen(tiny, folder, "/events", connections=1, is_stream=True)
    assert found.first_us.count == found.latency_us.count == tiny.counts["/events"] > 0
    assert found.events >= 5 * found.ok
    assert found.events <= 5 * tiny.counts["/events"]
    assert found.first_us.p50 <= found.latency_us.p50


def test_an_open_loop_keeps_its_rate(tiny, folder):
    found = seen(tiny, folder, "/ok", rate=400, seconds=0.5)
    assert found.due == pytest.approx(400 * found.seconds, rel=0.35), "Poisson"
    assert found.latency_us.count + found.unsent == found.due
    assert found.latency_us.count == tiny.counts["/ok"]


def test_in_an_open_loop_a_request_s_time_counts_from_when_it_was_due(tiny, folder):
    found = seen(tiny, folder, "/slow", connections=1, rate=200, seconds=0.4)
    assert found.ok <= found.seconds / 0.02, "one connection, 20 ms each"
    assert found.latency_us.max > 40_000, "it had to wait for those before it"
    assert found.unsent > 20


def test_classes_are_told_apart(tiny, folder):
    files = [bodies.written(folder, name, bodies.post(tiny.port, f"/{name}", b"")) for name in ("ok", "busy")]
    requests = [load.Requests(file, 2) for file in files]
    good, bad = load.run(tiny.port, requests, 0.15, warm_s=0, drain_s=30, folder=folder).classes
    assert (good.latency_us.count, good.refused_us.count) == (tiny.counts["/ok"], 0)
    assert (bad.latency_us.count, bad.refused_us.count) == (0, tiny.counts["/busy"])


def test_what_is_no_http_is_said(folder, tmp_path):
    with pytest.raises(load.LoadError, match="No such file"):
        load.run(1, [load.Requests(tmp_path / "none", 1)], 0.1, folder=folder)
