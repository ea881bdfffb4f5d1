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

_INGRESS = """
## The ingress

The ingress answers these itself under `/metrics` on its own port, without a prefix (with an API key where
inference needs one). `route` is the pattern of the path; `model` and `version` are empty where a request
reached no deployed model. Histograms have buckets from 50 µs to 60 s. `part` is as in `Server-Timing`
([serving.md](serving.md)). Every sample has the
label `gateway` too: a small number that tells the gateways of one machine apart, of which any answers for
all; what the others counted is a second old at most.

| name in Prometheus | kind | unit | labels | meaning |
|---|---|---|---|---|
"""

_TAIL = """
## Prometheus

The head keeps the addresses of all nodes, renewed every 5 s as they come and go, so Prometheus needs no list
of nodes. On the head's machine it reads them from a file:

```yaml
scrape_configs:
  - job_name: ray
    scrape_interval: 10s
    file_sd_configs:
      - files: ["/tmp/ray/prom_metrics_service_discovery.json"]
```

For a cluster of `eagleray up` the file lies in `<runtime_dir>/h/`, with `runtime_dir` from
`~/.eagleray/clusters/<name>/state.json`. From elsewhere Prometheus asks the Ray dashboard, with the cluster's
token:

```yaml
    http_sd_configs:
      - url: http://HEAD:8265/api/prometheus/sd
        authorization: {credentials_file: /path/to/token}
```

The metrics ports themselves ask for no token: on a node whose address is loopback they listen there only, on
any other on all interfaces, so let a firewall admit nobody but Prometheus.

## Grafana

`eagleray dashboards publish` puts "Eagleray / Training" into the Grafana at `EAGLERAY_GRAFANA_URL`, with the
service account token in `EAGLERAY_GRAFANA_TOKEN` (role Editor; Admin where a data source is named or made).
Publishing again changes nothing unless the dashboard changed, here or there; edits made in Grafana are
overwritten, and stay in the dashboard's version history.
"""


def document() -> str:
    """The page, as Markdown."""
    through_ray = "".join(_row(PREFIX, metric) for metric in metrics.TABLE)
    ingress = "".join(_row("", metric) for metric in metrics.INGRESS_TABLE)
    return _HEAD + through_ray + _INGRESS + ingress + _TAIL


def _row(prefix: str, metric: metrics.Metric) -> str:
    labels = ", ".join(metric.labels) or "-"
    return (
        f"| `{prefix}{metric.name}` | {metric.kind} | {metric.unit or '-'} | {labels} | {metric.meaning} |\n"
    )


if __name__ == "__main__":
    print(document(), end="")
