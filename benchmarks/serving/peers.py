"""The peers: environments of their own from PyPI, kept in the cache, and the tiny forward behind each."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bodies
import numpy as np
import place  # first: it says where eagleray is
import workloads
from kit.results import NotAvailable
from running import Server, free_port

FOLDER = place.HERE / "peer_apps"
_TORCH = ("torch", "torchgen", "functorch")
_PIP_S = 900.0


@dataclass(frozen=True)
class Peer:
    """One of them."""

    title: str
    packages: tuple[str, ...]
    """What pip installs; none: this environment's own."""
    words: Callable[[Path, int, Path], Sequence[str]]
    """The command, from the environment's folder of programs, a port and a folder."""
    protocol: str
    path: str
    raw_path: str | None = None
    """Takes raw numbers."""
    limit_s: float = 120.0
    """To listen in."""
    short_folder: bool = False
    """It wants one, for its sockets."""


def _mlserver(programs: Path, port: int, folder: Path) -> Sequence[str]:
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "debug": False,
        "use_structured_logging": False,
    }
    model = {"name": "tiny", "implementation": "mlserver_app.Tiny"}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    return (str(programs / "mlserver"), "start", str(folder))


PEERS: Mapping[str, Peer] = {
    "fastapi": Peer(
        "FastAPI + uvicorn",
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
        lambda programs, port, _: (
            *(str(programs / "uvicorn"), "fastapi_app:app", "--port", str(port), "--no-access-log"),
            *("--log-level", "error", "--timeout-keep-alive", "600"),
        ),
        "JSON of its own",
        "/predict",
        "/raw",
    ),
    "litserve": Peer(
        "LitServe",
        ("litserve==0.2.19",),
        lambda programs, port, _: (str(programs / "python"), str(FOLDER / "litserve_app.py"), str(port)),
        "JSON of its own",
        "/predict",
    ),
    "bentoml": Peer(
        "BentoML",
        ("bentoml==1.4.40",),
        lambda programs, port, _: (
            *(str(programs / "bentoml"), "serve", "bento_app:Tiny", "--host", "127.0.0.1"),
            *("--port", str(port), "--working-dir", str(FOLDER)),
        ),
        "JSON of its own",
        "/predict",
    ),
    "mlserver": Peer(
        "MLServer", ("mlserver==1.7.1",), _mlserver, "Open Inference v2, JSON", bodies.infer_path("tiny")
    ),
    "serve": Peer(
        "Ray Serve, two hops",
        (),
        lambda programs, port, _: (str(programs / "python"), str(FOLDER / "serve_app.py"), str(port)),
        "JSON of its own",
        "/predict",
        "/raw",
        short_folder=True,
    ),
}


def server(name: str, folder: Path, model: str = "tiny") -> Server:
    """The peer's server with a perceptron of `workloads`, not started.

    Raises: NotAvailable where its environment cannot be made.
    """
    peer, mine, port = PEERS[name], folder / f"{name}-{model}", free_port()
    mine.mkdir(exist_ok=True)
    env = {
        "PYTHONPATH": str(FOLDER),
        "BENCH_WEIGHTS": str(weights(folder, model)),
        "BENTOML_HOME": str(mine),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    words = peer.words(programs(peer), port, mine)
    log, short_folder = mine / "log", peer.short_folder
    return Server(peer.title, words, port, log, env=env, cwd=mine, short_folder=short_folder)


def request(name: str, port: int) -> bytes:
    """A tiny request in the peer's nearest protocol."""
    values = workloads.samples("tiny")
    if PEERS[name].path.startswith("/v2/"):
        return bodies.infer_json(port, "tiny", values)
    data = [round(float(value), 4) for value in values.ravel()]
    return bodies.post(port, PEERS[name].path, json.dumps({"input": data}).encode())


def raw_request(name: str, port: int) -> bytes:
    """600 KB of raw numbers."""
    path = PEERS[name].raw_path
    assert path is not None
    return bodies.post(port, path, workloads.samples("wide").tobytes(), bodies.BINARY)


def values_of(answer: bodies.Answer) -> np.ndarray:
    """The numbers in a peer's answer, whatever its protocol. Raises: ValueError."""
    told = json.loads(answer.body)
    if isinstance(told, dict) and "outputs" in told:
        return answer.values()
    numbers = told["output"] if isinstance(told, dict) and "output" in told else told
    if answer.status != 200 or not isinstance(numbers, list):
        raise ValueError(f"{answer.status} {answer.body[:300]!r}")
    return np.array(numbers, np.float32).ravel()


def weights(folder: Path, model: str) -> Path:
    """A file with the layers of a perceptron, in order."""
    path = folder / f"{model}.npz"
    if not path.exists():
        state = workloads.module(model).state_dict()
        names = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
        arrays = {}
        for number, name in enumerate(names):
            for kind in ("weight", "bias"):
                arrays[f"{kind}{number}"] = state[f"{name}.{kind}"].numpy()
        np.savez(path, **arrays)
    return path


# ---- environments


def programs(peer: Peer) -> Path:
    """The folder of programs of the peer's environment, which is made where there is none yet.

    Raises: NotAvailable where pip fails; the message has its last lines.
    """
    if not peer.packages:
        return Path(sys.executable).parent
    wanted = (*peer.packages, "numpy", *_needed_by_torch())
    said = "\0".join((sys.version, importlib.metadata.version("torch"), *wanted))
    name = peer.packages[0].partition("==")[0]
    folder = place.cache() / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    if not (folder / "is-whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _call((sys.executable, "-m", "venv", str(folder)), peer)
        pip = (str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _call((*pip, *wanted), peer)
        _link_torch(folder)
        (folder / "is-whole").touch()
    return folder / "bin"


def _call(words: Sequence[str], peer: Peer) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        found = subprocess.run(
            words,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PIP_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise NotAvailable(f"pip did not install {peer.title} within {_PIP_S:.0f} s") from None
    if found.returncode != 0:
        last = " ".join(found.stderr.strip().splitlines()[-2:])
        raise NotAvailable(f"its environment could not be made: {last}")


def _needed_by_torch() -> list[str]:
    """What torch itself depends on, by its own words."""
    required = importlib.metadata.requires("torch") or []
    return [one for one in required if ";" not in one]


def _link_torch(folder: Path) -> None:
    """Let the environment find this one's torch: the same bits, and no second download of it."""
    [site] = (folder / "lib").glob("python*/site-packages")
    import torch

    ours = Path(torch.__file__).parents[1]
    for found in (*(ours / name for name in _TORCH), *ours.glob("torch-*.dist-info")):
        if found.exists() and not (site / found.name).exists():
            (site / found.name).symlink_to(found)
