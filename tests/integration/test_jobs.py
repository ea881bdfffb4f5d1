"""The SDK's job client against a real cluster: what a job carries, its log, its exit code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eagleray.client import JobClient, pack
from eagleray.client.jobs import NoJobError
from eagleray.client.submission import eagleray_package
from eagleray.cluster.state import ClusterState
from eagleray.errors import AuthError

SCRIPT = b"""\
import sys
import ray

def places():
    import platform, eagleray, mine
    return [eagleray.__file__, platform.__file__, str(mine.VALUE)]

ray.init(log_to_driver=False, logging_level="ERROR")  # its cluster, also beside others
on_the_head = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})
print("driver", *places())
print("worker", *ray.get(on_the_head(places).remote()), flush=True)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def client(cluster: ClusterState) -> Iterator[JobClient]:
    with JobClient(cluster.dashboard_url, cluster.token) as client:
        yield client


def test_a_job_runs_what_it_carries_and_its_exit_code_comes_back(client: JobClient) -> None:
    runtime_env = {
        "py_modules": [client.upload(eagleray_package())],
        "working_dir": client.upload(pack({"script.py": SCRIPT, "mine.py": b"VALUE = 7\n"})),
    }
    job_id = client.submit(
        "python script.py 3",
        runtime_env=runtime_env,
        metadata={"eagleray_verb": "test"},
        resources={"node:__internal_head__": 0.001},
    )
    log = "".join(client.follow(job_id))
    lines = {words[0]: words[1:] for line in log.splitlines() if (words := line.split())}
    for process in ("driver", "worker"):
        package, standard, own = lines[process]
        assert "/py_modules_files/" in package, "the uploaded package has to win over an installed one"
        assert standard.endswith("/platform.py"), "`platform/` must not hide the standard library's module"
        assert own == "7"
    job = client.status(job_id)
    assert (job.status, job.driver_exit_code, job.exit_code) == ("FAILED", 3, 3)
    assert job.metadata == {"eagleray_verb": "test"}
    assert job_id in [listed.id for listed in client.list()]
    assert log == client.logs(job_id) == "".join(client.follow(job_id))
    assert client.delete(job_id)
    for ask in (client.status, client.logs, client.stop):
        with pytest.raises(NoJobError, match=f"no job '{job_id}' on the cluster"):
            ask(job_id)


def test_stopping_ends_a_job(client: JobClient) -> None:
    job_id = client.submit("echo started; exec sleep 600")
    for text in client.follow(job_id):
        if "started" in text.splitlines():
            break
    assert client.stop(job_id)
    assert client.wait(job_id, timeout_s=120).status == "STOPPED"


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_cluster_wants_its_token(cluster: ClusterState, token: str | None) -> None:
    with JobClient(cluster.dashboard_url, token) as client, pytest.raises(AuthError):
        client.list()
