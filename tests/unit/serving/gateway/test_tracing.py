"""Traces that requests belong to, and where their time went, as headers and in the access log."""

from __future__ import annotations

import json
import re
import socket
import time
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from eagleray.serving.gateway import access_log
from eagleray.serving.gateway.access_log import AccessLog
from eagleray.serving.gateway.tracing import Trace, Watch
from eagleray.serving.link.frames import Timings
from support.serving import Pretend, bearer, pretend, serving

INPUTS = {"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"
FORM = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@pytest.mark.parametrize("given", [GIVEN, f" {GIVEN} ", f"cc-{TRACE}-{SPAN}-01-what-the-future-adds"])
def test_a_trace_goes_on(given: str) -> None:
    found = Trace.of(given)
    assert (found.trace_id, found.parent_id, found.flags) == (TRACE, SPAN, "01")
    assert found.span_id != SPAN
    assert FORM.fullmatch(found.traceparent)


@pytest.mark.parametrize(
    "given",
    [
        *(None, "", "00", GIVEN.upper(), GIVEN[:-1], f"{GIVEN}-more", f"ff-{TRACE}-{SPAN}-01"),
        *(f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{SPAN}-0g", "x" * 10_000),
    ],
)
def test_what_is_no_trace_begins_a_new_one(given: str | None) -> None:
    found, other = Trace.of(given), Trace.of(given)
    assert found.trace_id not in (TRACE, other.trace_id)
    assert (found.parent_id, found.flags) == ("", "00")
    assert FORM.fullmatch(found.traceparent)


def test_the_parts_of_a_requests_time_are_all_of_it() -> None:
    began = time.perf_counter()
    watch = Watch()
    for name in ("admission", "decode", "replica", "replica"):
        time.sleep(0.002)
        watch.mark(name)
    timing = watch.headers()["server-timing"]
    took_ms = 1e3 * (time.perf_counter() - began)
    parts = dict(re.findall(r"(\w+);dur=([\d.]+)", timing))
    assert list(parts) == ["admission", "decode", "replica", "encode"]
    assert float(parts["replica"]) >= 4 > float(parts["encode"])
    assert sum(map(float, parts.values())) <= took_ms


def test_a_replicas_own_parts_and_the_way_to_it() -> None:
    watch = Watch()
    watch.mark("decode")
    time.sleep(0.003)
    watch.mark_replica(Timings(200, 300, 1_000_000, 50, 8))
    spans_s = watch.spans_s
    assert list(spans_s) == ["decode", "link", "queue", "batch", "infer", "encode"]
    assert (spans_s["queue"], spans_s["batch"]) == pytest.approx((0.0002, 0.0003))
    assert (spans_s["link"], spans_s["infer"]) == pytest.approx((0, 1)), "by its own clock"
    watch = Watch()
    time.sleep(0.003)
    watch.mark_replica(Timings(200, 300, 400, 50))
    assert 0.002 < watch.spans_s["link"] < 1
    assert watch.spans_s["encode"] == pytest.approx(0.00005)
    watch.headers()
    assert watch.spans_s["encode"] > 0.00005, "the gateway's part is in it"


def test_over_links_an_answer_says_what_its_replica_did() -> None:
    linked = pretend(over_links=True)
    assert linked.links is not None
    try:
        for path, body in (
            ("/models/iris:predict", {"inputs": [1, 2, 3, 4]}),
            ("/v2/models/iris/infer", INPUTS),
        ):
            answer = linked.post(path, body)
            parts = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
            assert list(parts) == ["admission", "decode", "link", "queue", "batch", "infer", "encode"]
            assert [parts[name] for name in ("queue", "batch", "infer")] == ["0.001", "0.002", "0.003"]
            assert float(parts["encode"]) >= 0.004
        text = linked.metrics.text()
    finally:
        linked.links.close()
    assert text.count('part_seconds_count{model="iris",version="1",part="queue"} 2\n') == 1
    assert 'part_seconds_sum{model="iris",version="1",part="infer"} 0.000006\n' in text
    assert 'part_seconds_bucket{model="iris",version="1",part="infer",le="5e-05"} 2\n' in text


def test_an_answer_says_where_it_belongs_and_what_took_its_time(ingress: Pretend) -> None:
    ingress.transport.pause_s = 0.01
    answer = ingress.post("/models/iris:predict", {"inputs": [1, 2, 3, 4]}, headers={"traceparent": GIVEN})
    assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert SPAN not in answer.headers["traceparent"]
    parts = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
    assert list(parts) == ["admission", "decode", "replica", "encode"]
    assert float(parts["replica"]) >= 9
    for path, status in (("/v2", 200), ("/nothing", 404), ("/admin/status", 401)):
        answer = ingress.get(path)
        assert answer.status_code == status
        assert FORM.fullmatch(answer.headers["traceparent"])
        assert "answer;dur=" in answer.headers["server-timing"]


def test_a_stream_says_when_its_first_piece_came(ingress: Pretend) -> None:
    body = {"model": "gpt", "prompt": "ab", "max_tokens": 3, "stream": True}
    answer = ingress.post("/v1/completions", body, headers={"traceparent": GIVEN})
    assert "replica;dur=" in answer.headers["server-timing"]
    assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")


def line(values: dict) -> bytes:
    return json.dumps(values).encode() + b"\n"


def read(log: AccessLog) -> list[dict]:
    log.close()
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def test_a_line_for_each_answer_without_what_is_secret(ingress: Pretend, tmp_path: Path) -> None:
    log = ingress.app.access_log = AccessLog(tmp_path / "access", 2**20)
    ingress.post(
        "/v2/models/iris@nobody/infer?key=secret",
        {"inputs": []},
        headers={"x-request-id": "mine", "traceparent": GIVEN, **bearer(ingress.infer_key)},
    )
    ingress.post("/models/iris:predict", {"inputs": [1, 2, 3, 4]})
    ingress.get("/" + "%0a%22" * 500)
    first, second, third = read(log)
    assert first["time"].startswith("20")
    wanted = {
        "request_id": "mine", "trace_id": TRACE, "client": "127.0.0.1", "method": "POST", "status": 404,
        "path": "/v2/models/iris@nobody/infer", "route": "/v2/models/{model}/infer",
        "model": "", "version": None,
    }  # fmt: skip
    assert wanted.items() <= first.items()
    assert (second["model"], second["version"], second["status"]) == ("iris", 1, 200)
    assert second["received_bytes"] > 10
    assert second["sent_bytes"] > 10
    assert list(second["ms"]) == ["admission", "decode", "replica", "encode"]
    assert sum(second["ms"].values()) <= 1e3 * second["seconds"] + 0.1
    assert (third["route"], len(third["path"])) == ("(none)", 512)
    assert "secret" not in log.path.read_text()
    assert ingress.infer_key not in log.path.read_text()


def test_a_line_is_json_whatever_is_in_it() -> None:
    of = {
        "request_id": "a", "trace_id": TRACE, "client": 'b"%s', "method": "POST",
        "path": '/%d/"{}\u00fc\n', "route": "(%)", "model": "100%", "version": 3, "status": 200,
    }  # fmt: skip
    spans_s = {"admission": 1e-5, "infer": 1.25}
    found = json.loads(access_log.exchange(**of, seconds=2, received=3, sent=4, spans_s=spans_s))
    assert datetime.fromisoformat(found.pop("time")).timestamp() == pytest.approx(time.time(), abs=60)
    told = {"seconds": 2.0, "received_bytes": 3, "sent_bytes": 4, "ms": {"admission": 0.01, "infer": 1250.0}}
    assert found == {**of, **told}


def test_what_is_no_request_has_a_line_too(ingress: Pretend, tmp_path: Path) -> None:
    log = ingress.app.access_log = AccessLog(tmp_path, 2**20)
    with serving(ingress):
        found = urlsplit(ingress.url)
        with socket.create_connection((found.hostname or "", found.port or 0), timeout=60) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
    [line] = read(log)
    assert line.pop("time").startswith("20")
    assert line == {"client": "127.0.0.1", "route": "(none)", "status": 400}


def test_its_files_have_an_end_and_are_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "access"
    log = AccessLog(folder, 40_000)
    for number in range(2000):
        log.write(line({"number": number, "path": "x" * 50}))
    lines = read(log)
    assert lines[-1]["number"] == 1999, "the newest are kept"
    files = sorted(folder.glob("*.jsonl"))
    assert len(files) == 4
    assert sum(file.stat().st_size for file in files) <= 40_000
    kept = sorted(json.loads(line)["number"] for file in files for line in file.read_text().splitlines())
    assert kept == list(range(kept[0], 2000)), "nothing between them is lost"
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_line_that_is_longer_than_a_file(tmp_path: Path) -> None:
    log = AccessLog(tmp_path, 400)
    for number in range(6):
        log.write(line({"number": number, "path": "x" * 200}))
    assert [line["number"] for line in read(log)] == [5]


def test_two_gateways_have_files_of_their_own_and_the_next_one_goes_on(tmp_path: Path) -> None:
    one, two = AccessLog(tmp_path, 10_000), AccessLog(tmp_path, 10_000)
    assert one.path != two.path
    one.write(line({"number": 1}))
    one.close()
    three = AccessLog(tmp_path, 10_000)
    assert three.path == one.path
    three.write(line({"number": 2}))
    assert [line["number"] for line in read(three)] == [1, 2]
    two.close()


def test_a_disk_that_takes_nothing_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog(tmp_path, 10_000)
    log.path.mkdir()
    log.write(line({"number": 1}))
    deadline = time.monotonic() + 60
    while "cannot be written: Is a directory" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    log.path.rmdir()
    log.write(line({"number": 2}))
    assert [line["number"] for line in read(log)] == [2]


def test_what_a_slow_disk_cannot_take_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("eagleray.serving.gateway.access_log._FLUSH_S", 3600)
    monkeypatch.setattr("eagleray.serving.gateway.access_log._MOST_WAITING", 3)
    log = AccessLog(tmp_path, 10_000)
    for number in range(5):
        log.write(line({"number": number}))
    assert [line["number"] for line in read(log)] == [0, 1, 2]
    assert "2 lines of the access log were dropped" in caplog.text
