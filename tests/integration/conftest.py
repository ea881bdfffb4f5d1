"""One local cluster for the whole session: real nodes, started and ended by Ray's autoscaler."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from eagleray.cluster import local, processes, state
from eagleray.specs import LocalSpec, load
from eagleray.workflows.up import SERVING
from support.conversing import Driver
from support.drivers import environment
from support.object_store import free_port, serving
from support.served import opened

ROOT = Path(__file__).parents[2]
_HOMES = Path(tempfile.gettempdir()) / f"eagleray-tests-{os.getuid()}"


@pytest.fixture(scope="session")
def eagleray_home():
    """An EAGLERAY_HOME of this session alone; clusters of sessions that were killed are ended first."""
    _end_leftovers()
    me = processes.this_process()
    home = _HOMES / f"{me.pid}-{me.start}"
    home.mkdir(parents=True, mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EAGLERAY_HOME", str(home))
        patch.setenv("EAGLERAY_STORAGE", str(home / "storage"))
        patch.setenv("EAGLERAY_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
        yield home
        _end(home)


@pytest.fixture(scope="session")
def local_spec() -> LocalSpec:
    """The repository's own local.toml."""
    return load(LocalSpec, ROOT / "local.toml")


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory):
    """A bucket's URL on a real object store (OpenStack Swift), which this process's environment leads to."""
    import s3fs

    with pytest.MonkeyPatch.context() as patch, serving(tmp_path_factory.mktemp("swift"), free_port()) as env:
        for name, value in env.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("eagleray")
        yield "s3://eagleray"
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def cluster(eagleray_home: Path, local_spec: LocalSpec):
    """The state of a running local cluster, shared by all integration tests: leave it as you found it."""
    # eagleray_home ends it, also when `up` is interrupted
    return local.up("tests", local_spec, helpers=SERVING)


@pytest.fixture(scope="session")
def ingress(cluster: state.ClusterState) -> Iterator[httpx.Client]:
    """The cluster's ingress, with the first admin key, as soon as it answers: `up` does not wait for it."""
    with opened(cluster) as client:
        yield client


@pytest.fixture(scope="session")
def cluster_env(cluster: state.ClusterState) -> dict[str, str]:
    """An environment for subprocesses in which Ray's own commands and `ray.init()` reach `cluster`."""
    return environment(cluster)


def _end_leftovers() -> None:
    for home in _HOMES.glob("*-*"):
        pid, _, start = home.name.partition("-")
        if not processes.Process(int(pid), int(start)).is_alive:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("EAGLERAY_HOME", str(home))
                _end(home)


def _end(home: Path) -> None:
    for name in state.names():
        local.down(name, say=print)
    shutil.rmtree(home, ignore_errors=True)
    with contextlib.suppress(OSError):
        _HOMES.rmdir()


@pytest.fixture
def start(cluster_env: dict[str, str]) -> Iterator[Callable[..., Driver]]:
    """Starts drivers of the shared cluster; what still runs at the end of a test is ended."""
    drivers: list[Driver] = []

    def make(*arguments: str) -> Driver:
        drivers.append(Driver(arguments, cluster_env))
        return drivers[-1]

    yield make
    for driver in drivers:
        if driver.process.poll() is None:
            driver.process.kill()
        driver.end()
