"""Where models need no key, a page of another site that a browser of this machine shows gets none of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.ingress.door import leads_here
from eagleray.serving.keys import KeyRing
from support.serving import Pretend, bearer, pretend, serving

INFER = "/v2/models/iris/infer"
IRIS = {"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
REBOUND = {"host": "evil.example:8000"}
CROSS_SITE = {"origin": "https://evil.example", "content-type": "text/plain"}


@pytest.mark.parametrize(
    "authority",
    ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:80", "127.8.9.10:1", "[::1]", "[::1]:8000",
     "[0:0:0:0:0:0:0:1]:8000", "localhost:"],
)  # fmt: skip
def test_what_leads_to_this_machine_alone(authority: str) -> None:
    assert leads_here(authority)


@pytest.mark.parametrize(
    "authority",
    ["", "evil.example", "127.evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1",
     "0.0.0.0", "::1", "[::2]:80", "[::]", "127.0.0.1:80:80", "localhost:80a", "user@localhost", "localhost/",
     "127.0.0.256", "127.1", "1270.0.0.1", "[localhost]", "[127.0.0.1]", "localhost.", "localhost localhost",
     "\xb2localhost", ":80"],
)  # fmt: skip
def test_what_may_lead_elsewhere(authority: str) -> None:
    assert not leads_here(authority)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models"), ("GET", "/v1/models"), ("GET", "/v2/models/iris"), ("GET", "/metrics"),
        ("POST", INFER), ("POST", "/models/iris:predict"), ("POST", "/v1/completions"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("headers", "status", "named"),
    [
        (REBOUND, 421, "'evil.example:8000'"),
        ({"host": ""}, 421, "''"),
        (CROSS_SITE, 403, "'https://evil.example'"),
        ({"origin": "null"}, 403, "'null'"),
        ({**REBOUND, "authorization": "Bearer sk-of-another"}, 421, "'evil.example:8000'"),
    ],
)
def test_without_a_key_no_other_site_gets_in(
    ingress: Pretend, method: str, path: str, headers: dict[str, str], status: int, named: str
) -> None:
    answer = ingress.ask(method, path, json=IRIS, headers=headers)
    error = answer.json()["error"]
    message = error["message"] if isinstance(error, dict) else error
    assert answer.status_code == status
    assert named in message
    assert "send an API key" in message
    assert "require_key = true" in message
    assert ingress.transport.asked == [], "no replica was troubled"
    assert ingress.transport.requests == []
    assert ingress.post(INFER, IRIS).status_code == 200


@pytest.mark.parametrize("headers", [REBOUND, CROSS_SITE, {**REBOUND, **CROSS_SITE}])
def test_with_a_key_whatever_the_host_as_behind_a_proxy(ingress: Pretend, headers: dict[str, str]) -> None:
    def ask(key: str) -> Any:
        return ingress.post(INFER, IRIS, headers={**headers, **bearer(key)})

    assert ask(ingress.infer_key).status_code == 200
    assert ask(ingress.admin_key).status_code == 403
    wrong = ask(ingress.infer_key[:-1] + ("0" if ingress.infer_key[-1] != "0" else "1"))
    assert (wrong.status_code, "wrong or was revoked" in wrong.text) == (401, True)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:8000"},
        {"host": "[::1]:8000", "origin": "http://localhost:3000"},
        {"origin": "http://127.0.0.1"},
    ],
)
def test_this_machine_itself_needs_none(ingress: Pretend, headers: dict[str, str]) -> None:
    assert ingress.post(INFER, IRIS, headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"])
def test_what_is_open_to_all_stays_open(ingress: Pretend, path: str) -> None:
    assert ingress.get(path, headers=REBOUND).status_code == 200


def test_where_a_key_is_needed_the_host_is_not_looked_at(ingress: Pretend) -> None:
    ingress.set(is_key_needed_for_infer=True)
    assert ingress.post(INFER, IRIS, headers=REBOUND).status_code == 401
    assert ingress.post(INFER, IRIS, headers={**REBOUND, **bearer(ingress.infer_key)}).status_code == 200


@pytest.fixture(scope="module")
def server() -> Iterator[Pretend]:
    with serving(pretend()) as ingress:
        yield ingress


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["GET /models HTTP/1.0"], 200),
        (["GET /models HTTP/1.0", "host: evil.example"], 421),
        (["GET /models HTTP/1.1", "host: evil.example"], 421),
        (["GET /models HTTP/1.1", "Host: LOCALHOST:1"], 200),
        (["GET /models HTTP/1.1", "Host: localhost.evil.example"], 421),
        (["GET http://127.0.0.1/models HTTP/1.1", "Host: evil.example"], 400),
    ],
)
def test_over_a_socket(server: Pretend, lines: list[str], status: int) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port or 0), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert int(connection.recv(65536).split()[1]) == status


@pytest.mark.parametrize("is_key_needed", [False, True])
def test_a_key_is_for_its_models_alone(ingress: Pretend, is_key_needed: bool) -> None:
    ring, _, key = ingress.app.state.keys.create("some", ["infer"], KeyTerms(models=("iris", "dig*")))
    ingress.set(keys=ring, is_key_needed_for_infer=is_key_needed)
    headers = bearer(key)
    assert ingress.post(INFER, IRIS, headers=headers).status_code == 200
    assert ingress.get("/v2/models/digits@candidate", headers=headers).status_code == 200
    said = "the API key 'some' is for iris, dig*, not for the model"
    prompt = {"model": "gpt", "prompt": "a"}
    for method, path, values in (
        ("POST", "/v2/models/tones/infer", IRIS), ("GET", "/v2/models/tones/ready", None),
        ("POST", "/models/gpt:predict", {"inputs": "a"}), ("GET", "/v1/models/gpt", None),
        ("POST", "/v1/completions", prompt), ("POST", "/v1/chat/completions", {"model": "gpt", "messages": [
            {"role": "user", "content": "a"}]}),
    ):  # fmt: skip
        answer = ingress.ask(method, path, json=values, headers=headers)
        assert (answer.status_code, said in answer.text) == (403, True), answer.text
    assert [target.name for target, _ in ingress.transport.asked] == ["iris"]
    assert ingress.transport.requests == []


def test_an_expired_key_opens_nothing_even_where_none_is_needed(ingress: Pretend) -> None:
    ring, _, key = ingress.app.state.keys.create("old", ["infer"], KeyTerms(expires_at=9e9))
    expired = {**ring.to_json()}
    [key_id] = [found.id for found in ring.keys.values() if found.name == "old"]
    expired[key_id]["terms"]["expires_at"] = 1000.0
    ingress.set(keys=KeyRing.from_json(expired))
    answer = ingress.post(INFER, IRIS, headers=bearer(key))
    assert (answer.status_code, "expired on 1970-01-01" in answer.text) == (401, True)
    assert ingress.post(INFER, IRIS).status_code == 200
