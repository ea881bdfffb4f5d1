"""`JobClient` against the stand-in for Ray's job API."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from eagleray.client import Job, JobClient, jobs, pack
from eagleray.errors import AuthError, InputError, ServiceError
from unit.client.stand_in import TOKEN, Ray

LOG = "".join(f"line {index}\n" for index in range(40))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_S", 0.01)


@pytest.fixture
def client(ray: Ray) -> Iterator[JobClient]:
    with JobClient(ray.address, TOKEN) as client:
        yield client


def test_equal_content_is_sent_once(ray: Ray, client: JobClient, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    first = client.upload(pack({"a.py": tmp_path / "a.py"}))
    (tmp_path / "a.py").touch()
    assert client.upload(pack({"a.py": tmp_path / "a.py"})) == first
    assert first == f"gcs://{next(iter(ray.packages))}"
    assert len(ray.packages) == 1
    (tmp_path / "a.py").write_text("x = 2\n")
    assert client.upload(pack({"a.py": tmp_path / "a.py"})) != first


def test_a_submission_carries_what_was_given(ray: Ray, client: JobClient) -> None:
    found = client.submit("python x.py", job_id="j1", metadata={"a": "b"}, resources={"r": 0.1})
    assert found == "j1"
    assert ray.submitted == [
        {
            "entrypoint": "python x.py",
            "runtime_env": {},
            "metadata": {"a": "b"},
            "submission_id": "j1",
            "entrypoint_resources": {"r": 0.1},
        }
    ]


def test_a_cluster_that_has_just_started_is_waited_for(ray: Ray, client: JobClient) -> None:
    ray.agentless = 3
    assert client.submit("true", job_id="j1") == "j1"
    ray.agentless = 10**6
    with pytest.raises(ServiceError, match="No available agent"):
        client.submit("true", job_id="j2", patience_s=0.05)


def test_a_refusal_is_one_line(ray: Ray, client: JobClient) -> None:
    client.submit("true", job_id="j1")
    with pytest.raises(ServiceError) as caught:
        client.submit("true", job_id="j1")
    assert str(caught.value) == f"the cluster at {ray.address} refused (400): ValueError: Job j1 exists."


@pytest.mark.parametrize("ask", [JobClient.status, JobClient.logs, JobClient.stop, JobClient.delete])
@pytest.mark.parametrize("job_id", ["none", "a/b", "..", ""])
def test_an_unknown_job_is_told_with_those_that_are_known(
    ray: Ray, client: JobClient, ask: Callable[[JobClient, str], object], job_id: str
) -> None:
    with pytest.raises(jobs.NoJobError) as caught:
        ask(client, job_id)
    assert str(caught.value) == f"no job {job_id!r} on the cluster at {ray.address}: it has had none yet"
    for index in range(5):
        ray.add(f"j{index}", "RUNNING", start_time=1000 + index)
    with pytest.raises(InputError, match=r"it knows j4, j3, j2 and 2 more; see `eagleray jobs`$"):
        ask(client, job_id)


def test_status_and_list(ray: Ray, client: JobClient) -> None:
    ray.add("old", "FAILED", start_time=1000, end_time=2500, driver_exit_code=3, message="m", entrypoint="e")
    ray.add("new", "RUNNING", start_time=9000)
    ray.jobs["driver"] = {"type": "DRIVER", "submission_id": None, "job_id": "01", "status": "RUNNING"}
    assert client.status("old") == Job("old", "FAILED", "e", "m", 3, 1.0, 2.5)
    assert [job.id for job in client.list()] == ["new", "old"]


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", -9, 1),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
    ],
)
def test_the_exit_code_is_the_jobs_own(status: str, driver_exit_code: int | None, expected: int) -> None:
    assert Job("j", status, "e", driver_exit_code=driver_exit_code).exit_code == expected


def test_stop_delete_and_logs(ray: Ray, client: JobClient) -> None:
    ray.add("j", "RUNNING", "text\n")
    assert client.logs("j") == "text\n"
    assert (client.stop("j"), client.stop("j")) == (True, False)
    assert client.delete("j")
    assert client.list() == []


@pytest.mark.parametrize("breaks", [[], [0], [10], [10, 3, 200]])
def test_following_gives_the_whole_log_once(ray: Ray, client: JobClient, breaks: list[int]) -> None:
    ray.add("j", "RUNNING", LOG, ends_as="SUCCEEDED")
    ray.breaks = list(breaks)
    assert "".join(client.follow("j")) == LOG
    assert ray.num_tails == len(breaks) + 1
    assert client.status("j").status == "SUCCEEDED"


def test_following_ends_where_the_tail_goes_silent(
    ray: Ray, client: JobClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "QUIET_S", 0.05)
    ray.add("j", "RUNNING", LOG, ends_as="SUCCEEDED")
    ray.hangs = True
    assert "".join(client.follow("j")) == LOG
    ray.hangs = False


def test_following_a_finished_job_or_one_that_is_not_there(ray: Ray, client: JobClient) -> None:
    ray.add("j", "FAILED", LOG)
    assert "".join(client.follow("j")) == LOG
    with pytest.raises(jobs.NoJobError, match="no job 'none'"):
        next(client.follow("none"))


def test_waiting_ends_with_the_job_or_the_time(ray: Ray, client: JobClient) -> None:
    ray.add("done", "SUCCEEDED")
    ray.add("busy", "RUNNING")
    assert client.wait("done", timeout_s=60).exit_code == 0
    with pytest.raises(ServiceError, match=r"job busy is still RUNNING after 0.05 s"):
        client.wait("busy", timeout_s=0.05)


@pytest.mark.parametrize(
    ("token", "what"), [(None, "wants a token"), ("wrong", "does not accept this token")]
)
def test_a_missing_or_wrong_token(ray: Ray, token: str | None, what: str) -> None:
    with JobClient(ray.address, token) as client, pytest.raises(AuthError, match=what):
        client.list()


@pytest.mark.parametrize("token", ["a\nb", "ä", "\x00"])
def test_a_token_that_no_header_can_carry(ray: Ray, token: str) -> None:
    with pytest.raises(AuthError, match="the token of Ray's job API is none") as refused:
        JobClient(ray.address, token)
    assert token not in str(refused.value)


class WebServer(BaseHTTPRequestHandler):
    """Any but Ray: its refusals are pages."""

    def do_GET(self) -> None:
        self.send_error(502 if self.path.endswith("away") else 404)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_a_server_that_is_not_ray_is_told(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), WebServer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        (tmp_path / "a.py").touch()
        calls: dict[str, Callable[[JobClient], object]] = {
            f"{address}/api/jobs/: not Ray's job API (it answered 404 Not Found)": JobClient.list,
            f"{address}/api/jobs/: not Ray's job API": lambda client: client.status("j"),
            f"{address}/api/packages/": lambda client: client.upload(pack({"a.py": tmp_path / "a.py"})),
            f"the cluster at {address} refused (502): Bad Gateway (a web page": lambda c: c.status("away"),
        }
        try:
            with JobClient(address) as client:
                for said, call in calls.items():
                    with pytest.raises(ServiceError) as caught:
                        call(client)
                    assert str(caught.value).startswith(said)
                    assert "\n" not in str(caught.value)
        finally:
            server.shutdown()
            thread.join()


def test_no_cluster() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with JobClient(address) as client:
            with pytest.raises(ServiceError, match=f"no cluster answers at {address}"):
                client.list()
            with pytest.raises(ServiceError, match="no cluster answers"):
                next(client.follow("j", patience_s=0.05))


@pytest.mark.parametrize("address", ["localhost:8265", "http://[::1", "http://x:99999"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(InputError, match=r"expected http://HOST:PORT"):
        JobClient(address)
