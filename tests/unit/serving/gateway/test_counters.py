"""/metrics of several gateways of one machine, told apart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from eagleray.serving.gateway import counters, numbers
from eagleray.serving.gateway.counters import Counters
from eagleray.serving.ingress.metrics import IngressMetrics


def counted(number: int) -> IngressMetrics:
    metrics = IngressMetrics()
    metrics.in_flight = number
    for _ in range(number):
        metrics.count(route="/a", model="m", version="1", code=200, seconds=0.001, received=10, sent=20)
    return metrics


def requests(page: str) -> dict[str, float]:
    return {
        sample.labels["gateway"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "eagleray_ingress_requests_total"
    }


def test_whoever_is_asked_tells_of_all_that_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "WRITE_S", 0.002)

    async def scenario() -> None:
        first, second = (Counters(tmp_path / "gateways", counted(number)) for number in (3, 5))
        assert (first.number, second.number) == (0, 1)
        assert requests(first.page()) == {"0": 3}, "one gateway writes nothing down"
        second.has_others = True
        writing = asyncio.create_task(second.keep_writing())
        async with asyncio.timeout(10):
            while requests(first.page()) != {"0": 3, "1": 5}:
                await asyncio.sleep(0.002)
        page = first.page()
        assert page.count("# TYPE eagleray_ingress_requests_total counter") == 1
        assert 'eagleray_ingress_in_flight{gateway="1"} 5' in page.splitlines()
        assert 'eagleray_ingress_seconds_count{gateway="1",route="/a",model="m",version="1"} 5' in page
        families = {family.name for family in text_string_to_metric_families(page)}
        assert families == {family.name for family in text_string_to_metric_families(counted(1).text())}
        taken = numbers.is_taken

        def left(*arguments: Any) -> bool:
            second._path.unlink(missing_ok=True)
            return taken(*arguments)

        monkeypatch.setattr(numbers, "is_taken", left)
        assert requests(first.page()) == {"0": 3}, "it leaves just now"
        monkeypatch.setattr(numbers, "is_taken", taken)
        writing.cancel()
        await asyncio.sleep(0.01)
        second.close()
        second._write(counted(5).text())  # as one that was killed leaves it
        assert requests(first.page()) == {"0": 3}
        third = Counters(tmp_path / "gateways", counted(1))
        assert third.number == 1, "a successor takes its number"
        third.close()
        first.close()

    asyncio.run(scenario())
