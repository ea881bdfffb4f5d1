"""A small stand-in for Ray's job REST API (2.60), on aiohttp as Ray's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "right"


@dataclass
class Ray:
    """What the stand-in holds; tests read and change it."""

    address: str = ""
    packages: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    breaks: list[int] = field(default_factory=list)
    """While there is an entry, a connection to the tail breaks after so many characters."""
    agentless: int = 0
    """So many submissions are answered as by a cluster whose agent is not up yet."""
    hangs: bool = False
    """Whether a tail stays open, and silent, when it has told all, though its job has ended."""
    num_tails: int = 0

    def add(
        self, job_id: str, status: str, log: str = "", *, ends_as: str | None = None, **more: Any
    ) -> None:
        """A job; `ends_as` is its status once its log was read to the end."""
        self.jobs[job_id] = {"type": "SUBMISSION", "submission_id": job_id, "status": status, **more}
        self.logs[job_id] = log
        if ends_as:
            self.jobs[job_id]["ends_as"] = ends_as


@contextmanager
def running() -> Iterator[Ray]:
    """The stand-in on a free loopback port, until the block ends."""
    ray, loop, is_up = Ray(), asyncio.new_event_loop(), threading.Event()
    stopped = asyncio.Event()

    async def main() -> None:
        runner = web.AppRunner(_app(ray), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ray.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        is_up.set()
        await stopped.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert is_up.wait(60)
        yield ray
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


def _app(ray: Ray) -> web.Application:
    @web.middleware
    async def authenticate(request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if not given:
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        if given != f"Bearer {TOKEN}":
            return web.Response(status=403, text="Forbidden: Invalid authentication token")
        return await handler(request)

    def job(request: web.Request) -> dict[str, Any]:
        name = request.match_info["job"]
        if name not in ray.jobs:
            raise web.HTTPNotFound(text=f"Job {name} does not exist")
        return ray.jobs[name]

    async def has_package(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in ray.packages else 404)

    async def put_package(request: web.Request) -> web.Response:
        ray.packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def submit(request: web.Request) -> web.Response:
        if ray.agentless:
            ray.agentless -= 1
            return web.Response(status=500, text="No available agent to submit job, please try again later.")
        body = await request.json()
        if body["submission_id"] in ray.jobs:
            return web.Response(
                status=400, text=f"Traceback:\n  line 1\nValueError: Job {body['submission_id']} exists.\n.\n"
            )
        ray.submitted.append(body)
        ray.add(body["submission_id"], "RUNNING", "hello\n", ends_as="SUCCEEDED")
        return web.json_response({"job_id": body["submission_id"], "submission_id": body["submission_id"]})

    async def show(request: web.Request) -> web.Response:
        return web.json_response(job(request))

    async def list_all(request: web.Request) -> web.Response:
        return web.json_response(list(ray.jobs.values()))

    async def logs(request: web.Request) -> web.Response:
        return web.json_response({"logs": ray.logs[job(request)["submission_id"]]})

    async def stop(request: web.Request) -> web.Response:
        was_running = job(request)["status"] == "RUNNING"
        job(request)["status"] = "STOPPED"
        return web.json_response({"stopped": was_running})

    async def delete(request: web.Request) -> web.Response:
        del ray.jobs[job(request)["submission_id"]]
        return web.json_response({"deleted": True})

    async def tail(request: web.Request) -> web.StreamResponse:
        entry, socket = job(request), web.WebSocketResponse()
        assert "Sec-WebSocket-Extensions" not in request.headers, "Ray loses every compressed frame"
        await socket.prepare(request)
        ray.num_tails += 1
        log = ray.logs[entry["submission_id"]]
        limit = ray.breaks.pop(0) if ray.breaks else len(log)
        for start in range(0, limit, 7):
            await socket.send_str(log[start : min(start + 7, limit)])
        if limit < len(log):
            assert request.transport is not None
            request.transport.close()
        else:
            entry["status"] = entry.pop("ends_as", entry["status"])
        while ray.hangs:
            await asyncio.sleep(0.01)
        return socket

    app = web.Application(middlewares=[authenticate], client_max_size=2**28)
    app.add_routes(
        [
            web.get("/api/packages/gcs/{name}", has_package),
            web.put("/api/packages/gcs/{name}", put_package),
            web.post("/api/jobs/", submit),
            web.get("/api/jobs/", list_all),
            web.get("/api/jobs/{job}", show),
            web.delete("/api/jobs/{job}", delete),
            web.get("/api/jobs/{job}/logs", logs),
            web.get("/api/jobs/{job}/logs/tail", tail),
            web.post("/api/jobs/{job}/stop", stop),
        ]
    )
    return app
