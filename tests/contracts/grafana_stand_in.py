"""A stateful stand-in for Grafana's HTTP API: folders, dashboards, data sources, search."""

from __future__ import annotations

import copy
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

UID = re.compile(r"[A-Za-z0-9_-]{1,40}")
Answer = tuple[int, Any]


@dataclass
class GrafanaState:
    """What the server holds. `raw`: (method, path) -> (status, body) that replaces the real answer."""

    token: str
    prefix: str = ""
    folders: dict[str, dict[str, Any]] = field(default_factory=dict)
    dashboards: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasources: dict[str, dict[str, Any]] = field(default_factory=dict)
    raw: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    before_save: Callable[[], None] | None = None
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [request for request in self.requests if request[0] != "GET"]

    def edit(self, uid: str, change: Callable[[dict[str, Any]], None]) -> None:
        """What a user does in the browser: change the model, save, version + 1."""
        model = self.dashboards[uid]["dashboard"]
        change(model)
        model["version"] += 1

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Answer:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        match (method, *parts):
            case ("GET", "api", "folders"):
                return 200, list(self.folders.values())
            case ("POST", "api", "folders"):
                return self._make_folder(body)
            case ("GET", "api", "folders", uid):
                return _found(self.folders.get(uid), "folder not found")
            case ("POST", "api", "dashboards", "db"):
                return self._save(body)
            case ("GET", "api", "dashboards", "uid", uid):
                return _found(self.dashboards.get(uid), "Dashboard not found")
            case ("GET", "api", "datasources"):
                return 200, list(self.datasources.values())
            case ("POST", "api", "datasources"):
                return self._make_datasource(body)
            case ("GET", "api", "datasources", "name", name):
                return _found(self.datasources.get(name), "Data source not found")
            case ("GET", "api", "search"):
                return 200, self._search(query.get("query", [""])[0])
        return 404, {"message": "Not found"}

    def _make_folder(self, body: dict[str, Any]) -> Answer:
        uid = body.get("uid") or f"made{next(self.ids)}"
        if not body.get("title"):
            return 400, {"message": "folder title cannot be empty"}
        if not UID.fullmatch(uid):
            return 400, {"message": "uid contains illegal characters"}
        if uid in self.folders or any(f["title"] == body["title"] for f in self.folders.values()):
            return 409, {"message": "a folder with the same name already exists in the current location"}
        self.folders[uid] = {"id": next(self.ids), "uid": uid, "title": body["title"], "version": 1}
        return 200, self.folders[uid]

    def _save(self, body: dict[str, Any]) -> Answer:
        if self.before_save is not None:
            hook, self.before_save = self.before_save, None
            hook()
        model = copy.deepcopy(body["dashboard"])
        uid = model.get("uid") or f"made{next(self.ids)}"
        if not model.get("title"):
            return 400, {"message": "Dashboard title cannot be empty", "status": "empty-name"}
        if not UID.fullmatch(uid):
            return 400, {"message": "uid contains illegal characters"}
        folder = body.get("folderUid", "")
        if folder and folder not in self.folders:
            return 404, {"message": "folder not found"}
        held = self.dashboards.get(uid)
        version = held["dashboard"]["version"] if held else 0
        if held and model.get("version") != version and not body.get("overwrite"):
            return 412, {
                "message": "The dashboard has been changed by someone else",
                "status": "version-mismatch",
            }
        model.update(uid=uid, id=held["dashboard"]["id"] if held else next(self.ids), version=version + 1)
        url = f"{self.prefix}/d/{uid}/{re.sub('[^a-z0-9]+', '-', model['title'].lower())}"
        self.dashboards[uid] = {"dashboard": model, "meta": {"folderUid": folder, "url": url}}
        self.messages.append(body.get("message", ""))
        return 200, {
            "id": model["id"],
            "uid": uid,
            "url": url,
            "status": "success",
            "version": model["version"],
        }

    def _make_datasource(self, body: dict[str, Any]) -> Answer:
        if not body.get("name") or not body.get("type") or not body.get("access"):
            return 400, {"message": "bad request data"}
        if body["name"] in self.datasources:
            return 409, {"message": "data source with the same name already exists"}
        source = {**body, "id": next(self.ids), "uid": f"made{next(self.ids)}"}
        self.datasources[body["name"]] = source
        return 200, {"datasource": source, "id": source["id"], "message": "Datasource added"}

    def _search(self, text: str) -> list[dict[str, Any]]:
        models = [held["dashboard"] for held in self.dashboards.values()]
        return [
            {"uid": m["uid"], "title": m["title"], "type": "dash-db"}
            for m in models
            if text.lower() in m["title"].lower()
        ]


def _found(value: Any, message: str) -> Answer:
    return (404, {"message": message}) if value is None else (200, value)


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def _handle(self) -> None:
        state = self.server.state
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not parts.path.startswith(state.prefix + "/"):
            return self._send(404, b"<html>nothing here</html>", "text/html")
        path = parts.path.removeprefix(state.prefix)
        with self.server.lock:
            state.requests.append((self.command, path))
            if (self.command, path) in state.raw:
                return self._send(*state.raw[self.command, path], "text/plain")
            if self.headers.get("Authorization") != f"Bearer {state.token}":
                status, answer = 401, {"message": "Invalid API key"}
            else:
                asked = json.loads(body) if body else None
                status, answer = state.answer(self.command, path, parse_qs(parts.query), asked)
            return self._send(status, json.dumps(answer).encode(), "application/json")

    do_GET = do_POST = _handle  # noqa: N815

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "/login")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: pytest's output is not an access log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, state: GrafanaState):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state = state
        self.lock = threading.Lock()


@contextmanager
def serving(state: GrafanaState) -> Iterator[str]:
    """Serve `state` on loopback. Yields: its address, with the prefix."""
    server = _Server(state)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{state.prefix}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
