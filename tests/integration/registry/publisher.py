"""Publishers that are killed: `python publisher.py TRACKING_URI DISK OBJECTS` prints what readers see (JSON).

Imports once and forks a process for each publisher, which ends itself with SIGKILL at one of POINTS. Then
everything is published again, and three publish the same name at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from eagleray.packaging import Folder, open_package
from eagleray.registry import publications
from eagleray.registry.models import MlflowModels
from support.cards import card

WEIGHTS = {"w": torch.arange(5000.0)}
POINTS = [
    "before create_registered_model",
    "after create_registered_model",
    "before file 1",
    "before file 3",  # COMMIT
    "after file 3",
    "before create_model_version",
    "after create_model_version",
]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killing(store: MlflowModels, point: str) -> None:
    """Let this process die at `point` of the store's next `publish`."""
    when, _, what = point.partition(" ")
    if what.startswith("file"):
        _kill_at_file(int(what.split()[1]), when)
        return
    client = store._client
    real = getattr(client, what)

    def dying(*args: Any, **options: Any) -> Any:
        if when == "before":
            die()
        real(*args, **options)
        die()

    setattr(client, what, dying)


def _kill_at_file(number: int, when: str) -> None:
    real, seen = Folder.write_new, []

    def write_new(self: Folder, name: str, data: bytes) -> None:
        if len(seen) == number and when == "before":
            die()
        seen.append(name)
        real(self, name, data)
        if len(seen) == number + 1 and when == "after":
            die()

    Folder.write_new = write_new  # type: ignore[method-assign]


def in_children(works: Sequence[Callable[[], Any]]) -> list[tuple[int, Any]]:
    """Do each in a process of its own, all at once: wait status, and what it returned."""
    children = []
    for work in works:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            try:
                os.write(writing, json.dumps(work()).encode())
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(writing)
        children.append((pid, reading))
    found = []
    for pid, reading in children:
        with os.fdopen(reading, "rb") as pipe:
            data = pipe.read()
        found.append((os.waitpid(pid, 0)[1], json.loads(data) if data else None))
    return found


def publish(store: MlflowModels, name: str) -> int:
    return store.publish(card(name=name), WEIGHTS, aliases=["candidate"]).version


def killed(tracking: str, storage: str, name: str, point: str) -> int:
    store = MlflowModels(tracking, storage)
    killing(store, point)
    return publish(store, name)


def read(tracking: str, storage: str) -> dict[str, dict[int, tuple[str, ...]]]:
    """The aliases of every version that a reader sees; each is opened and read whole."""
    store = MlflowModels(tracking, storage)
    found = {}
    for name in (name for name in store.names() if name.startswith(("disk-", "objects-", "crowd"))):
        versions = store.versions(name)
        for version in versions:
            package = open_package(version.url, digest=version.digest)
            assert torch.equal(package.weights()["w"], WEIGHTS["w"])
        found[name] = {version.version: version.aliases for version in versions}
    return found


def again(tracking: str, storage: str, names: Sequence[str]) -> dict[str, list[str]]:
    """What lies beside the packages of versions once each was published again, a day later."""
    publications.ABANDONED_S = -1.0
    store, left = MlflowModels(tracking, storage), {}
    for name in names:
        publish(store, name)
        packages = {version.url.rpartition("/")[2] for version in store.versions(name)}
        left[name] = sorted(set(Folder(f"{storage}/models/{name}").list()) - packages)
    return left


def one(work: Callable[[], Any]) -> Any:
    ((status, found),) = in_children([work])
    assert status == 0
    return found


def main(tracking: str, disk: str, objects: str) -> dict[str, Any]:
    places = {f"disk-{number}": (disk, point) for number, point in enumerate(POINTS)}
    places |= {
        f"objects-{number}": (objects, point) for number, point in enumerate(POINTS) if "file 3" in point
    }
    victims = [
        lambda n=name, s=storage, p=point: killed(tracking, s, n, p)
        for name, (storage, point) in places.items()
    ]
    signals = {
        name: os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        for name, (status, _) in zip(places, in_children(victims), strict=True)
    }
    after_kills = one(lambda: read(tracking, disk))
    left = {name: len(Folder(f"{storage}/models/{name}").list()) for name, (storage, _) in places.items()}
    left_after_all: dict[str, list[str]] = {}
    for storage in (disk, objects):
        names = [name for name, (place, _) in places.items() if place == storage]
        left_after_all |= one(lambda s=storage, n=names: again(tracking, s, n))
    crowd = in_children([lambda: publish(MlflowModels(tracking, disk), "crowd")] * 3)
    return {
        "points": {name: point for name, (_, point) in places.items()},
        "signals": signals,
        "after_kills": after_kills,
        "left": left,
        "left_after_all": left_after_all,
        "after_all": one(lambda: read(tracking, disk)),
        "crowd": sorted(version for _, version in crowd),
    }


if __name__ == "__main__":
    import mlflow.store.model_registry.sqlalchemy_store  # once, before the forks
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    print(json.dumps(main(*sys.argv[1:])))
