"""Whether an HTTP server answers; standard library only."""

from __future__ import annotations

import http.client
import urllib.request


def answers(url: str, *, token: str | None = None, timeout_s: float = 2.0) -> bool:
    """Whether a GET of `url`, with the token as a bearer where one is given, is answered 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through the user's proxy
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_s) as response:
            return response.status == 200
    except (OSError, http.client.HTTPException):  # URLError is an OSError
        return False
