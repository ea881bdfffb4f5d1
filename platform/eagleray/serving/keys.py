"""API keys: made once, kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from eagleray.errors import AuthError, InputError

Scope = Literal["infer", "admin"]
SCOPES: tuple[Scope, ...] = ("infer", "admin")

PREFIX = "er_"
_UNKNOWN = "the API key is wrong or was revoked; `eagleray keys list` shows the good ones"
_KEY = re.compile(r"er_([0-9a-f]{8})_([0-9a-f]{64})")
_NAME = re.compile(r"[\w][\w .@:/+-]{0,63}")
# Compared with where there is no such key, so that an unknown id takes as long as a wrong secret.
_NO_KEY = hashlib.sha256(b"no key").hexdigest()


class WrongScope(AuthError):
    """The key is good, but not for this."""


@dataclass(frozen=True)
class Key:
    """What is kept of a key: everything but the key itself."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    sha256: str
    """Of the whole key, in hexadecimal."""
    created_at: float
    """Seconds since the epoch."""

    def to_public(self) -> dict[str, Any]:
        """What anybody with an admin key may see."""
        return {"id": self.id, "name": self.name, "scopes": list(self.scopes), "created_at": self.created_at}


@dataclass(frozen=True)
class KeyRing:
    """All keys that open something; a changed ring is a new value."""

    keys: Mapping[str, Key] = field(default_factory=dict)

    def create(
        self, name: str, scopes: Sequence[str], *, now_s: float | None = None
    ) -> tuple[KeyRing, Key, str]:
        """The ring with one more key, that key, and its text `er_<id>_<256 bits>`, which is kept nowhere.

        Raises:
            InputError: the name or a scope is not one.
        """
        if not _NAME.fullmatch(name):
            raise InputError(
                f"key name {name[:80]!r}: expected 1 to 64 letters, digits or ' .@:/+-_', to know it by"
            )
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            found = f"scope {unknown[0]!r} is not known" if unknown else "no scope was given"
            raise InputError(f"key {name!r}: {found}; give one or more of: {', '.join(SCOPES)}")
        key_id = secrets.token_hex(4)
        while key_id in self.keys:
            key_id = secrets.token_hex(4)
        text = f"er_{key_id}_{secrets.token_hex(32)}"
        wanted: tuple[Scope, ...] = tuple(scope for scope in SCOPES if scope in scopes)
        key = Key(key_id, name, wanted, _sha256(text), time.time() if now_s is None else now_s)
        return KeyRing({**self.keys, key_id: key}), key, text

    def revoke(self, key_id: str) -> KeyRing:
        """The ring without that key. Raises: InputError where there is none of that id."""
        if key_id not in self.keys:
            raise InputError(f"no key has the id {key_id[:80]!r}; known: {', '.join(self.keys) or 'none'}")
        return KeyRing({other: key for other, key in self.keys.items() if other != key_id})

    def find(self, text: str) -> Key | None:
        """The key whose text this is, in a time that does not tell how near a wrong one came."""
        matched = _KEY.fullmatch(text)
        key = self.keys.get(matched[1]) if matched else None
        is_right = hmac.compare_digest(_sha256(text), key.sha256 if key else _NO_KEY)
        return key if is_right else None

    def check(self, authorization: str, scope: Scope) -> Key:
        """The key that an `Authorization` header's value carries, if it may do `scope`.

        Raises:
            WrongScope: the key is good, but not for `scope`.
            AuthError: there is no key, or one that is wrong or was revoked.
        """
        kind, _, text = authorization.strip().partition(" ")
        if not text or kind.lower() != "bearer":
            raise AuthError("this needs an API key: send `Authorization: Bearer er_…`")
        key = self.find(text.strip())
        if key is None:
            raise AuthError(_UNKNOWN)
        if scope not in key.scopes:
            raise WrongScope(
                f"the API key {key.name!r} has the scope {', '.join(key.scopes)}; this needs {scope}"
            )
        return key

    def check_optional(self, authorization: str) -> None:
        """Where no key is needed any text passes (OpenAI's clients always send one), but no bad key of ours.

        Raises: AuthError: it has the form of our keys, and is wrong or was revoked.
        """
        if carries_key(authorization) and self.find(_text(authorization)) is None:
            raise AuthError(_UNKNOWN)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON; hashes included, keys not."""
        return {key_id: {**key.to_public(), "sha256": key.sha256} for key_id, key in self.keys.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> KeyRing:
        """What `to_json` gave."""
        return cls(
            {
                str(key_id): Key(
                    id=str(entry["id"]),
                    name=str(entry["name"]),
                    scopes=cast("tuple[Scope, ...]", tuple(entry["scopes"])),
                    sha256=str(entry["sha256"]),
                    created_at=float(entry["created_at"]),
                )
                for key_id, entry in values.items()
            }
        )


def carries_key(authorization: str) -> bool:
    """Whether an `Authorization` header's value has something of the form of our keys, good or not."""
    return _text(authorization).startswith(PREFIX)


def _text(authorization: str) -> str:
    return authorization.strip().partition(" ")[2].strip()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
