"""Whether an HTTP server answers; standard library only."""

from __future__ import annotations

import http.client
import ssl
import urllib.request


def answers(url: str, *, token: str | None = None, timeout_s: float = 2.0) -> bool:
    """Whether a GET of `url`, with the token as a bearer where one is given, is answered 200.

    Without a token a certificate may be anybody's: whether one answers is all that is asked.
    """
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]  # never the user's proxy
    if url.startswith("https:") and token is None:
        handlers.append(urllib.request.HTTPSHandler(context=ssl._create_unverified_context()))
    opener = urllib.request.build_opener(*handlers)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_s) as response:
            return response.status == 200
    except (OSError, http.client.HTTPException):  # URLError is an OSError
        return False
