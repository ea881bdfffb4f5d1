"""/metrics, /openapi.json and /docs: all of it made here, nothing is loaded from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Any

import eagleray
from eagleray.serving.ingress import door, metrics, schemas
from eagleray.serving.ingress.call import Call
from eagleray.serving.ingress.http import JSON, Response
from eagleray.serving.ingress.routing import Route

TAG = "About"
_OPENAI = "/v1"
_HOST = re.compile(r"[A-Za-z0-9.:[\]-]{1,255}")
_PARAMETER = re.compile(r"{(\w+)}")


async def prometheus(call: Call) -> Response:
    """The ingress's counters."""
    return Response(call.metrics.text().encode(), media_type=metrics.MEDIA_TYPE)


async def openapi(call: Call) -> Response:
    """This API as OpenAPI 3.1."""
    return Response(json.dumps(document(call.table.routes), indent=1).encode())


async def docs(call: Call) -> Response:
    """This API for readers, with commands to copy."""
    host = call.request.headers.get("host", "127.0.0.1")
    base = f"http://{host if _HOST.fullmatch(host) else '127.0.0.1'}"
    # Names of models are for those who may use them; a page that asks for no key keeps them from others.
    models = _deployed(call) if door.is_open(call.state, call.request.headers) else []
    page = _page(call.table.routes, base, models)
    # No script, no frame, nothing from anywhere: whatever a name may hold, a browser runs none of it.
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
    return Response(
        page.encode(), media_type="text/html; charset=utf-8", headers={"content-security-policy": policy}
    )


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document of `routes`."""
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Eagleray",
            "version": eagleray.__version__,
            "description": "Models behind one ingress. See /docs on this server for commands to copy.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "bearerFormat": "er_<id>_<secret>"}
            },
            "schemas": {"Error": schemas.ERROR, "OpenAIError": schemas.OPENAI_ERROR},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    words = [word.strip("{}") for word in re.split(r"[/:]", route.path) if word]
    error = "OpenAIError" if route.path.startswith(_OPENAI) else "Error"
    answer = {"description": "the answer"}
    if route.answer:
        answer["content"] = {route.media_type: {"schema": route.answer}}  # type: ignore[assignment]
    wrong = {JSON: {"schema": {"$ref": f"#/components/schemas/{error}"}}}
    operation: dict[str, Any] = {
        "operationId": "_".join([route.method.lower(), *words]),
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": schemas.TEXT}
            for name in _PARAMETER.findall(route.path)
        ],
        "responses": {
            str(route.status): answer,
            **{str(code): {"description": what, "content": wrong} for code, what in route.errors.items()},
            "default": {"description": "what is wrong", "content": wrong},
        },
    }
    if route.accepts:
        content = {media: {"schema": schema} for media, schema in route.accepts.items()}
        operation["requestBody"] = {"required": True, "content": content}
    if route.scope == "admin":
        operation["security"] = [{"key": []}]
    elif route.scope == "infer":
        operation["security"] = [{}, {"key": []}]  # the first: on loopback none is needed
    return operation


_USUAL = [("digits", "image"), ("gpt", "generative")]
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .8rem; border-radius: 6px; overflow-x: auto; }
.m { white-space: nowrap; width: 4rem; } .p { overflow-wrap: anywhere; width: 27rem; }
"""


def _page(routes: Sequence[Route], base: str, models: Sequence[tuple[str, str]]) -> str:
    sections = "".join(_section(tag, list(group)) for tag, group in groupby(routes, key=lambda r: r.tag))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Eagleray</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style></head><body>
<h1>Eagleray</h1>
<p>Version {escape(eagleray.__version__)}. This API for programs: <a href="/openapi.json">/openapi.json</a>;
counters: <a href="/metrics">/metrics</a>.</p>
<p>{_models([name for name, _ in models])}</p>
<h2>To begin with</h2>
{_examples(base, models)}
<p>A model is named <code>NAME</code> (its default version), <code>NAME@ALIAS</code>, or
<code>NAME/versions/NUMBER</code>. Where a key is needed, send <code>Authorization: Bearer er_…</code>. An
error is a JSON object: <code>{{"error": "…"}}</code>, under <code>/v1</code> in OpenAI's form. Every answer
has an <code>x-request-id</code>: yours, if you sent one.</p>
{sections}
</body></html>
"""


def _deployed(call: Call) -> list[tuple[str, str]]:
    """Name and kind of input of each."""
    defaults = [route.versions[route.default] for route in call.state.routes.models.values()]
    return sorted(
        (target.name, "generative" if target.card.is_generative else target.card.signature.input_kind)
        for target in defaults
    )


def _models(names: Sequence[str]) -> str:
    if not names:
        return 'The deployed models: <a href="/models">/models</a>.'
    links = ", ".join(f'<a href="/models/{escape(name)}">{escape(name)}</a>' for name in names)
    return f"Deployed: {links}."


def _examples(base: str, models: Sequence[tuple[str, str]]) -> str:
    """Commands for some (name, kind of input) of those that are deployed."""
    shown = list({kind: (name, kind) for name, kind in reversed(models)}.values())[::-1] or _USUAL
    commands = [f"curl {base}/v2/models/{shown[0][0]}", *(_command(base, *pair) for pair in shown)]
    python = [
        "from eagleray.client import Client    # pip install .",
        "",
        f'with Client("{base}") as client:',
        f'    print(client.predict("{shown[0][0]}", array))',
    ]
    blocks = ("\n".join(commands), "\n".join(python))
    return "".join(f"<pre>{escape(block, quote=False)}</pre>" for block in blocks)


def _command(base: str, name: str, kind: str) -> str:
    url = f"{base}/models/{name}:predict"
    match kind:
        case "generative":
            body = f'{{"model": "{name}", "prompt": "def ", "stream": true}}'
            return f"curl -N -d '{body}' {base}/v1/completions"
        case "image":
            return f"curl -H 'Content-Type: image/png' --data-binary @image.png {url}"
        case "audio":
            return f"curl -H 'Content-Type: audio/wav' --data-binary @sound.wav {url}"
        case "tabular":
            return f"curl -H 'Content-Type: text/csv' --data-binary @table.csv {url}"
        case _:
            return f"curl -d '{{\"inputs\": …}}' {url}"


def _section(tag: str, routes: Sequence[Route]) -> str:
    return f"<h2>{escape(tag)}</h2><table>{''.join(_rows(routes))}</table>"


def _rows(routes: Sequence[Route]) -> Iterator[str]:
    for route in routes:
        notes = [route.summary]
        if route.accepts:
            notes.append(f"takes {', '.join(route.accepts)}")
        if route.scope == "admin":
            notes.append("needs an admin key")
        yield (
            f'<tr><td class="m"><code>{route.method}</code></td>'
            f'<td class="p"><code>{escape(route.path)}</code></td><td>{escape("; ".join(notes))}</td></tr>'
        )


def routes() -> list[Route]:
    """The routes of this page."""
    return [
        Route("GET", "/docs", docs, "This page", TAG, scope=None),
        Route("GET", "/", docs, "This page", TAG, scope=None),
        Route(
            "GET", "/openapi.json", openapi, "This API as OpenAPI 3.1", TAG, scope=None, answer=schemas.OBJECT
        ),
        Route("GET", "/metrics", prometheus, "Counters for Prometheus", TAG),
    ]
