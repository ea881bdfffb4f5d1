"""The id of a request."""

from __future__ import annotations

import re

from eagleray.serving import ids

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(given: str | None) -> str:
    """The client's id where it is a usable one, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else ids.fresh(8)
