"""A number is a number: `true` and "3", which pydantic would take for one, are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

_SCALARS = (bool, int, float, str)


def mistaken(annotation: Any, value: Any) -> Iterator[tuple[tuple[int, ...], str, Any]]:
    """Place inside `value` (of a list), sentence and value of each scalar of another type than its field's.

    Whole numbers are numbers, and 1e3 is a whole number; anything else is left to pydantic.
    """
    options = list(_options(annotation))
    if isinstance(value, list | tuple):
        for entries in (get_args(option) for option in options if get_origin(option) is tuple):
            is_open = entries[-1:] == (...,)
            for index, entry in enumerate(value if is_open else value[: len(entries)]):
                for place, sentence, found in mistaken(entries[0 if is_open else index], entry):
                    yield (index, *place), sentence, found
        return
    wanted = {option for option in options if option in _SCALARS}
    wanted |= {type(word) for option in options if get_origin(option) is Literal for word in get_args(option)}
    found = next((scalar for scalar in _SCALARS if isinstance(value, scalar)), None)
    is_number = found in (int, float) and bool(wanted & {int, float})
    if not wanted or found is None or Any in options or found in wanted or is_number:
        return
    if float in wanted or int in wanted:
        yield (), f"input should be a valid {'number' if float in wanted else 'integer'}", value
    elif wanted == {bool}:
        yield (), "input should be true or false", value


def _options(annotation: Any) -> Iterator[Any]:
    """What a value may be, through unions and annotations."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _options(arguments[0])
    elif arguments and origin not in (Literal, tuple, dict):
        for argument in arguments:
            yield from _options(argument)
    else:
        yield annotation
