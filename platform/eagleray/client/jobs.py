"""`JobClient`: jobs of a cluster over Ray's job REST API, with httpx alone.

Written against Ray 2.60 (ray/dashboard/modules/job/sdk.py); it works without Ray installed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from eagleray.client.environment import is_http_address, is_loopback
from eagleray.client.outcome import Job, JobResult, job_of
from eagleray.client.package import Package
from eagleray.errors import AuthError, InputError, ServiceError

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from eagleray.specs import FileSpec

PATIENCE_S = 60.0
"""So long the head may be away (it restarts within seconds) while a job is followed."""
QUIET_S = 10.0
"""After so long without a word of its log, a job that is followed is asked whether it still runs."""
_POLL_S = 0.5
_NUM_NAMED = 3


class JobClient:
    """Jobs of the cluster whose dashboard is at `address`; close it, or use it in a `with` block.

    Every method raises ServiceError where the cluster does not answer or refuses, AuthError where the token
    is missing or wrong, NoJobError where it does not know the job.
    """

    def __init__(self, address: str, token: str | None = None, *, timeout_s: float = 30.0) -> None:
        self.address = address.rstrip("/")
        if not is_http_address(self.address):
            raise InputError(
                f"job API address {address!r}: expected http://HOST:PORT, the Ray dashboard's own"
            )
        if token and not (token.isascii() and token.isprintable()):
            raise AuthError("the token of Ray's job API is none: expected one line of letters and digits")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s
        self._opened: httpx.Client | None = None

    @classmethod
    def from_environment(cls) -> JobClient:
        """For RAY_API_SERVER_ADDRESS and RAY_AUTH_TOKEN(_PATH), as `eagleray env` exports them.

        Raises:
            InputError: they name no cluster.
        """
        from eagleray.client import environment

        address = environment.job_address()
        if address is None:
            raise InputError(
                "no address of a cluster's jobs: set RAY_API_SERVER_ADDRESS (`eagleray env` prints that of a "
                "local cluster), or use JobClient(address, token)"
            )
        return cls(address, environment.token())

    def __enter__(self) -> JobClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def upload(self, package: Package) -> str:
        """The package's URI, once the cluster holds it: sent only where it does not."""
        path = f"/api/packages/gcs/{package.name}"
        if self._request("GET", path, missing_ok=True) is None:
            self._request("PUT", path, content=package.content)
        return package.uri

    def submit(
        self,
        entrypoint: str,
        *,
        job_id: str | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        resources: Mapping[str, float] | None = None,
        num_gpus: float = 0,
        patience_s: float = PATIENCE_S,
    ) -> str:
        """Start the shell command `entrypoint` as a job; returns its id.

        A cluster that has just started answers 500 until its agent is up: tried again for `patience_s`.
        """
        body: dict[str, Any] = {"entrypoint": entrypoint, "runtime_env": dict(runtime_env or {})}
        body["metadata"] = dict(metadata or {})
        if job_id is not None:
            body["submission_id"] = job_id
        if resources:
            body["entrypoint_resources"] = dict(resources)
        if num_gpus:
            body["entrypoint_num_gpus"] = num_gpus
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return str(self._json("POST", "/api/jobs/", json=body)["submission_id"])
            except ServiceError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)

    def submit_spec(self, spec: FileSpec | str | Path, overrides: Sequence[str] = ()) -> str:
        """Start what a train, tune or evaluate spec describes, given as a value or as its file; the job's id.

        Its code, and this installation's, travel with it. Raises: SpecError, InputError.
        """
        from eagleray.client.submission import submit_spec

        return submit_spec(self, spec, overrides)

    def result(self, job_id: str, *, timeout_s: float) -> JobResult:
        """What the job came to, once it has ended. Raises: ServiceError where it has not in time."""
        job = self.wait(job_id, timeout_s=timeout_s)
        return JobResult(job, self.logs(job_id))

    def status(self, job_id: str) -> Job:
        """The job as it is now."""
        return job_of(self._of_job("GET", job_id))

    def list(self) -> list[Job]:
        """Every submitted job that the cluster remembers, newest first."""
        found = [job_of(entry) for entry in self._json("GET", "/api/jobs/") if entry.get("submission_id")]
        return sorted(found, key=lambda job: job.started_s or float("inf"), reverse=True)

    def logs(self, job_id: str) -> str:
        """All that the job's driver has printed so far."""
        return str(self._of_job("GET", job_id, "/logs")["logs"])

    def stop(self, job_id: str) -> bool:
        """Ask the job to end; False where it had ended."""
        return bool(self._of_job("POST", job_id, "/stop")["stopped"])

    def delete(self, job_id: str) -> bool:
        """Forget a finished job."""
        return bool(self._of_job("DELETE", job_id)["deleted"])

    def follow(self, job_id: str, *, patience_s: float = PATIENCE_S) -> Iterator[str]:
        """What the job's driver prints, piece by piece from the start, until the job has ended.

        A lost connection is made anew, and goes on where it broke off.

        Raises:
            NoJobError: there is no such job.
            ServiceError: the cluster was away for more than `patience_s`.
        """
        num_seen, away_since_s = 0, None
        while True:
            try:
                if self.status(job_id).is_finished:
                    yield self.logs(job_id)[num_seen:]
                    return
                away_since_s, position = None, 0
                for text in self._tail(job_id):
                    position += len(text)
                    if position > num_seen:
                        yield text[max(0, len(text) - (position - num_seen)) :]
                        num_seen = position
            except NoAnswerError:
                away_since_s = away_since_s or time.monotonic()
                if time.monotonic() - away_since_s > patience_s:
                    raise
            time.sleep(_POLL_S)

    def wait(self, job_id: str, *, timeout_s: float) -> Job:
        """The finished job. Raises: ServiceError where it has not finished in time."""
        deadline = time.monotonic() + timeout_s
        while not (job := self.status(job_id)).is_finished:
            if time.monotonic() > deadline:
                raise ServiceError(f"job {job_id} is still {job.status} after {timeout_s:g} s")
            time.sleep(_POLL_S)
        return job

    def _tail(self, job_id: str) -> Iterator[str]:
        """The log from its start, until the stream ends. Raises: NoAnswerError where it breaks."""
        from websockets.exceptions import ConnectionClosedOK, WebSocketException
        from websockets.sync.client import connect

        url = f"ws{self.address.removeprefix('http')}{_path(job_id)}/logs/tail"
        try:
            # Without compression: Ray 2.60's dashboard passes the offer on to the process behind it, and then
            # every frame is lost; the stream ends as if the log were empty. It never reads: a ping finds no
            # answer, and a job that prints nothing for 40 s would look lost; so the job itself is asked.
            with connect(
                url,
                additional_headers=self._headers,
                compression=None,
                max_size=None,
                close_timeout=1,
                ping_interval=None,
                proxy=self._proxy,
            ) as socket:
                while True:
                    try:
                        message = socket.recv(timeout=QUIET_S)
                    except TimeoutError:
                        if self.status(job_id).is_finished:
                            return
                        continue
                    yield message if isinstance(message, str) else message.decode()
        except ConnectionClosedOK:
            return
        except (OSError, WebSocketException) as error:
            raise NoAnswerError(f"the log of job {job_id} broke off: {error}") from None

    @property
    def _proxy(self) -> Any:
        """True asks the environment for a proxy; a cluster on this machine is never behind one."""
        return None if is_loopback(self.address) else True

    def _client(self) -> httpx.Client:
        if self._opened is None:
            import httpx

            self._opened = httpx.Client(
                base_url=self.address,
                headers=self._headers,
                timeout=self._timeout_s,
                trust_env=not is_loopback(self.address),
            )
        return self._opened

    def _of_job(self, method: str, job_id: str, what: str = "") -> Any:
        """The answer about one job. Raises: NoJobError."""
        is_name = job_id.strip(".") != ""  # as a path, "" and dots are another address
        found = is_name and self._json(method, f"{_path(job_id)}{what}", missing_ok=True)
        if not found:
            raise self._unknown(job_id)
        return found

    def _unknown(self, job_id: str) -> NoJobError:
        jobs = self.list()
        newest = ", ".join(job.id for job in jobs[:_NUM_NAMED])
        more = f" and {len(jobs) - _NUM_NAMED} more" if len(jobs) > _NUM_NAMED else ""
        known = f"it knows {newest}{more}; see `eagleray jobs`" if jobs else "it has had none yet"
        return NoJobError(f"no job {job_id!r} on the cluster at {self.address}: {known}")

    def _json(self, method: str, path: str, *, missing_ok: bool = False, **arguments: Any) -> Any:
        """What the answer holds; None for 404 where `missing_ok`."""
        response = self._request(method, path, missing_ok=missing_ok, **arguments)
        if response is None:
            return None
        try:
            return response.json()
        except ValueError:
            raise ServiceError(f"{self.address}{path}: not Ray's job API (its answer is not JSON)") from None

    def _request(
        self, method: str, path: str, *, missing_ok: bool = False, **arguments: Any
    ) -> httpx.Response | None:
        """The answer; None for 404 where `missing_ok`."""
        import httpx

        try:
            response = self._client().request(method, path, **arguments)
        except httpx.TransportError as error:
            raise NoAnswerError(
                f"no cluster answers at {self.address} ({error or type(error).__name__}); "
                "`eagleray status` shows what runs here"
            ) from None
        if response.status_code == 404 and missing_ok:
            return None
        if response.is_success:
            return response
        raise self._refusal(response, path)

    def _refusal(self, response: httpx.Response, path: str) -> Exception:
        if response.status_code in (401, 403):
            what = "wants a token" if response.status_code == 401 else "does not accept this token"
            return AuthError(
                f'the cluster at {self.address} {what}; `eval "$(eagleray env)"` exports that of a local one'
            )
        # Ray answers in plain text; a page is that of another server, or of a proxy before Ray's.
        is_page = "html" in response.headers.get("content-type", "")
        if response.status_code == 404 or (is_page and response.status_code in (405, 501)):
            return ServiceError(
                f"{self.address}{path}: not Ray's job API (it answered {response.status_code} "
                f"{response.reason_phrase}); give the address of Ray's dashboard"
            )
        if is_page:
            reason = f"{response.reason_phrase} (a web page, not Ray's own answer)"
            return ServiceError(f"the cluster at {self.address} refused ({response.status_code}): {reason}")
        lines = [line.strip() for line in response.text.splitlines() if line.strip(" .")]
        reason = lines[-1] if lines else "no reason given"
        return ServiceError(f"the cluster at {self.address} refused ({response.status_code}): {reason}")


class NoJobError(InputError):
    """The cluster does not know the job."""


class NoAnswerError(ServiceError):
    """Nothing answers at the address, for now."""


def _path(job_id: str) -> str:
    return f"/api/jobs/{quote(job_id, safe='')}"
