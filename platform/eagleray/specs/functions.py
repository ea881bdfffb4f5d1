"""The functions of the user's own that specs name as `module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from eagleray.errors import InputError


def import_function(function: str, what: str, error_type: type[InputError]) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises:
        error_type: the module cannot be imported, or has no such function; the message begins with `what`.
    """
    module_name, _, name = function.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise error_type(
            f"{what}: cannot import {module_name!r} ({error}); install it where the workers run, "
            "or name its file or folder in `code`"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise error_type(f"{what}: {module_name!r} has no function {name!r}")
    return found
