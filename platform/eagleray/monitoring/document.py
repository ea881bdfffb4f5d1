"""Prints docs/metrics.md: `python -m eagleray.monitoring.document > docs/metrics.md`."""

from __future__ import annotations

from eagleray import metrics
from eagleray.monitoring.dashboards import PREFIX

_HEAD = """\
# Metrics

Generated from `eagleray/metrics.py` by `python -m eagleray.monitoring.document > docs/metrics.md`: change
the table, not this page.

Every node of a cluster exports these beside Ray's own on its metrics port, under `/metrics`. Ray adds the
prefix `ray_` and labels of its own (`SessionName`, `NodeAddress`, `WorkerId`, …): aggregate them away with
`sum by (run)` for counters and `max by (run)` for gauges. A gauge disappears two report intervals (20 s by
default) after its process ended; a counter stays until its node ends.

| name in Prometheus | kind | unit | labels | meaning |
|---|---|---|---|---|
"""

_TAIL = """
## Prometheus

The head writes the addresses of all nodes to `prom_metrics_service_discovery.json` in its temp directory
(on `ray up` clusters `/tmp/ray`, renewed as nodes come and go), so Prometheus needs no list of nodes:

```yaml
scrape_configs:
  - job_name: ray
    scrape_interval: 10s
    file_sd_configs:
      - files: ["/tmp/ray/prom_metrics_service_discovery.json"]
```

## Grafana

`eagleray dashboards publish` puts "Eagleray / Training" into the Grafana at `EAGLERAY_GRAFANA_URL`, with the
service account token in `EAGLERAY_GRAFANA_TOKEN` (role Editor; Admin where a data source is named or made).
Publishing again changes nothing unless the dashboard changed, here or there; edits made in Grafana are
overwritten, and stay in the dashboard's version history.
"""


def document() -> str:
    """The page, as Markdown."""
    rows = (
        f"| `{PREFIX}{m.name}` | {m.kind} | {m.unit or '-'} | {', '.join(m.labels)} | {m.meaning} |\n"
        for m in metrics.TABLE
    )
    return _HEAD + "".join(rows) + _TAIL


if __name__ == "__main__":
    print(document(), end="")
