"""A nested state dict <-> named tensors and plain JSON, exactly and without pickle.

Plain JSON values stand for themselves. What JSON cannot say is an object with the key `$`:
`tensor` (its name), `tuple`, `dict` (keys that are not plain strings), `float` (inf, -inf, nan).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_TAG = "$"


def flatten(tree: Any) -> tuple[dict[str, Tensor], Json]:
    """The tensors of `tree` by name, and everything else as JSON.

    Args:
        tree: Nested dicts (keys: str, int, float, bool, None or tuples of these), lists and tuples of
            tensors, str, int, float (inf and nan too), bool and None. A subclass of dict, list or tuple comes
            back as dict, list or tuple.

    Returns:
        The tensors as they are in `tree` (not copied) by the path to them, and the JSON that refers to them.

    Raises:
        TypeError: a value or key is of another type; the message has its path.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _encode(tree, "", tensors)


def unflatten(tensors: Mapping[str, Tensor], json: Json) -> Any:
    """The tree that `flatten` was given. Raises: KeyError where `tensors` lacks one that `json` names."""
    if isinstance(json, list):
        return [unflatten(tensors, item) for item in json]
    if not isinstance(json, dict):
        return json
    if _TAG not in json:
        return {key: unflatten(tensors, value) for key, value in json.items()}
    return _tagged(tensors, json)


def _tagged(tensors: Mapping[str, Tensor], json: dict[str, Any]) -> Any:
    value = json["value"]
    match json[_TAG]:
        case "tensor":
            return tensors[value]
        case "float":
            return float(value)
        case "tuple":
            return tuple(unflatten(tensors, item) for item in value)
        case "dict":
            return {unflatten(tensors, key): unflatten(tensors, item) for key, item in value}
        case other:
            raise ValueError(f"unknown tag {other!r}: written by a newer eagleray?")


def _encode(tree: Any, path: str, tensors: dict[str, Tensor]) -> Json:
    """What is frequent comes first: a step waits for this."""
    if tree is None or isinstance(tree, bool | str) or type(tree) is int:
        return tree
    if type(tree) is float:
        return tree if math.isfinite(tree) else {_TAG: "float", "value": repr(tree)}
    if _is_tensor(tree):
        return {_TAG: "tensor", "value": _name(tree, path, tensors)}
    if isinstance(tree, dict | Mapping):
        return _encode_mapping(tree, path, tensors)
    if isinstance(tree, list | tuple):
        items = [_encode(item, f"{path}/{index}", tensors) for index, item in enumerate(tree)]
        return {_TAG: "tuple", "value": items} if isinstance(tree, tuple) else items
    raise TypeError(
        f"{path or '/'}: a {type(tree).__module__}.{type(tree).__qualname__} cannot be saved; "
        "save tensors, numbers, strings, bools, None, and dicts, lists and tuples of them"
    )


def _encode_mapping(tree: Mapping[Any, Any], path: str, tensors: dict[str, Tensor]) -> Json:
    def encode(key: Any, value: Any) -> Json:
        return _encode(value, f"{path}/{_escape(key)}", tensors)

    if all(type(key) is str for key in tree) and _TAG not in tree:
        return {key: encode(key, value) for key, value in tree.items()}
    pairs: list[Json] = []
    for key, value in tree.items():
        if _is_tensor(key):
            raise TypeError(f"{path or '/'}: a tensor cannot be a key")
        pairs.append([_encode(key, f"{path}/(key)", tensors), encode(key, value)])
    return {_TAG: "dict", "value": pairs}


def _is_tensor(value: Any) -> bool:
    return _is_tensor_type(type(value))


@cache
def _is_tensor_type(kind: type) -> bool:
    if not hasattr(kind, "data_ptr"):
        return False
    from torch import Tensor

    return issubclass(kind, Tensor)


def _escape(key: Any) -> str:
    text = str(key)
    return text.replace("~", "~0").replace("/", "~1") if "~" in text or "/" in text else text


def _name(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    name = path or "/"
    while name in tensors:  # the keys 0 and "0" of one dict
        name += "'"
    tensors[name] = tensor
    return name
