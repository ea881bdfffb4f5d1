"""Messages that the client and the server share: neither ray nor torch is imported here."""
