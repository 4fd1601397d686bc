"""An S3 server on the loopback address, and a proxy before it that fails on request."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from pyarrow import fs


@contextmanager
def s3_server() -> Iterator[int]:
    """moto's server on a free port, which is given."""
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    server.start()
    try:
        yield int(server.get_host_and_port()[1])
    finally:
        server.stop()


def use_test_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process and its children sign requests as the server likes it."""
    values = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "EC2_METADATA_DISABLED": "true"}
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)


def store(port: int) -> fs.S3FileSystem:
    """The server's file system, which may make buckets."""
    return fs.S3FileSystem(
        endpoint_override=f"127.0.0.1:{port}",
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )


def uri(bucket: str, port: int) -> str:
    """Where images lie in a bucket, as data.root has it."""
    return f"s3://{bucket}/images?endpoint_override=127.0.0.1%3A{port}&scheme=http&region=us-east-1"


class FailingProxy:
    """Relays connections to a port of this machine. `fail` says what happens to the connection of a number: None (it is
    relayed), "cut" (closed within the answer's body), "500", or "403"."""

    def __init__(self, target: int, fail: Callable[[int], str | None] = lambda number: None) -> None:
        self.target, self.fail = target, fail
        self.numbers = itertools.count()
        self.failed: list[str] = []
        self.requests: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request a connection: the client is told to close after it."""
        with contextlib.suppress(OSError), client:
            request = b""
            while b"\r\n\r\n" not in request:
                part = client.recv(65536)
                if not part:
                    return
                request += part
            head, _, body = request.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length")), 0)
            while len(body) < length:
                body += client.recv(65536)
            self.requests.append(lines[0])
            failure = self.fail(next(self.numbers))
            if failure is not None:
                self.failed.append(failure)
            if failure in ("500", "403"):
                code = "InternalError" if failure == "500" else "AccessDenied"
                text = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                client.sendall(
                    f"HTTP/1.1 {failure} No\r\nContent-Type: application/xml\r\nConnection: close\r\n"
                    f"Content-Length: {len(text)}\r\n\r\n".encode()
                    + text
                )
                return
            lines = [line for line in lines if not line.lower().startswith("connection:")] + ["Connection: close"]
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                server.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
                sent = 0
                while part := server.recv(65536):
                    if failure == "cut" and sent + len(part) > 600:
                        client.sendall(part[:600])
                        return
                    client.sendall(part)
                    sent += len(part)
