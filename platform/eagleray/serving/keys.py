"""API keys: made once, kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from eagleray.errors import AuthError, InputError
from eagleray.protocol.key_terms import KeyTerms

Scope = Literal["infer", "admin"]
SCOPES: tuple[Scope, ...] = ("infer", "admin")

PREFIX = "er_"
OVERLAP_S = 86_400.0
"""For so long the old text of a rotated key is good, where nothing else is said."""
MAX_OVERLAP_S = 90 * 86_400.0
_UNKNOWN = "the API key is wrong or was revoked; `eagleray keys list` shows the good ones"
_YEAR_9999_S = 253_402_300_799
_LENGTH = len(PREFIX) + 8 + 1 + 64
_NAME = re.compile(r"[\w][\w .@:/+-]{0,63}")
# Compared with where there is no such key, so that an unknown id takes as long as a wrong secret.
_NO_KEY = hashlib.sha256(b"no key").hexdigest()


class WrongScope(AuthError):
    """The key is good, but not for this."""


class WrongModel(WrongScope):
    """The key is good, but not for this model."""


@dataclass(frozen=True)
class Older:
    """The text that a key had before it was rotated."""

    sha256: str
    good_until: float
    """Seconds since the epoch."""


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
    terms: KeyTerms = field(default_factory=KeyTerms)
    older: Older | None = None

    def require(self, scope: Scope) -> None:
        """Raises: WrongScope where the key is not good for it."""
        if scope not in self.scopes:
            raise WrongScope(
                f"the API key {self.name!r} has the scope {', '.join(self.scopes)}; this needs {scope}"
            )

    def require_model(self, model: str) -> None:
        """Raises: WrongModel where the key may not use the model of this name."""
        if self.terms.models and not self.terms.allows(model):
            allowed = ", ".join(self.terms.models)
            raise WrongModel(f"the API key {self.name!r} is for {allowed}, not for the model {model[:63]!r}")

    def is_expired(self, now_s: float) -> bool:
        """Whether its time is over; seconds since the epoch."""
        return self.terms.expires_at is not None and now_s >= self.terms.expires_at

    @property
    def expiry(self) -> str:
        """When its time is over, in UTC: the reader may be anywhere."""
        at_s = self.terms.expires_at
        if at_s is None:
            return "never"
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(at_s, _YEAR_9999_S)))

    def to_public(self) -> dict[str, Any]:
        """What anybody with an admin key may see."""
        return {
            "id": self.id,
            "name": self.name,
            "scopes": list(self.scopes),
            "created_at": self.created_at,
            "terms": self.terms.to_json(),
            "old_text_until": None if self.older is None else self.older.good_until,
        }


@dataclass(frozen=True)
class KeyRing:
    """All keys that open something; a changed ring is a new value."""

    keys: Mapping[str, Key] = field(default_factory=dict)

    def create(
        self,
        name: str,
        scopes: Sequence[str],
        terms: KeyTerms | None = None,
        *,
        now_s: float | None = None,
    ) -> tuple[KeyRing, Key, str]:
        """The ring with one more key, that key, and its text `er_<id>_<256 bits>`, which is kept nowhere.

        Raises:
            InputError: the name or a scope is not one, or it would be expired at once.
        """
        now_s = time.time() if now_s is None else now_s
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
        text = _text_of(key_id)
        wanted: tuple[Scope, ...] = tuple(scope for scope in SCOPES if scope in scopes)
        key = Key(key_id, name, wanted, _sha256(text), now_s, terms or KeyTerms())
        if key.is_expired(now_s):
            raise InputError(f"key {name!r}: expires_at is {key.expiry}, which is past")
        return KeyRing({**self.keys, key_id: key}), key, text

    def rotate(
        self, key_id: str, overlap_s: float = OVERLAP_S, *, now_s: float | None = None
    ) -> tuple[KeyRing, Key, str]:
        """The ring where that key has a new text, the key, and the text; the old one is good for `overlap_s`.

        A text that was old already is good no longer.

        Raises:
            InputError: there is none of that id, or it is expired, or the time is none.
        """
        now_s = time.time() if now_s is None else now_s
        key = self._of(key_id)
        if key.is_expired(now_s):
            raise InputError(f"key {key.name!r} expired on {key.expiry}; make a new one")
        if not 0 <= overlap_s <= MAX_OVERLAP_S:
            raise InputError(f"overlap_s: expected 0 to {MAX_OVERLAP_S:.0f} seconds (90 days)")
        text = _text_of(key_id)
        older = Older(key.sha256, now_s + overlap_s) if overlap_s else None
        key = replace(key, sha256=_sha256(text), older=older)
        return KeyRing({**self.keys, key_id: key}), key, text

    def revoke(self, key_id: str) -> KeyRing:
        """The ring without that key. Raises: InputError where there is none of that id."""
        self._of(key_id)
        return KeyRing({other: key for other, key in self.keys.items() if other != key_id})

    def find(self, text: str, *, now_s: float | None = None) -> Key | None:
        """The key whose text this is, in a time that does not tell how near a wrong one came.

        The text before the last rotation is its text too, as long as that is good. The key may be expired.
        """
        is_formed = len(text) == _LENGTH and text.startswith(PREFIX) and text[11] == "_"
        key = self.keys.get(text[3:11]) if is_formed else None
        digest = _sha256(text)
        is_right = hmac.compare_digest(digest, key.sha256 if key else _NO_KEY)
        if key is None or is_right:
            return key
        older = key.older
        if older is None or not hmac.compare_digest(digest, older.sha256):
            return None
        return key if (time.time() if now_s is None else now_s) < older.good_until else None

    def check(self, authorization: str, scope: Scope, *, now_s: float | None = None) -> Key:
        """The key that an `Authorization` header's value carries, if it may do `scope`.

        Raises:
            WrongScope: the key is good, but not for `scope`.
            AuthError: there is no key, or one that is wrong, expired or was revoked.
        """
        kind, _, text = authorization.strip().partition(" ")
        if not text or kind.lower() != "bearer":
            raise AuthError("this needs an API key: send `Authorization: Bearer er_…`")
        key = self._good(text.strip(), now_s)
        key.require(scope)
        return key

    def check_optional(self, authorization: str, *, now_s: float | None = None) -> Key | None:
        """The key, if one of ours is carried; any other text passes: OpenAI's clients always send one.

        Raises: AuthError: it has the form of our keys, and is wrong, expired or was revoked.
        """
        text = _text(authorization)
        return self._good(text, now_s) if text.startswith(PREFIX) else None

    def _good(self, text: str, now_s: float | None) -> Key:
        key = self.find(text, now_s=now_s)
        if key is None:
            raise AuthError(_UNKNOWN)
        if key.terms.expires_at is not None:
            now_s = time.time() if now_s is None else now_s
            if key.is_expired(now_s):
                raise AuthError(
                    f"the API key {key.name!r} expired on {key.expiry}; `eagleray keys create` makes one"
                )
        return key

    def _of(self, key_id: str) -> Key:
        if key_id not in self.keys:
            raise InputError(f"no key has the id {key_id[:80]!r}; known: {', '.join(self.keys) or 'none'}")
        return self.keys[key_id]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON; hashes included, keys not."""
        return {key_id: _key_to_json(key) for key_id, key in self.keys.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> KeyRing:
        """What `to_json` gave, or that of a version before keys had terms."""
        return cls({str(key_id): _key_from_json(entry) for key_id, entry in values.items()})


def _key_to_json(key: Key) -> dict[str, Any]:
    older = None if key.older is None else {"sha256": key.older.sha256, "good_until": key.older.good_until}
    return {**key.to_public(), "sha256": key.sha256, "older": older}


def _key_from_json(entry: Mapping[str, Any]) -> Key:
    older = entry.get("older")
    return Key(
        id=str(entry["id"]),
        name=str(entry["name"]),
        scopes=cast("tuple[Scope, ...]", tuple(entry["scopes"])),
        sha256=str(entry["sha256"]),
        created_at=float(entry["created_at"]),
        terms=KeyTerms.from_json(entry.get("terms", {})),
        older=None if older is None else Older(str(older["sha256"]), float(older["good_until"])),
    )


def carries_key(authorization: str) -> bool:
    """Whether an `Authorization` header's value has something of the form of our keys, good or not."""
    return _text(authorization).startswith(PREFIX)


def _text_of(key_id: str) -> str:
    return f"{PREFIX}{key_id}_{secrets.token_hex(32)}"


def _text(authorization: str) -> str:
    return authorization.strip().partition(" ")[2].strip()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
