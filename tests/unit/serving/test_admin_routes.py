"""The admin API: what it asks of the control plane, and what it answers."""

from __future__ import annotations

from typing import Any

import pytest

from support.serving import Pretend, bearer, run


@pytest.fixture
def ask(ingress: Pretend) -> Any:
    def ask(method: str, path: str, values: Any = None) -> Any:
        body = {} if values is None else {"json": values}
        answer = ingress.ask(method, path, headers=bearer(ingress.admin_key), **body)
        assert answer.is_success, answer.text
        return answer.status_code, answer.json()

    return ask


def test_status_models_and_promotion(ingress: Pretend, ask: Any) -> None:
    assert ask("GET", "/admin/status")[1]["cluster"] == "pretend"
    assert ask("GET", "/admin/models")[1]["models"][0] == {"name": "digits", "versions": [1], "aliases": {}}
    assert [v["version"] for v in ask("GET", "/admin/models/digits")[1]["versions"]] == [1, 2]
    found = ask("POST", "/admin/models/digits/promote", {"version": 2, "alias": "candidate"})
    assert found == (200, {"name": "digits", "version": 2, "alias": "candidate"})
    assert ingress.admin.promoted == [("digits", 2, "candidate")]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", [0, 1, 2]),
        ("?limit=2", [0, 1]),
        ("?name=digits&limit=1", [0]),
        ("?name=nope", []),
        ("?name=", []),
    ],
)
def test_runs(ask: Any, query: str, numbers: list[int]) -> None:
    assert ask("GET", f"/admin/runs{query}") == (200, {"runs": list(map(run, numbers))})


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=0", "limit: expected a whole number from 1 to 1000"),
        ("limit=x", "limit: expected"),
        ("limit=1001", "limit: expected"),
        ("sort=name", "the query: unknown key 'sort'; known: name, limit"),
    ],
)
def test_a_question_about_runs_that_is_none(ingress: Pretend, query: str, message: str) -> None:
    answer = ingress.get(f"/admin/runs?{query}", headers=bearer(ingress.admin_key))
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text


def test_runs_are_for_admin_keys(ingress: Pretend) -> None:
    assert ingress.get("/admin/runs").status_code == 401
    assert ingress.get("/admin/runs", headers=bearer(ingress.infer_key)).status_code == 403


def test_claims(ingress: Pretend, ask: Any) -> None:
    assert ask("GET", "/admin/claims") == (200, ingress.admin.held)


def test_deploy_and_undeploy(ingress: Pretend, ask: Any) -> None:
    assert ask("POST", "/admin/undeploy", {"name": "iris"}) == (200, {"name": "iris", "versions": [1]})
    assert ingress.get("/v2/models/iris").status_code == 404
    spec = {"kind": "service", "name": "iris", "max_replicas": 3}
    assert ask("POST", "/admin/deploy", spec)[0] == 202
    assert ingress.admin.deployed == [spec]
    assert ingress.get("/v2/models/iris").status_code == 200
    assert len(ask("GET", "/admin/services")[1]["services"]) == 6
    assert [s["version"] for s in ask("GET", "/admin/services/digits")[1]["services"]] == [2, 3]


def test_a_service_that_is_not_there(ingress: Pretend) -> None:
    for path in ("/admin/services/nothing", "/admin/models/nothing"):
        answer = ingress.get(path, headers=bearer(ingress.admin_key))
        assert (answer.status_code, "nothing" in answer.json()["error"]) == (404, True)


def test_a_key_is_made_used_and_revoked(ingress: Pretend, ask: Any) -> None:
    code, made = ask("POST", "/admin/keys", {"name": "ci", "scopes": ["infer", "admin"]})
    assert (code, made["name"], made["scopes"]) == (201, "ci", ["infer", "admin"])
    listed = ask("GET", "/admin/keys")[1]["keys"]
    assert [key["name"] for key in listed] == ["admin", "infer", "ci"]
    assert "key" not in listed[-1]
    assert ingress.get("/admin/status", headers=bearer(made["key"])).status_code == 200
    assert ask("DELETE", f"/admin/keys/{made['id']}") == (200, {"id": made["id"]})
    assert ingress.get("/admin/status", headers=bearer(made["key"])).status_code == 401


def test_a_new_key_is_for_inference_unless_more_is_asked(ask: Any) -> None:
    assert ask("POST", "/admin/keys", {"name": "app"})[1]["scopes"] == ["infer"]


def test_a_key_with_terms_is_rotated(ingress: Pretend, ask: Any) -> None:
    terms = {"models": ["iris"], "requests_per_s": 10, "weight": 2}
    made = ask("POST", "/admin/keys", {"name": "app", "terms": terms})[1]
    assert made["terms"] == terms
    code, rotated = ask("POST", f"/admin/keys/{made['id']}/rotate", {"overlap_s": 60})
    assert (code, rotated["id"], rotated["terms"]) == (200, made["id"], terms)
    assert rotated["old_text_until"] > made["created_at"]
    listed = ask("GET", "/admin/keys")[1]["keys"][-1]
    assert (listed["terms"], "key" in listed) == (terms, False)
    ingress.set(is_key_needed_for_infer=True)
    assert [ingress.get("/models", headers=bearer(key["key"])).status_code for key in (made, rotated)] == [
        200
    ] * 2
    last = ask("POST", f"/admin/keys/{made['id']}/rotate", {"overlap_s": 0})[1]
    found = [ingress.get("/models", headers=bearer(key["key"])).status_code for key in (made, rotated, last)]
    assert found == [401, 401, 200]


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        ("/admin/keys", {"name": "a", "terms": {"rate": 1}}, "terms: unknown key 'rate'"),
        ("/admin/keys", {"name": "a", "terms": 7}, "terms: expected an object"),
        (
            "/admin/keys",
            {"name": "a", "terms": {"weight": 0}},
            "weight: expected a whole number from 1 to 100",
        ),
        ("/admin/keys", {"name": "a", "terms": {"expires_at": 1.0}}, "expires_at is 1970-01-01 00:00:01 UTC"),
        ("/admin/keys/none/rotate", {}, "no key has the id 'none'"),
        ("/admin/keys/none/rotate", {"overlap_s": "1h"}, "overlap_s: expected seconds"),
        ("/admin/keys/none/rotate", {"overlap": 1}, "the body: unknown key 'overlap'"),
    ],
)
def test_terms_that_are_none(ingress: Pretend, path: str, values: Any, message: str) -> None:
    answer = ingress.post(path, values, headers=bearer(ingress.admin_key))
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text
