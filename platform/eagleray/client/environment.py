"""Ray's own variables, as `eagleray env` exports them: where a cluster's jobs are, and its token."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from eagleray.errors import AuthError, InputError


def job_address() -> str | None:
    """The dashboard's address, RAY_API_SERVER_ADDRESS; None where it is not set."""
    return os.environ.get("RAY_API_SERVER_ADDRESS") or None


def is_http_address(url: str) -> bool:
    """Whether it is http(s)://HOST, with a port or without."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not close, a port above 65535
        return False


def is_loopback(url: str) -> bool:
    """Whether that is an address of this machine: no proxy of the environment leads there."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def token() -> str | None:
    """RAY_AUTH_TOKEN, or what is in the file RAY_AUTH_TOKEN_PATH.

    Raises:
        InputError: the file cannot be read.
        AuthError: it holds no text.
    """
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path is None or "RAY_AUTH_TOKEN" in os.environ:
        return os.environ.get("RAY_AUTH_TOKEN")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError as error:
        raise InputError(
            f"RAY_AUTH_TOKEN_PATH {path}: cannot be read: {error.strerror}; this shell seems to name a "
            'cluster that is gone: `eagleray up`, then `eval "$(eagleray env)"` again, or unset the variable'
        ) from None
    except UnicodeDecodeError as error:
        raise AuthError(
            f"RAY_AUTH_TOKEN_PATH {path}: holds no token: not text (byte {error.start}); name the file that "
            "`ray get-auth-token` wrote, or that `eagleray env` prints"
        ) from None
