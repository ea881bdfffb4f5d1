"""Gateway to replica: framed connections of our own, below everything that knows HTTP, Ray or models.

`pool.Pool` has the replicas of an application, `client.Link` one connection, `server.LinkServer` is the
replica's end, and `calls` what its handler is given. Below them: `wire` (what both ends do alike), `frames`,
`tensors`, `ring`, `handshake`, `sockets`; the bytes are written down in `frames` and `tensors`.
"""
