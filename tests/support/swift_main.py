"""OpenStack Swift on this machine: proxy (with the S3 API), account, container and object server.

`python swift_main.py FOLDER PORT` writes configuration and data below FOLDER and serves until it is ended.
The code is imported once and the four servers are forked from it: four interpreters take four times as long.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

from swift.account import server as _account  # noqa: F401  imported before the fork, as all below
from swift.common.ring import RingBuilder
from swift.common.wsgi import run_wsgi
from swift.container import server as _container  # noqa: F401
from swift.obj import server as _object  # noqa: F401
from swift.proxy import server as _proxy  # noqa: F401

STORES = ("account", "container", "object")
_PR_SET_PDEATHSIG = 1

_COMMON = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
user = {user}
log_level = WARNING
log_address = {folder}/no-syslog
"""
_STORE = """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats bulk s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_eagleray_tests = secret .admin
[filter:slo]
use = egg:swift#slo
"""


def main(folder: Path, port: int) -> None:
    """Serve until this process is ended; the servers end with it."""
    (folder / "devices/disk").mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = eagleray\n[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    ports = {kind: _free_port() for kind in STORES}
    for kind in STORES:
        _ring(kind, ports[kind]).save(f"{folder}/{kind}.ring.gz")
    user = _user()
    for kind, found in {**ports, "proxy": port}.items():
        text = _PROXY if kind == "proxy" else _STORE.format(kind=kind)
        (folder / f"{kind}.conf").write_text(_COMMON.format(port=found, folder=folder, user=user) + text)
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            sys.exit(run_wsgi(f"{folder}/{kind}.conf", f"{kind}-server"))
    os.wait()  # one that ends by itself ends all
    sys.exit(1)


def _ring(kind: str, port: int) -> RingBuilder:
    builder = RingBuilder(part_power=1, replicas=1, min_part_hours=0)
    device = {"id": 0, "region": 1, "zone": 1, "weight": 1.0, "device": "disk", "meta": ""}
    place = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
    builder.add_dev(device | place)
    builder.rebalance()
    return builder.get_ring()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
