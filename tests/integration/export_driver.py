"""A driver that emits every metric of the table, here and in a worker, and prints what Prometheus sees.

Run by test_metrics_export.py in a process of its own, so that pytest's own connection to Ray is left alone.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request

import ray
from prometheus_client.parser import text_string_to_metric_families

from eagleray import metrics
from eagleray.cluster.emitter import RayEmitter


def emit_all(emitter: RayEmitter, run: str) -> None:
    for row in metrics.TABLE:
        use = emitter.set if row.kind == "gauge" else emitter.add
        for value in (2.0, 3.0):
            use(row.name, value, dict.fromkeys(row.labels, run))


def scrape(address: str) -> list[list[object]]:
    """[name, kind, run, value] of each exported sample of ours."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=60) as answer:
        text = answer.read().decode()
    return [
        [sample.name, family.type, sample.labels["run"], sample.value]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "eagleray_" in sample.name
    ]


def main(temp_dir: str) -> None:
    ray.init(
        num_cpus=1,
        object_store_memory=80 << 20,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=temp_dir,
        _node_ip_address="127.0.0.1",
    )
    emitter = RayEmitter()
    emit_all(emitter, "driver")
    ray.get(ray.remote(num_cpus=1)(emit_all).remote(emitter, "worker"))
    (node,) = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 90
    samples: list[list[object]] = []
    while len(samples) < 2 * len(metrics.TABLE) and time.monotonic() < deadline:
        time.sleep(0.1)
        samples = scrape(address)
    print(json.dumps(samples))


if __name__ == "__main__":
    main(sys.argv[1])
