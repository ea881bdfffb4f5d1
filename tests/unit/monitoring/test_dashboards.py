from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

import contracts
from eagleray import metrics
from eagleray.monitoring import dashboards, training_dashboard
from eagleray.monitoring.document import document

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "tests/contracts/grafana-dashboard.schema.json"
UNCOMPRESSED = "ray_eagleray_train_uncompressed_bytes_total"
NAME = re.compile(r"ray_(\w+)")
ONE_RUN = '{run=~"$run"}'


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("datasource", [None, ("Prometheus", "abc")])
def test_no_error_against_grafanas_schema(validator, datasource):
    errors = [
        f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(training_dashboard(datasource))
    ]
    assert errors == []


def test_the_schema_finds_what_grafana_would_not_take(validator):
    broken = training_dashboard()
    broken["refresh"] = False
    broken["panels"][0]["yaxes"] = []
    assert len(list(validator.iter_errors(broken))) >= 2


def test_every_queried_metric_is_in_the_table_with_its_own_kind():
    for panel in training_dashboard()["panels"]:
        for target in panel["targets"]:
            names = NAME.findall(target["expr"])
            assert names, panel["title"]
            for name in names:
                is_rate = re.search(rf"(rate|max_over_time)\(ray_{name}\b", target["expr"]) is not None
                assert is_rate == (metrics.BY_NAME[name].kind == "counter"), target["expr"]


def test_every_metric_of_training_has_a_panel_or_is_a_rate_of_one():
    queried = set(NAME.findall(json.dumps([p["targets"] for p in training_dashboard()["panels"]])))
    training = {metric.name for metric in metrics.TABLE}
    # samples_per_second says what this counter's rate would.
    assert training - queried == {"eagleray_train_samples_total"}


def test_panels_are_of_today_described_and_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    panels = training_dashboard()["panels"]
    assert [p["id"] for p in panels] == list(range(1, len(panels) + 1))
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["description"]
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.parametrize(
    ("title", "unit", "expressions"),
    [
        ("Step time", "s", ['max by (run) (ray_eagleray_train_step_seconds{run=~"$run"})']),
        (
            "Gradient bytes per second",
            "Bps",
            [
                f"sum by (run) (rate(ray_eagleray_train_sent_bytes_total{ONE_RUN}[$__rate_interval]))",
                f"sum by (run) (rate(ray_eagleray_train_payload_bytes_total{ONE_RUN}[$__rate_interval]))",
                f"sum by (run) (rate({UNCOMPRESSED}{ONE_RUN}[$__rate_interval]))",
            ],
        ),
        (
            "Loss",
            "short",
            [
                'max by (run) (ray_eagleray_train_loss{run=~"$run"})',
                'max by (run) (ray_eagleray_train_validation_loss{run=~"$run"})',
            ],
        ),
        (
            "Validation accuracy",
            "percentunit",
            [f"max by (run) (ray_eagleray_train_validation_accuracy{ONE_RUN})"],
        ),
        ("Goodput", "percentunit", [f"max by (run) (ray_eagleray_goodput_ratio{ONE_RUN})"]),
        ("Lost time", "s", [f"max by (run, cause) (ray_eagleray_lost_seconds{ONE_RUN})"]),
    ],
)
def test_panel(title, unit, expressions):
    panel = next(p for p in training_dashboard()["panels"] if p["title"] == title)
    assert panel["fieldConfig"]["defaults"]["unit"] == unit
    assert [target["expr"] for target in panel["targets"]] == expressions


def test_variables():
    source, run = training_dashboard(("Mine", "u1"))["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert source["current"] == {"selected": True, "text": "Mine", "value": "u1"}
    assert run["query"] == "label_values(ray_eagleray_train_steps_total, run)"
    assert run["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("make", [dashboards.rate, dashboards.total])
def test_a_gauge_has_no_rate(make):
    with pytest.raises(AssertionError, match="is a gauge"):
        make("eagleray_train_loss")


def test_a_metric_outside_the_table_is_our_bug():
    with pytest.raises(KeyError):
        dashboards.gauge("eagleray_train_joy")


def test_docs_metrics_is_up_to_date():
    assert (ROOT / "docs/metrics.md").read_text() == document(), (
        "python -m eagleray.monitoring.document > docs/metrics.md"
    )


def test_the_contracts_readme_names_source_and_licence():
    text = (Path(contracts.__path__[0]) / "README.md").read_text()
    assert "grafana/grafana-foundation-sdk" in text
    assert "Apache-2.0" in text
