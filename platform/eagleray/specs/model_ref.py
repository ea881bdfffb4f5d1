"""References to model versions: "digits", "digits@candidate", "digits/versions/3"; and what names may be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from eagleray.errors import InputError, ModelNotFound

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"[1-9]\d{0,8}")


class Numbered(Protocol):
    """A version as whoever keeps it describes it."""

    @property
    def version(self) -> int:
        """From 1 on."""
        ...

    @property
    def aliases(self) -> tuple[str, ...]:
        """Those that point to it."""
        ...


NumberedT = TypeVar("NumberedT", bound=Numbered)


@dataclass(frozen=True)
class Ref:
    """A reference to a version, taken apart: a version, an alias, or neither (the newest)."""

    name: str
    version: int | None = None
    alias: str | None = field(default=None)

    @classmethod
    def parse(cls, text: str) -> Ref:
        """The parts of "digits", "digits@alias" or "digits/versions/3". Raises: InputError."""
        name, at, alias = text.partition("@")
        name, slash, version = name.partition("/versions/")
        if (at and slash) or (slash and not _VERSION.fullmatch(version)):
            raise InputError(f"model {text[:80]!r}: write NAME, NAME@ALIAS or NAME/versions/NUMBER")
        check_name(name)
        if at:
            check_alias(alias)
        return cls(name, int(version) if slash else None, alias if at else None)


def check_name(name: str) -> str:
    """`name` itself. Raises: InputError where no model can be called so."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"model name {_shown(name)} cannot be used: take 1 to 63 lower-case letters, digits, dots, "
            "dashes and underscores, the first one a letter or digit"
        )
    return name


def check_alias(alias: str) -> str:
    """`alias` itself. Raises: InputError: it is none, or would be taken for a version."""
    if not NAME.fullmatch(alias) or alias == "latest" or re.fullmatch(r"v?\d+", alias):
        raise InputError(
            f"alias {_shown(alias)} cannot be used: take 1 to 63 lower-case letters, digits, dots, "
            'dashes and underscores, but no number and not "latest" (a name without an alias means that)'
        )
    return alias


def pick(ref: Ref, versions: Sequence[NumberedT]) -> NumberedT:
    """The version of `versions` (all of one name, one at least) that `ref` means. Raises: ModelNotFound."""
    if ref.version is None and ref.alias is None:
        return max(versions, key=lambda version: version.version)
    for version in versions:
        if version.version == ref.version or (ref.alias is not None and ref.alias in version.aliases):
            return version
    numbers = ", ".join(str(version.version) for version in versions[-10:])
    aliases = ", ".join(sorted(alias for version in versions for alias in version.aliases)) or "none"
    wanted = f"alias {ref.alias!r}" if ref.alias is not None else f"version {ref.version}"
    raise ModelNotFound(f"model {ref.name!r} has no {wanted}; versions: {numbers}; aliases: {aliases}")


def similar(text: str, known: Sequence[str]) -> list[str]:
    """Those of `known` that are most like `text`, a few at most."""
    import difflib

    return difflib.get_close_matches(text, known, n=3, cutoff=0.7)


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}… ({len(text)} characters)"
