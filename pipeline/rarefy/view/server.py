"""The local HTTP server of ``rarefy view``: who may ask, and the standard library's server around the app."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import traceback
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from rarefy.errors import DataError, OutputError, RarefyError, bad
from rarefy.shards.reader import json_object
from rarefy.view.app import BAD_REQUEST, TEXT, App, Response, error_response

LOCAL, EVERYWHERE = "127.0.0.1", ("0.0.0.0", "::")
FORBIDDEN, SEE_OTHER, SERVER_ERROR = 403, 303, 500
MOST_BODY_BYTES = 64 << 20  # keys of a few million images
NO_TOKEN = b"open the address that rarefy view has printed: it has a token that is missing here\n"
WRONG_LENGTH = b"a request of this kind needs a Content-Length of at most 64 MiB\n"
FAULT = b"this is a fault of rarefy's own; the terminal where rarefy view runs shows it, please report it"
WRONG_HOST = b"this server answers only under the address that rarefy view has printed\n"


class ViewServer(ThreadingHTTPServer):
    """Serves an app to whoever knows the token.

    host: the address to listen on; port: 0 for any free one. Raises OutputError if the address cannot be used.
    """

    daemon_threads = True
    block_on_close = False  # a browser keeps its connections open

    def __init__(self, app: App, host: str = LOCAL, port: int = 0) -> None:
        self.app, self.token = app, secrets.token_urlsafe(24)
        self.name = socket.gethostname() if host in EVERYWHERE else host
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as cause:
            reason = getattr(cause, "strerror", None) or cause
            raise OutputError(bad("port", f"{host}:{port}", f"an address to listen on ({reason})")) from cause

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address to open, with the token."""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"http://{name}:{self.port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """Name of the cookie that has the token. Browsers share cookies between the ports of a host."""
        return f"rarefy-view-{self.port}"

    def answers_to(self, header: str) -> bool:
        """Whether a Host header names this server by an address or a name of its own.

        A page elsewhere can make the browser ask here under its own name, but not under an address. The port may be
        another one, that of an SSH tunnel.
        """
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        return name in ("localhost", self.name.lower()) or _is_address(name)


class Handler(BaseHTTPRequestHandler):
    """One connection. Nothing is read from disk by the name that a request gives: the app looks keys up."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "rarefy", ""
    server: ViewServer

    def do_GET(self) -> None:
        path, _, text = self.path.partition("?")
        query = dict(parse_qsl(text))
        if not self.server.answers_to(self.headers.get("Host", "")):
            self._send(Response(WRONG_HOST, TEXT, FORBIDDEN))
        elif path == "/" and secrets.compare_digest(query.get("token", "").encode(), self.server.token.encode()):
            # The token leaves the address bar, where it could be copied with the address.
            cookie = f"{self.server.cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
            self._send(Response(b"", TEXT, SEE_OTHER, headers={"Location": "/", "Set-Cookie": cookie}))
        elif not self._knows_token():
            self._send(Response(NO_TOKEN, TEXT, FORBIDDEN))
        else:
            self._answer(lambda: self.server.app.get(path, query))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BODY_BYTES:
            self.close_connection = True
            self._send(Response(WRONG_LENGTH, TEXT, BAD_REQUEST))
            return
        body = self.rfile.read(int(length))
        if not self.server.answers_to(self.headers.get("Host", "")):
            self._send(Response(WRONG_HOST, TEXT, FORBIDDEN))
        elif not self._knows_token():
            self._send(Response(NO_TOKEN, TEXT, FORBIDDEN))
        else:
            self._answer(lambda: self.server.app.post(self.path, _json_object(body)))

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the terminal shows the address."""

    def _knows_token(self) -> bool:
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return False
        found = cookies.get(self.server.cookie)
        return found is not None and secrets.compare_digest(found.value.encode(), self.server.token.encode())

    def _answer(self, answer: Callable[[], Response]) -> None:
        try:
            response = answer()
        except RarefyError as error:
            response = error_response(error)
        except Exception:  # otherwise the page would take the closed connection for the server's end
            traceback.print_exc()
            response = Response(FAULT, TEXT, SERVER_ERROR)
        self._send(response)

    def _send(self, response: Response) -> None:
        headers = {
            "Content-Type": f"{response.kind}; charset=utf-8",
            "Content-Length": str(len(response.body)),
            "Cache-Control": "private, max-age=3600" if response.keep else "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            **response.headers,
        }
        try:
            self.send_response(response.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(response.body)
        except (BrokenPipeError, ConnectionResetError):  # the browser no longer wants it
            self.close_connection = True


def _json_object(body: bytes) -> dict[str, object]:
    try:
        return json_object(body)
    except ValueError as cause:
        raise DataError(f"request: not a JSON object ({cause})") from cause


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
