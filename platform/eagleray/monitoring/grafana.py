"""The one adapter over the `grafana-api` package: folders, dashboards by uid, data sources by name.

`grafana-api` 1.0.3 escapes neither uids nor names, raises TypeError on an error text that is not JSON, and a
bare ValueError on an empty answer; here each of these, and each refusal, is one ServiceError with one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

from eagleray.errors import InputError, ServiceError

_UID = re.compile(r"[A-Za-z0-9_-]{1,40}")  # Grafana's rule
_TOKEN = re.compile(
    r"[\x21-\x7e]+"
)  # anything else cannot stand in a header, and would be echoed by the error
_STEPS = {
    401: "the token was not accepted; make a service account token with the role Editor",
    403: "the token may not do this; give its service account the role Editor (Admin for data sources)",
    409: "something else there has this name or uid",
    412: "somebody else changed it at the same time, or it is provisioned from a file; try again",
}


class Grafana:
    """A Grafana server, reached with a service account token. Creating it opens no connection."""

    def __init__(self, url: str, token: str, *, timeout_s: float = 10.0):
        """Check address and token. Raises: InputError where one of them cannot be right."""
        parts = _parts(url)
        if not _TOKEN.fullmatch(token):
            raise InputError(
                "Grafana token: it is empty or holds spaces or control characters; copy it again"
            )
        from grafana_api.grafana_face import GrafanaFace  # 0.1 s with requests

        self.url = url.rstrip("/")
        self._token = token
        self._status: int | None = None
        prefix = parts.path.strip("/")
        self._face = GrafanaFace(
            auth=token,
            host=parts.netloc,
            url_path_prefix=f"{prefix}/" if prefix else "",
            protocol=parts.scheme,
            timeout=timeout_s,
        )
        # A redirected POST becomes a GET of another page, so none is followed.
        self._face.api.s.max_redirects = 0
        self._face.api.s.hooks["response"].append(self._note_status)

    def ensure_folder(self, title: str, uid: str) -> tuple[str, bool]:
        """The uid of the folder of this uid or, failing that, this title; made where there is none.

        Returns:
            (uid, whether it was made now).
        """
        what = f"folder {title!r}"
        found = self._find(what, lambda: self._face.folder.get_folder(_checked(uid)))
        if found is not None:
            return uid, False
        folders = self._list("list folders", self._face.folder.get_all_folders)
        for folder in folders:
            if folder.get("title") == title:
                return str(folder["uid"]), False
        made = self._object(f"make {what}", lambda: self._face.folder.create_folder(title, uid))
        return str(made.get("uid", uid)), True

    def dashboard(self, uid: str) -> dict[str, Any] | None:
        """What Grafana holds under this uid: {"dashboard": model, "meta": …}; None where there is nothing."""
        return self._find(f"dashboard {uid!r}", lambda: self._face.dashboard.get_dashboard(_checked(uid)))

    def save_dashboard(
        self, model: dict[str, Any], *, folder_uid: str, version: int | None, message: str
    ) -> dict[str, Any]:
        """Save a dashboard under its uid; `version` is the one read before, None where it is new.

        Grafana compares the version, so a save by somebody else in between is refused (412), not lost.

        Returns:
            Grafana's answer: uid, url, version.
        """
        _checked(model["uid"])
        dashboard = {**model, "id": None} if version is None else {**model, "version": version}
        body = {"dashboard": dashboard, "folderUid": folder_uid, "overwrite": False, "message": message}
        return self._object(
            f"save dashboard {model['title']!r}", lambda: self._face.dashboard.update_dashboard(body)
        )

    def datasource(self, name: str) -> dict[str, Any] | None:
        """The data source of this name (uid, type, url, …); None where there is none."""
        if name in ("", ".", ".."):  # a path segment that HTTP clients fold away, escaped or not
            return None
        return self._find(
            f"data source {name!r}",
            lambda: self._face.datasource.get_datasource_by_name(quote(name, safe="")),
        )

    def datasource_names(self, kind: str) -> list[str]:
        """Names of the data sources of this type, sorted."""
        found = self._list("list data sources", self._face.datasource.list_datasources)
        return sorted(str(source.get("name")) for source in found if source.get("type") == kind)

    def create_datasource(self, name: str, prometheus_url: str) -> dict[str, Any]:
        """Make a Prometheus data source that Grafana's server itself reads from `prometheus_url`."""
        body = {"name": name, "type": "prometheus", "url": prometheus_url, "access": "proxy"}
        answer = self._object(
            f"make data source {name!r}", lambda: self._face.datasource.create_datasource(body)
        )
        source = answer.get("datasource")
        return source if isinstance(source, dict) else answer

    def _note_status(self, response: Any, *_: Any, **__: Any) -> None:
        self._status = response.status_code

    def _find(self, what: str, call: Callable[[], Any]) -> dict[str, Any] | None:
        answer = self._call(f"read {what}", call, or_missing=True)
        return None if answer is None else self._checked_type(what, answer, dict)

    def _object(self, what: str, call: Callable[[], Any]) -> dict[str, Any]:
        return self._checked_type(what, self._call(what, call), dict)

    def _list(self, what: str, call: Callable[[], Any]) -> list[dict[str, Any]]:
        answer = self._checked_type(what, self._call(what, call), list)
        return [entry for entry in answer if isinstance(entry, dict)]

    def _checked_type(self, what: str, answer: Any, kind: type) -> Any:
        if not isinstance(answer, kind):
            raise self._not_grafana(what)
        return answer

    def _call(self, what: str, call: Callable[[], Any], *, or_missing: bool = False) -> Any:
        """The answer of one request, or one clear line. Raises: ServiceError."""
        from grafana_api.grafana_api import GrafanaException
        from requests import exceptions as http

        self._status = None
        try:
            return call()
        except GrafanaException as error:
            if not _is_grafanas(error.response):
                raise self._refused(what, error.status_code, "") from None
            if error.status_code == 404 and or_missing:
                return None
            raise self._refused(what, error.status_code, str(error.response["message"])) from None
        except http.TooManyRedirects:
            raise ServiceError(
                f"Grafana at {self.url}: it redirects elsewhere; give the address that it redirects to"
            ) from None
        except http.Timeout:
            raise ServiceError(f"Grafana at {self.url}: no answer in time ({what}); is it up?") from None
        except (http.JSONDecodeError, TypeError, ValueError) as error:
            # requests' own JSON error is a RequestException too, so it is caught before that.
            if self._status is None:
                raise ServiceError(f"Grafana at {self.url}: {what}: {self._clean(str(error))}") from None
            if self._status >= 400:
                raise self._refused(what, self._status, "") from None
            raise self._not_grafana(what) from None
        except http.RequestException as error:
            reason = _reason(error)
            raise ServiceError(
                f"Grafana at {self.url}: cannot be reached ({reason}); check the address, and that it is up"
            ) from None

    def _refused(self, what: str, status: int, message: str) -> ServiceError:
        """The error for a refusal; an answer that is not Grafana's own (a proxy, another service) says so."""
        step = _STEPS.get(status)
        if not message and step is None and status < 500:
            return self._not_grafana(what)
        said = f" ({self._clean(message)})" if message else ""
        return ServiceError(f"Grafana at {self.url}: {what}: {status}{said}{f'; {step}' if step else ''}")

    def _not_grafana(self, what: str) -> ServiceError:
        return ServiceError(
            f"Grafana at {self.url}: {what}: the answer ({self._status}) is not Grafana's; "
            "is this its address, with its path prefix if it has one?"
        )

    def _clean(self, text: str) -> str:
        """One line of at most 200 characters, without the token."""
        return " ".join(text.replace(self._token, "***").split())[:200]


def _parts(url: str) -> Any:
    problem = "Grafana address: expected http(s)://host[:port][/prefix], such as http://localhost:3000"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # a port or IPv6 address that is none
        raise InputError(problem) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InputError(problem)
    if parts.username or parts.password:
        raise InputError(
            "Grafana address: it holds a user name or password; use a service account token instead"
        )
    return parts


def _checked(uid: str) -> str:
    if not _UID.fullmatch(uid):
        raise InputError(f"Grafana uid {uid!r}: 1 to 40 letters, digits, - or _")
    return uid


def _is_grafanas(response: Any) -> bool:
    return isinstance(response, dict) and isinstance(response.get("message"), str)


def _reason(error: Exception) -> str:
    """The innermost cause in a few words: `Connection refused`, `Name or service not known`."""
    matches = re.findall(r"\] ([A-Za-z][^\]\[()'\"]{3,80})", str(error))
    return matches[-1].strip() if matches else type(error).__name__
