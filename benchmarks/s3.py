"""An S3 server on this machine: moto in its own process, behind a proxy that counts requests and can spoil them."""

from __future__ import annotations

import http.client
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

START_S = 60.0
DELAY_S = 3.0
SPOILS = ("503", "403", "reset", "delay", "answer lost", "truncated read")
"""What the proxy can do to a request. Answer lost: the server has done the work, but the client never hears of it."""

Spoil = Callable[[str], str | None]
"""Given an operation (PUT, GET, LIST, HEAD, DELETE, POST), one of SPOILS or None."""

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "expect"})
_DENIALS = {"503": (503, "SlowDown"), "403": (403, "AccessDenied")}


class StandIn:
    """A context manager. url: the proxy's address; direct_url: the server's; requests: counted by operation."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.spoil: Spoil = lambda operation: None
        self._lock = threading.Lock()
        self.port = _free_port()
        self.direct_url = f"http://127.0.0.1:{self.port}"
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._proxy.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._proxy.server_port}"

    def environment(self) -> dict[str, str]:
        """Environment variables with which s3:// URLs lead to the proxy."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        }

    def __enter__(self) -> Self:
        command = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{self.port}'])"
        self._server = subprocess.Popen(
            [sys.executable, "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self._wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        self._server.kill()
        self._server.wait()

    def make_bucket(self, name: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        scope = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request"
        connection.request("PUT", f"/{name}", headers={"Authorization": scope})
        if (status := connection.getresponse().status) != 200:
            raise RuntimeError(f"bucket {name}: the S3 stand-in answers {status}")
        connection.close()

    def count(self, operation: str) -> str | None:
        """Count one request and say whether to spoil it."""
        with self._lock:
            self.requests[operation] += 1
            return self.spoil(operation)

    def _wait(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self._server.poll() is None:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(0.05)
        raise RuntimeError(f"the S3 stand-in did not start in {START_S:g} s")


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        owner = stand_in

    return Handler


class _Handler(BaseHTTPRequestHandler):
    """Forwards one request, or spoils it."""

    protocol_version = "HTTP/1.1"
    owner: StandIn

    def handle_one_request(self) -> None:
        with suppress(OSError):  # the client went away
            super().handle_one_request()

    def log_message(self, format: str, *args: Any) -> None: ...

    def _forward(self) -> None:
        body = self._body()
        spoil = self.owner.count(_operation(self.command, self.path))
        if spoil in _DENIALS:
            self._deny(*_DENIALS[spoil])
            return
        if spoil == "reset":
            self._reset()
            return
        if spoil == "delay":
            time.sleep(DELAY_S)
        response, answer = self._upstream(body)
        if spoil == "answer lost":
            self._reset()
            return
        self._answer(response, answer, cut=spoil == "truncated read")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward  # noqa: N815 - the names that http.server calls

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def _upstream(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.owner.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        headers |= {"Host": self.headers["Host"], "Content-Length": str(len(body)), "Connection": "close"}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response, answer

    def _answer(self, response: http.client.HTTPResponse, answer: bytes, cut: bool) -> None:
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in _HOP | {"content-length"}:
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(answer)))
        self.end_headers()
        if cut and len(answer) > 1:
            self.wfile.write(answer[: len(answer) // 2])
            self.wfile.flush()
            self._reset()
        else:
            self.wfile.write(answer)

    def _deny(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _reset(self) -> None:
        """Close with RST, as a router does that has lost the connection."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()


def _operation(method: str, path: str) -> str:
    query = path.partition("?")[2]
    is_list = method == "GET" and ("list-type=" in query or "prefix=" in query)
    return "LIST" if is_list else method


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
