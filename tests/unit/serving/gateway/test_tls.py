"""HTTPS at the gateway: its certificate, another one while it runs, and files that are no certificate."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from eagleray.client import Client
from eagleray.cluster.probing import answers
from eagleray.errors import ServiceError
from eagleray.protocol import binary
from eagleray.protocol.infer import InferRequest
from eagleray.serving.gateway.settings import GatewaySettings
from eagleray.serving.gateway.tls import Certificate
from support.serving import Pretend, pretend, serving

PEM, NO_PASSWORD = serialization.Encoding.PEM, serialization.NoEncryption()


def certify(
    folder: Path, name: str, protection: serialization.KeySerializationEncryption = NO_PASSWORD
) -> None:
    """A self-signed certificate for 127.0.0.1 and its key, put in their places as a renewal does."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, protection)
    for file, content in (("cert.pem", certificate.public_bytes(PEM)), ("key.pem", private)):
        (folder / f".{file}").write_bytes(content)
        os.replace(folder / f".{file}", folder / file)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    certify(tmp_path, "first")
    return tmp_path


def settings_of(files: Path) -> GatewaySettings:
    return GatewaySettings(tls_cert=str(files / "cert.pem"), tls_key=str(files / "key.pem"))


@pytest.fixture
def ingress(files: Path) -> Iterator[Pretend]:
    with serving(pretend(), settings=settings_of(files)) as ingress:
        ingress.url = ingress.url.replace("http:", "https:")
        yield ingress


def shown(ingress: Pretend) -> str:
    """The name in the certificate that a new connection gets."""
    assert ingress.gateway
    return name_at(ingress.gateway.port)


def name_at(port: int) -> str:
    found = ssl.get_server_certificate(("127.0.0.1", port), timeout=60)
    return str(x509.load_pem_x509_certificate(found.encode()).subject.rfc4514_string())


def test_requests_come_by_https_and_by_nothing_else(ingress: Pretend, files: Path) -> None:
    trusted = ssl.create_default_context(cafile=str(files / "cert.pem"))
    with httpx.Client(base_url=ingress.url, verify=trusted, trust_env=False) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.post("/models/iris:predict", json={"inputs": [1, 2, 3, 4]}).status_code == 200
        large = client.post("/v2/models/iris/infer", content=b" " * 2**20)
        assert large.status_code == 400
    with pytest.raises(httpx.TransportError):
        httpx.get(ingress.url.replace("https:", "http:"), trust_env=False)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(ingress.url, trust_env=False)
    assert answers(f"{ingress.url}/v2/health/live"), "whether it lives is asked of any certificate"


@pytest.fixture
def laned(files: Path) -> Iterator[tuple[Pretend, httpx.Client]]:
    """With a fast lane, real links and a client that trusts its certificate."""
    trusted = ssl.create_default_context(cafile=str(files / "cert.pem"))
    found = pretend(over_links=True)
    assert found.links is not None
    try:
        with serving(found, settings=settings_of(files)):
            found.url = found.url.replace("http:", "https:")
            with httpx.Client(base_url=found.url, verify=trusted, trust_env=False, timeout=60) as client:
                yield found, client
    finally:
        found.links.close()


def test_the_fast_lane_and_links_carry_what_comes_by_https(
    laned: tuple[Pretend, httpx.Client], taken: list[str], fates: list[str]
) -> None:
    ingress, client = laned
    image = {
        "name": "image",
        "datatype": "FP32",
        "shape": [1, 1, 8, 8],
        "data": [float(n) for n in range(64)],
    }
    small = client.post("/v2/models/digits/infer", json={"inputs": [image]})
    assert (small.status_code, small.json()["outputs"][1]["data"]) == (200, [sum(range(64)) % 10])

    images = np.arange(15_000 * 64, dtype=np.float32).reshape(-1, 1, 8, 8) % 17  # 3.8 MB: in a ring's slot
    sent = binary.write_request(InferRequest({"image": images}, parameters={"binary_data_output": True}))
    headers = {binary.HEADER: str(sent.json_bytes)}
    for _ in range(3):
        large = client.post("/v2/models/digits/infer", content=sent.body, headers=headers)
        assert large.status_code == 200, large.text
        found = binary.read_response(large.content, large.headers[binary.HEADER]).outputs["class"]
        assert np.array_equal(found, images.reshape(-1, 64).sum(axis=1) % 10)

    asked = {"model": "gpt", "prompt": "abc", "max_tokens": 2000, "stream": True}
    with client.stream("POST", "/v1/completions", json=asked) as answer:
        assert answer.status_code == 200
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
    assert text == ("abc" * 667)[:2000]
    assert fates == ["answered"]
    assert len(taken) == 4
    assert ingress.links is not None
    [transport] = ingress.links._by_loop.values()
    ways = transport.ways()
    assert (ways["digits", "2", "link"], ways["gpt", "1", "link"]) == (4, 1)
    assert transport.laned() == {("digits", "2"): 4, ("gpt", "1"): 1}
    assert not any(number for (*_, way), number in ways.items() if way == "serve")


def test_the_sdk_takes_a_certificate_that_the_environment_names(
    ingress: Pretend, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(files / "cert.pem"))
    with Client(ingress.url) as client:
        assert client.predict("iris", [5.1, 3.5, 1.4, 0.2])["label"].shape == (1,)


def test_what_is_no_request_is_told_so_there_too(ingress: Pretend, files: Path) -> None:
    trusted = ssl.create_default_context(cafile=str(files / "cert.pem"))
    assert ingress.gateway
    plain = socket.create_connection(("127.0.0.1", ingress.gateway.port), timeout=60)
    with trusted.wrap_socket(plain, server_hostname="127.0.0.1") as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
        received = b""
        while part := client.recv(65536):
            received += part
    assert received.startswith(b"HTTP/1.1 400")
    assert b"no Host header" in received


def test_an_old_protocol_is_not_spoken(ingress: Pretend) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match=r"TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    assert ingress.gateway
    with (
        socket.create_connection(("127.0.0.1", ingress.gateway.port), timeout=60) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(plain)


def test_a_renewed_certificate_is_taken_without_a_restart(ingress: Pretend, files: Path) -> None:
    trusted = ssl.create_default_context(cafile=str(files / "cert.pem"))
    assert shown(ingress) == "CN=first"
    with httpx.Client(base_url=ingress.url, verify=trusted, trust_env=False) as client:
        client.get("/v2")
        certify(files, "second")
        deadline = time.monotonic() + 60
        while shown(ingress) != "CN=second":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert client.get("/v2").status_code == 200, "an open connection goes on"


def test_half_a_renewal_changes_nothing(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = Certificate(files / "cert.pem", files / "key.pem")
    assert not found.refresh()
    old_key = (files / "key.pem").read_bytes()
    certify(files, "second")
    new_key = (files / "key.pem").read_bytes()
    (files / "key.pem").write_bytes(old_key)
    assert not found.refresh()
    assert "the new certificate cannot be used, the old one stays: no certificate with its key" in caplog.text
    (files / "cert.pem").rename(files / "away.pem")
    assert not found.refresh()
    (files / "away.pem").rename(files / "cert.pem")
    (files / "key.pem").write_bytes(new_key)
    assert found.refresh()
    assert not found.refresh()


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "key.pem").unlink(), "No such file"),
        (lambda folder: (folder / "cert.pem").write_text("none"), "no certificate with its key in PEM"),
        (
            lambda folder: certify(folder, "x", serialization.BestAvailableEncryption(b"secret")),
            "has a password",
        ),
    ],
    ids=["no key", "no certificate", "a password"],
)
def test_files_that_cannot_be_used_are_said_at_the_start(files: Path, break_it, said: str) -> None:
    break_it(files)
    with pytest.raises(ServiceError, match=rf"tls_cert .*cert\.pem with tls_key .*key\.pem: .*{said}"):
        Certificate(files / "cert.pem", files / "key.pem")
