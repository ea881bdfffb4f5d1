"""The admin API: JSON in and out of the control plane; always for keys of scope `admin`."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from eagleray.errors import InputError, ModelNotFound
from eagleray.protocol.infer import loads
from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.ingress import schemas
from eagleray.serving.ingress.call import Call, only
from eagleray.serving.ingress.http import JSON, Response, json_response
from eagleray.serving.ingress.routing import Handler, Route
from eagleray.serving.keys import OVERLAP_S

TAG = "Admin"
NUM_RUNS = 20


async def status(call: Call) -> Response:
    """The whole in short."""
    return json_response(await call.admin.status())


async def models(call: Call) -> Response:
    """Every model of the registry."""
    return json_response({"models": await call.admin.models()})


async def model(call: Call) -> Response:
    """One model of the registry with its versions."""
    return json_response(await call.admin.model(call.params["model"]))


async def promote(call: Call) -> Response:
    """Point an alias at a version."""
    values = only(await call.decoded(loads), "version", "alias")
    version, alias = _version(values, is_needed=True), values.get("alias")
    if not isinstance(alias, str):
        raise InputError("alias: expected a string, such as candidate")
    assert version is not None
    return json_response(await call.admin.promote(call.params["model"], version, alias))


async def runs(call: Call) -> Response:
    """The newest runs; with ?name= the run of that id, or those of a spec of that name; ?limit= of them."""
    query = parse_qsl(call.request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    asked = only(dict(query), "name", "limit", what="the query")
    limit = asked.get("limit", str(NUM_RUNS))
    if not re.fullmatch(r"[1-9]\d{0,2}|1000", limit):
        raise InputError("limit: expected a whole number from 1 to 1000")
    return json_response({"runs": await call.admin.runs(asked.get("name"), int(limit))})


async def services(call: Call) -> Response:
    """Every deployed version."""
    return json_response({"services": await call.admin.services()})


async def service(call: Call) -> Response:
    """The deployed versions of one model."""
    found = [entry for entry in await call.admin.services() if entry["name"] == call.params["model"]]
    if not found:
        raise ModelNotFound(
            f"no version of {call.params['model'][:60]!r} is deployed; GET /admin/services lists all"
        )
    return json_response({"services": found})


async def deploy(call: Call) -> Response:
    """Start what a service spec says."""
    spec = await call.decoded(loads)
    if not isinstance(spec, dict):
        raise InputError('the body: expected a service spec, such as {"kind": "service", "name": "digits"}')
    return json_response(await call.admin.deploy(spec), 202)


async def undeploy(call: Call) -> Response:
    """End a version, or all of a model."""
    values = only(await call.decoded(loads), "name", "version")
    name = values.get("name")
    if not isinstance(name, str):
        raise InputError("name: expected the name of a deployed model")
    return json_response(await call.admin.undeploy(name, _version(values, is_needed=False)))


async def claims(call: Call) -> Response:
    """Who holds which resources of the cluster."""
    return json_response(await call.admin.claims())


async def gateways(call: Call) -> Response:
    """The processes that take requests."""
    return json_response(await call.admin.gateways())


async def restart_gateways(call: Call) -> Response:
    """Replace all of them without a failed request."""
    return json_response(await call.admin.restart_gateways(), 202)


async def scale_gateways(call: Call) -> Response:
    """Have more of them, or fewer."""
    number = only(await call.decoded(loads), "number").get("number")
    if type(number) is not int:
        raise InputError("number: expected how many gateways there are to be")
    return json_response(await call.admin.scale_gateways(number), 202)


async def keys(call: Call) -> Response:
    """Every key, without its secret."""
    return json_response({"keys": await call.admin.keys()})


async def create_key(call: Call) -> Response:
    """A new key, whose text is in this answer and nowhere else."""
    values = only(await call.decoded(loads), "name", "scopes", "terms")
    name, scopes = values.get("name"), values.get("scopes", ["infer"])
    if not isinstance(name, str):
        raise InputError("name: expected a string to know the key by")
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise InputError('scopes: expected a list of "infer" and "admin"')
    terms = KeyTerms.from_json(values.get("terms", {}))
    return json_response(await call.admin.create_key(name, scopes, terms.to_json()), 201)


async def rotate_key(call: Call) -> Response:
    """A new text for a key, which is in this answer and nowhere else."""
    values = only(await call.decoded(loads), "overlap_s")
    overlap_s = values.get("overlap_s", OVERLAP_S)
    if isinstance(overlap_s, bool) or not isinstance(overlap_s, int | float):
        raise InputError("overlap_s: expected seconds for which the old text is still good")
    return json_response(await call.admin.rotate_key(call.params["id"], overlap_s))


async def revoke_key(call: Call) -> Response:
    """Make a key open nothing any more."""
    return json_response(await call.admin.revoke_key(call.params["id"]))


def _version(values: dict[str, Any], *, is_needed: bool) -> int | None:
    version = values.get("version")
    if version is None and not is_needed:
        return None
    if type(version) is not int or version < 1:
        raise InputError("version: expected a whole number from 1 on")
    return version


def routes() -> list[Route]:
    """The routes of this page."""

    def get(path: str, handler: Handler, summary: str) -> Route:
        return Route("GET", path, handler, summary, TAG, scope="admin", answer=schemas.OBJECT)

    def post(path: str, handler: Handler, summary: str, body: Any, code: int = 200) -> Route:
        return Route(
            "POST", path, handler, summary, TAG, scope="admin", accepts={JSON: body}, answer=schemas.OBJECT,
            status=code,
        )  # fmt: skip

    restart = Route(
        "POST", "/admin/gateways/restart", restart_gateways, "Replace all gateways, without a failed request",
        TAG, scope="admin", answer=schemas.OBJECT, status=202,
    )  # fmt: skip
    return [
        get("/admin/status", status, "The whole in short"),
        get("/admin/models", models, "Models of the registry"),
        get("/admin/models/{model}", model, "One model of the registry"),
        post("/admin/models/{model}/promote", promote, "Point an alias at a version", schemas.PROMOTE),
        get("/admin/runs", runs, "Newest runs; ?name=, ?limit="),
        get("/admin/services", services, "Deployed versions"),
        get("/admin/services/{model}", service, "Deployed versions of one model"),
        post("/admin/deploy", deploy, "Deploy a model version", schemas.SERVICE_SPEC, 202),
        post("/admin/undeploy", undeploy, "End a model version, or all of a model", schemas.UNDEPLOY),
        get("/admin/claims", claims, "Who holds which resources, and what waits for what"),
        get("/admin/gateways", gateways, "Processes that take requests"),
        restart,
        post("/admin/gateways", scale_gateways, "Have so many gateways", schemas.SCALE_GATEWAYS, 202),
        get("/admin/keys", keys, "API keys"),
        post("/admin/keys", create_key, "Make an API key", schemas.CREATE_KEY, 201),
        post("/admin/keys/{id}/rotate", rotate_key, "Give an API key a new text", schemas.ROTATE_KEY),
        Route("DELETE", "/admin/keys/{id}", revoke_key, "Revoke an API key", TAG, scope="admin",
              answer=schemas.OBJECT),
    ]  # fmt: skip
