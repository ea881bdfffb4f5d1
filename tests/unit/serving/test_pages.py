"""/docs, /openapi.json, /metrics; the lifespan; request ids and control headers."""

from __future__ import annotations

import asyncio
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from eagleray import metrics
from eagleray.serving.ingress.metrics import BUCKETS_S, IngressMetrics
from support.serving import Pretend, bearer

IRIS = {"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


def references(values: Any) -> list[str]:
    if isinstance(values, dict):
        found = [values["$ref"]] if "$ref" in values else []
        return found + [r for value in values.values() for r in references(value)]
    return [r for value in values for r in references(value)] if isinstance(values, list) else []


def test_openapi_has_every_route_and_resolves(ingress: Pretend) -> None:
    document = ingress.get("/openapi.json").json()
    operations = [o for path in document["paths"].values() for o in path.values()]
    assert len(operations) == len(ingress.app.table.routes)
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for reference in references(document):
        found = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
    deploy = document["paths"]["/admin/deploy"]["post"]
    assert deploy["security"] == [{"key": []}]
    assert "202" in deploy["responses"]
    predict = document["paths"]["/models/{model}:predict"]["post"]
    assert {"image/png", "audio/wav", "text/plain", "text/csv"} <= set(predict["requestBody"]["content"])
    assert [parameter["name"] for parameter in predict["parameters"]] == ["model"]


class Page(HTMLParser):
    """Links, texts and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_docs_are_whole_and_load_nothing(ingress: Pretend) -> None:
    for path in ("/docs", "/"):
        answer = ingress.get(path, headers={"host": "localhost:8000"})
        page = Page(answer.text)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert page.open == []
        assert page.tags.isdisjoint({"script", "link", "img", "iframe"})
        assert all(link.startswith("/") for link in page.links)
        assert {f"/models/{name}" for name in ingress.app.state.routes.models} <= set(page.links)
        assert "curl http://localhost:8000/v2/models/digits" in answer.text
        assert all(route.path in answer.text for route in ingress.app.table.routes)


def test_docs_name_no_model_to_others(ingress: Pretend) -> None:
    answer = ingress.get("/docs", headers={"host": "models.example:8000"})
    assert "curl http://models.example:8000/v2/models/digits" in answer.text, "an example, deployed or not"
    assert not any(name in answer.text for name in ("iris", "tones", "reviews"))


def test_a_host_that_is_none_is_not_repeated(ingress: Pretend) -> None:
    answer = ingress.get("/docs", headers={"host": "<script>alert(1)</script>"})
    assert "<script" not in answer.text


def test_the_counters_are_prometheus_and_the_tables(ingress: Pretend) -> None:
    body = json.dumps(IRIS).encode()
    assert ingress.post("/v2/models/iris/infer", content=body).status_code == 200
    ingress.post("/v2/models/iris/infer", content=b"{}")
    ingress.get("/whatever/strangers/try")
    answer = ingress.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    assert [row.name.removesuffix("_total") for row in metrics.INGRESS_TABLE] == list(families)
    for row in metrics.INGRESS_TABLE:
        found = families[row.name.removesuffix("_total")]
        assert (found.type, found.documentation) == (row.kind, row.meaning)
        for sample in found.samples:
            assert set(sample.labels) - {"le"} == set(row.labels)

    labels = {"route": "/v2/models/{model}/infer", "model": "iris", "version": "1"}

    def value(name: str, **more: str) -> float:
        base = name.removesuffix("_total").removesuffix("_bucket").removesuffix("_count")
        return next(
            s.value for s in families[base].samples if s.name == name and s.labels == {**labels, **more}
        )

    assert value("eagleray_ingress_requests_total", code="200") == 1
    assert value("eagleray_ingress_requests_total", code="400") == 1
    assert value("eagleray_ingress_received_bytes_total") == len(body) + 2
    assert value("eagleray_ingress_sent_bytes_total") > 100
    assert value("eagleray_ingress_seconds_bucket", le="+Inf") == 2
    assert value("eagleray_ingress_seconds_count") == 2
    assert families["eagleray_ingress_in_flight"].samples[0].value == 1, "this request itself"
    strangers = {"route": "(none)", "model": "", "version": "", "code": "404"}
    assert any(s.labels == strangers for s in families["eagleray_ingress_requests"].samples)


def test_buckets_begin_at_50_microseconds() -> None:
    assert BUCKETS_S[0] == 0.00005
    found = IngressMetrics()
    for seconds in (0.00004, 0.00005, 0.00006, 100):
        found.count(route="/r", model="", version="", code=200, seconds=seconds, received=0, sent=0)
    counts = re.findall(r'le="([^"]+)"} (\d+)', found.text())
    assert counts[:2] == [("5e-05", "2"), ("0.0001", "3")]
    assert counts[-2:] == [("60", "3"), ("+Inf", "4")]


def test_metrics_need_a_key_where_inference_does(ingress: Pretend) -> None:
    ingress.set(is_key_needed_for_infer=True)
    assert ingress.get("/metrics").status_code == 401
    assert ingress.get("/metrics", headers=bearer(ingress.infer_key)).status_code == 200


@pytest.mark.parametrize(
    ("given", "is_kept"), [("abc-1.2_3:4", True), ("x" * 129, False), ("a b", False), ("", False)]
)
def test_the_id_of_a_request(ingress: Pretend, given: str, is_kept: bool) -> None:
    for path in ("/v2", "/nothing", "/v1/nothing"):
        found = ingress.get(path, headers={"x-request-id": given}).headers.get_list("x-request-id")
        assert len(found) == 1
        assert (found[0] == given) == is_kept
        assert found[0]


def test_head_has_no_body(ingress: Pretend) -> None:
    answer = ingress.ask("HEAD", "/v2")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(ingress.get("/v2").content)


def test_lifespan_and_websockets(ingress: Pretend) -> None:
    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def run(scope: str, *messages: str) -> None:
        waiting = [{"type": message} for message in messages]

        async def receive() -> Any:
            return waiting.pop(0)

        await ingress.app({"type": scope}, receive, send)

    asyncio.run(run("lifespan", "lifespan.startup", "lifespan.shutdown"))
    asyncio.run(run("websocket", "websocket.connect"))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]
