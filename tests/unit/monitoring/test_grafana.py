from __future__ import annotations

import socket

import pytest
import requests

from contracts.grafana_stand_in import GrafanaState, serving
from eagleray.errors import InputError, ServiceError
from eagleray.monitoring import Grafana

MODEL = {"uid": "u1", "title": "One", "schemaVersion": 42, "panels": []}


@pytest.fixture
def grafana(url: str, state: GrafanaState) -> Grafana:
    return Grafana(url, state.token, timeout_s=60)


def save(grafana: Grafana, version: int | None = None, **changes):
    return grafana.save_dashboard({**MODEL, **changes}, folder_uid="", version=version, message="why")


def test_a_dashboard_is_saved_read_and_searched(grafana, state, url):
    assert grafana.dashboard("u1") is None
    assert save(grafana)["version"] == 1
    assert save(grafana, 1, title="Two")["version"] == 2
    held = grafana.dashboard("u1")
    assert held is not None
    assert held["dashboard"]["title"] == "Two"
    assert state.messages == ["why", "why"]
    headers = {"Authorization": f"Bearer {state.token}"}
    with requests.get(f"{url}/api/search?query=tw", headers=headers, timeout=60) as found:
        assert [hit["uid"] for hit in found.json()] == ["u1"]


def test_a_folder_is_made_once(grafana):
    assert grafana.ensure_folder("Ours", "ours") == ("ours", True)
    assert grafana.ensure_folder("Ours", "ours") == ("ours", False)


def test_a_folder_of_that_title_is_taken(grafana, state):
    state.folders["theirs"] = {"uid": "theirs", "title": "Ours"}
    assert grafana.ensure_folder("Ours", "ours") == ("theirs", False)


@pytest.mark.parametrize("name", ["Prometheus", "a/b?c=d#e %2F", "größe"])
def test_a_data_source_is_found_by_any_name(grafana, name):
    assert grafana.datasource(name) is None
    uid = grafana.create_datasource(name, "http://127.0.0.1:9090")["uid"]
    found = grafana.datasource(name)
    assert found is not None
    assert (found["uid"], found["access"]) == (uid, "proxy")
    assert grafana.datasource_names("prometheus") == [name]
    assert grafana.datasource_names("loki") == []


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_no_path_can_carry_is_not_there(grafana, state, name):
    assert grafana.datasource(name) is None
    assert state.requests == []


@pytest.mark.parametrize("uid", ["", "a/b", "..", "a" * 41, "a b", "x?y"])
def test_a_uid_that_grafana_forbids_is_refused_before_any_request(grafana, state, uid):
    for use in (grafana.dashboard, lambda u: grafana.ensure_folder("T", u)):
        with pytest.raises(InputError, match="1 to 40"):
            use(uid)
    assert state.requests == []


def test_a_save_in_between_is_a_conflict(grafana, state):
    save(grafana)
    state.before_save = lambda: state.edit("u1", lambda model: model.update(title="Theirs"))
    with pytest.raises(
        ServiceError, match=r"412 \(The dashboard has been changed by someone else\); .*try again"
    ):
        save(grafana, 1)
    assert state.dashboards["u1"]["dashboard"]["title"] == "Theirs"


@pytest.mark.parametrize(
    ("status", "body", "match"),
    [
        (401, b'{"message": "Invalid API key"}', r"401 \(Invalid API key\); the token was not accepted"),
        (403, b'{"message": "Permission denied"}', r"403 \(Permission denied\); the token may not"),
        (403, b"<html>a proxy's message</html>", "403; the token may not"),
        (404, b"a message that is not JSON", "not Grafana's"),
        (404, b'{"detail": "Not Found"}', "not Grafana's"),
        (404, b"null", "not Grafana's"),
        (400, b'{"message": "Bad"}', r"400 \(Bad\)"),
        (500, b'{"message": "database is locked"}', r"500 \(database is locked\)"),
        (502, b"Bad gateway message", "502"),
        (502, b"", "502"),
        (200, b"", "not Grafana's"),
        (200, b"<html>Ray Dashboard</html>", "not Grafana's"),
        (200, b"[1, 2]", "not Grafana's"),
        (302, b"", "redirects elsewhere"),
        (400, b'{"message": "token glsa_secret\\n is bad"}', r"\(token \*\*\* is bad\)"),
    ],
)
def test_each_refusal_is_one_clear_line(grafana, state, url, status, body, match):
    state.raw["GET", "/api/dashboards/uid/u1"] = (status, body)
    with pytest.raises(ServiceError, match=match) as caught:
        grafana.dashboard("u1")
    text = str(caught.value)
    assert text.startswith(f"Grafana at {url}: ")
    assert "\n" not in text
    assert state.token not in text


def test_a_list_that_is_no_list(grafana, state):
    state.raw["GET", "/api/datasources"] = (200, b"{}")
    with pytest.raises(ServiceError, match="not Grafana's"):
        grafana.datasource_names("prometheus")


def test_a_wrong_token(url):
    with pytest.raises(ServiceError, match=r"401 \(Invalid API key\)"):
        Grafana(url, "wrong").dashboard("u1")


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused, and nobody else gets the port
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=r"cannot be reached \(Connection refused\)"):
            Grafana(f"http://127.0.0.1:{port}", "t").dashboard("u1")


def test_nobody_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServiceError, match="no answer in time"):
            Grafana(url, "t", timeout_s=0.2).dashboard("u1")


def test_tls_asked_of_a_plain_server(url):
    with pytest.raises(ServiceError, match="cannot be reached"):
        Grafana(url.replace("http:", "https:"), "t").dashboard("u1")


def test_a_path_prefix(state):
    state.prefix = "/tools/grafana"
    with serving(state) as url:
        assert Grafana(url + "/", state.token).dashboard("u1") is None
        with pytest.raises(ServiceError, match="path prefix"):
            Grafana(url.removesuffix("/tools/grafana"), state.token).dashboard("u1")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:3000",
        "ftp://h",
        "http://",
        "http://u:pw@h",
        "http://h?x=1",
        "http://h:port",
        "http://[::1",
    ],
)
def test_an_address_that_cannot_be_right(url):
    with pytest.raises(InputError, match="Grafana address") as caught:
        Grafana(url, "t")
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "é"])
def test_a_token_that_cannot_be_right_is_not_shown(token):
    with pytest.raises(InputError, match="Grafana token: it is empty or holds"):
        Grafana("http://localhost:1", token)
