"""A gateway's application in this process, with a wrong key: links refuse it, and Serve's handles carry all.

    python by_handles.py MODEL VERSION CARD(JSON)

Reads one request a line, [path, JSON], and prints [status, body] of its answer. Then: how many went by which
way, and why.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import httpx
import ray

from eagleray.serving.controller_client import ControllerBackend, Reader
from eagleray.serving.gateway.link_transport import LinkTransport
from eagleray.serving.ingress import IngressApp
from eagleray.serving.replica.listening import frame_bytes, here
from eagleray.serving.routes import ModelRoute, Routes, Target
from eagleray.serving.serve_transport_ray260 import ServeTransport
from eagleray.serving.services import app_name
from eagleray.serving.state import IngressState
from eagleray.specs.card import ModelCard

LINKS = {"key": "00" * 32, "max_frame_bytes": frame_bytes(16 * 2**20)}


async def main(name: str, version: int, card: ModelCard) -> None:
    target = Target(name, version, app_name(name, version), card, "0" * 64, "ready", 100)
    routes = Routes(1, {name: ModelRoute(version, {}, {version: target})})
    transport = LinkTransport(ServeTransport(), node=here()[1])
    transport.follow(LINKS, [target.app])
    app = IngressApp(IngressState(routes=routes), transport, ControllerBackend(Reader().call))
    app.gate_of = transport.gate
    door = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=door, base_url="http://127.0.0.1", timeout=60) as client:
        for path, values in map(json.loads, sys.stdin):
            answer = await client.post(path, json=values)
            print(json.dumps([answer.status_code, answer.text]))
    line = transport.line(target.app)
    assert line is not None
    print(json.dumps([{way: number for (*_, way), number in transport.ways().items()}, line.detour]))
    await transport.close()


if __name__ == "__main__":
    ray.init("auto", logging_level=logging.ERROR, log_to_driver=False)
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), ModelCard.model_validate_json(sys.argv[3])))
