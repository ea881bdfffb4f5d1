"""The functions of the user's own that specs name as `module:function`."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from eagleray.errors import InputError


def import_function(function: str, what: str, error_type: type[InputError]) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises:
        error_type: the module cannot be imported, or has no such function; one line that begins with `what`.
    """
    module_name, _, name = function.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise error_type(
            f"{what}: cannot import {module_name!r} ({error}); install it where the workers run, "
            "or name its file or folder in `code`"
        ) from error
    except (Exception, SystemExit) as error:
        raise error_type(f"{what}: cannot import {module_name!r}: {told(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise error_type(f"{what}: {module_name!r} has no function or class {name!r}")
    return found


def told(error: BaseException) -> str:
    """What the user's own code raised, and where, in one line (sys.exit is a SystemExit)."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    place = _place(error)
    told = type(error).__name__ + (f": {text}" if text else "") + (f" ({place})" if place else "")
    return " ".join(told.split())


def _place(error: BaseException) -> str:
    """File and line: of the text that is no Python, or of the user's own innermost line."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without the line here that called
    installed = ("<", sys.prefix, sys.base_prefix)
    own = [frame for frame in frames if not frame.filename.startswith(installed)]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else ""
