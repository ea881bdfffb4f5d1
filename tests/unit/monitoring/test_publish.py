from __future__ import annotations

import copy
import logging

import pytest

from eagleray.errors import InputError, ServiceError
from eagleray.monitoring import training_dashboard
from eagleray.workflows.dashboards import publish

UID = "eagleray-training"


def test_publishing_twice_changes_nothing(url, state, caplog):
    caplog.set_level(logging.DEBUG)
    first = publish(url, state.token)
    assert first.changes == ("made folder 'Eagleray'", "made dashboard 'Eagleray / Training'")
    assert first.url == f"{url}/d/{UID}/eagleray-training"
    held, num_writes = copy.deepcopy(state.dashboards), len(state.writes)
    second = publish(url, state.token)
    assert (second.url, second.changes) == (first.url, ())
    assert len(state.writes) == num_writes
    assert state.dashboards == held
    assert held[UID]["meta"]["folderUid"] in state.folders
    assert state.token not in caplog.text


def test_the_environment_gives_address_and_token(url, state, monkeypatch):
    monkeypatch.setenv("EAGLERAY_GRAFANA_URL", url)
    monkeypatch.setenv("EAGLERAY_GRAFANA_TOKEN", state.token + "\n")
    assert publish().changes


@pytest.mark.parametrize("missing", ["EAGLERAY_GRAFANA_URL", "EAGLERAY_GRAFANA_TOKEN"])
def test_what_is_missing_is_named(monkeypatch, missing):
    monkeypatch.setenv("EAGLERAY_GRAFANA_URL", "http://localhost:1")
    monkeypatch.setenv("EAGLERAY_GRAFANA_TOKEN", "t")
    monkeypatch.delenv(missing)
    with pytest.raises(InputError, match=f"set {missing}"):
        publish()


@pytest.mark.parametrize(
    "edit",
    [
        lambda model: model.update(title="Mine now"),
        lambda model: model["panels"].pop(),
        lambda model: model["panels"][0]["targets"][0].update(expr="up"),
        lambda model: model["panels"][2]["fieldConfig"]["overrides"].append(
            {"matcher": {}, "properties": []}
        ),
        lambda model: model.update(schemaVersion=27),
    ],
)
def test_an_edited_dashboard_is_overwritten(url, state, edit):
    publish(url, state.token)
    state.edit(UID, edit)
    assert publish(url, state.token).changes == (
        "overwrote (version 2 -> 3) dashboard 'Eagleray / Training'",
    )
    held = state.dashboards[UID]["dashboard"]
    assert {k: v for k, v in held.items() if k not in ("id", "version")} == training_dashboard()
    assert state.messages[-1].startswith("eagleray ")


def test_a_moved_dashboard_comes_back(url, state):
    publish(url, state.token)
    meta = state.dashboards[UID]["meta"]
    home, meta["folderUid"] = meta["folderUid"], "elsewhere"
    assert len(publish(url, state.token).changes) == 1
    assert state.dashboards[UID]["meta"]["folderUid"] == home


def test_another_folder_is_made_and_the_dashboard_goes_there(url, state):
    publish(url, state.token)
    assert publish(url, state.token, folder="Team").changes[0] == "made folder 'Team'"
    folder = state.folders[state.dashboards[UID]["meta"]["folderUid"]]
    assert folder["title"] == "Team"
    assert len(state.dashboards) == 1


def test_a_renamed_folder_is_still_ours(url, state):
    publish(url, state.token)
    next(iter(state.folders.values()))["title"] = "Renamed"
    assert publish(url, state.token).changes == ()


def test_defaults_that_grafana_fills_in_are_no_change(url, state):
    publish(url, state.token)
    model = state.dashboards[UID]["dashboard"]
    model.update(schemaVersion=43, fiscalYearStartMonth=0, links=[])
    model["panels"][0]["pluginVersion"] = "13.0.1"
    assert publish(url, state.token).changes == ()


def test_an_edit_while_publishing_is_not_lost(url, state):
    publish(url, state.token)
    state.edit(UID, lambda model: model.update(title="A"))
    state.before_save = lambda: state.edit(UID, lambda model: model.update(title="B"))
    with pytest.raises(ServiceError, match="412"):
        publish(url, state.token)
    assert state.dashboards[UID]["dashboard"]["title"] == "B"


def test_a_data_source_is_found_by_name(url, state):
    state.datasources["Prom"] = {"name": "Prom", "uid": "p1", "type": "prometheus"}
    publish(url, state.token, datasource="Prom")
    variable = state.dashboards[UID]["dashboard"]["templating"]["list"][0]
    assert variable["current"] == {"selected": True, "text": "Prom", "value": "p1"}
    assert publish(url, state.token, datasource="Prom").changes == ()


@pytest.mark.parametrize(("held", "listed"), [([], "none"), (["B", "A"], "A, B")])
def test_a_missing_data_source_lists_those_there_and_changes_nothing(url, state, held, listed):
    state.datasources = {name: {"name": name, "uid": name, "type": "prometheus"} for name in held}
    with pytest.raises(InputError, match=f"no data source 'Prom'; Prometheus data sources there: {listed};"):
        publish(url, state.token, datasource="Prom")
    assert state.writes == []


def test_a_missing_data_source_is_made_where_asked(url, state):
    made = publish(url, state.token, datasource="Prom", prometheus_url="http://127.0.0.1:9090").changes
    assert made[0] == "made data source 'Prom' (http://127.0.0.1:9090)"
    assert state.datasources["Prom"]["url"] == "http://127.0.0.1:9090"
    assert publish(url, state.token, datasource="Prom", prometheus_url="http://127.0.0.1:9090").changes == ()


def test_a_data_source_of_another_kind(url, state):
    state.datasources["Logs"] = {"name": "Logs", "uid": "l", "type": "loki"}
    with pytest.raises(InputError, match="'Logs' is a loki, not a prometheus"):
        publish(url, state.token, datasource="Logs")


def test_a_prometheus_address_without_a_name(url, state):
    with pytest.raises(InputError, match="needs the name"):
        publish(url, state.token, prometheus_url="http://127.0.0.1:9090")
