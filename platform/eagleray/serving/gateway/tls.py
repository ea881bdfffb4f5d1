"""The gateway's certificate, loaded again when its files change."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from eagleray.errors import ServiceError

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0


class Certificate:
    """A chain and its private key in PEM files, and the context with which connections begin.

    Raises:
        ServiceError: the files cannot be read, or do not belong together.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self._seen = self._look()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        try:
            self.context.load_cert_chain(cert, key, _no_password)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise ServiceError(f"tls_cert {cert} with tls_key {key}: {_reason(error)}") from error

    def refresh(self) -> bool:
        """Take the files over where they have changed, and say so; new connections get the new certificate.

        What cannot be used (a key that is not the certificate's: only one of the two is there yet) is left,
        and said in the log.
        """
        try:
            seen = self._look()
            if seen == self._seen:
                return False
            self._seen = seen
            # First on a context of its own: a chain without its key would spoil the one that is used.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key, _no_password)
            self.context.load_cert_chain(self._cert, self._key, _no_password)
        except (OSError, ValueError) as error:
            log.warning("the new certificate cannot be used, the old one stays: %s", _reason(error))
            return False
        log.info("the certificate was loaded again")
        return True

    def _look(self) -> list[tuple[int, int, int] | None]:
        """What tells a file from the one that was there before."""
        found: list[tuple[int, int, int] | None] = []
        for path in (self._cert, self._key):
            try:
                status = os.stat(path)
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return found


def _no_password() -> str:
    """Else OpenSSL asks on the terminal."""
    raise ValueError("the key has a password; give one without")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"no certificate with its key in PEM ({error.reason or error})"
    return getattr(error, "strerror", None) or str(error)
