"""Ray Serve's own path with two hops: an ingress that asks a model's deployment: `python serve_app.py PORT`.

With the settings that serve best by Serve's own documents: HAProxy in front, direct ingress, handles by gRPC,
everything in one event loop. A Ray instance of its own; while it runs, HAProxy listens on all interfaces:
with it on, Serve has no other way.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

FOLDER = os.environ["BENCH_SHORT_FOLDER"]
"""Short: paths of sockets may have 107 bytes. Whoever started this removes it when all have ended."""
SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{FOLDER}/haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{FOLDER}/haproxy.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": FOLDER,
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{FOLDER}/haproxy-state",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 << 20),
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Before anything of Ray is imported: it reads them then."""


def main() -> None:
    """Serve until SIGTERM."""
    os.environ.update(SETTINGS)
    import ray
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=1000)
    class Model:
        """The model, in a process of its own."""

        def __init__(self) -> None:
            from forward import Forward

            self.forward = Forward()

        async def __call__(self, values: Any) -> Any:
            return self.forward(values)

    @serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=1000)
    class Ingress:
        """JSON or raw numbers to the model, and its answer to JSON."""

        def __init__(self, model: Any) -> None:
            self.model = model.options(_by_reference=False)

        async def __call__(self, request: Any) -> Any:
            import json

            import numpy as np

            body = await request.body()
            if request.url.path == "/raw":
                values = np.frombuffer(body, np.float32)[None]
            else:
                values = np.array([json.loads(body)["input"]], np.float32)
            outputs = await self.model.remote(values)
            return {"output": outputs[0].tolist()}

    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 << 20,
        _temp_dir=f"{FOLDER}/ray",
    )
    serve.start(http_options={"host": "0.0.0.0", "port": int(sys.argv[1])})
    serve.run(Ingress.bind(Model.bind()), route_prefix="/")
    print("READY", flush=True)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()
