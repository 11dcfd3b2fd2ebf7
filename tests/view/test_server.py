"""Who may ask the server: the token, the Host header, paths, bodies; and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import socket
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rarefy.cli import main
from rarefy.errors import OutputError
from rarefy.view.app import App
from rarefy.view.server import ViewServer

KEY = "00000000000"
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def server(app: App) -> Iterator[ViewServer]:
    with ViewServer(app) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(
    server: ViewServer, path: str, headers: dict[str, str] | None = None, body: bytes | None = None, known: bool = True
) -> Answer:
    """One request. known: with the cookie that has the token."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    cookie = {"Cookie": f"{server.cookie}={server.token}"} if known else {}
    connection.request("GET" if body is None else "POST", path, body, cookie | (headers or {}))
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def test_the_printed_address_gives_a_cookie_and_the_page(server: ViewServer) -> None:
    address = urlsplit(server.url)
    assert address.netloc == f"127.0.0.1:{server.port}"
    status, headers, _ = ask(server, f"{address.path}?{address.query}", known=False)
    assert (status, headers["location"]) == (303, "/")  # the token does not stay in the address bar
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    status, headers, body = ask(server, "/", {"Cookie": cookie.partition(";")[0]}, known=False)
    assert status == 200 and b"planted" in body
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("path", ["/", "/api/table", f"/image/{KEY}.png", "/?token=wrong", "/api/status?token="])
def test_nothing_without_the_token(server: ViewServer, path: str) -> None:
    for headers in ({}, {"Cookie": f"{server.cookie}=wrong"}, {"Cookie": "rarefy-view-1=\x22"}):
        status, _, body = ask(server, path, headers, known=False)
        assert status == 403 and b"token" in body and b"planted" not in body


def test_no_change_without_the_token(server: ViewServer) -> None:
    body = json.dumps({"keys": [KEY], "drop": True}).encode()
    assert ask(server, "/api/mark", body=body, known=False)[0] == 403
    assert ask(server, "/api/mark", {"Host": "evil.example"}, body)[0] == 403
    assert server.app.run.excluded() == frozenset()
    assert ask(server, "/api/mark", body=body)[0] == 200
    assert server.app.run.excluded() == {KEY}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),  # a tunnel
        ("localhost:80", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),  # a name that its owner lets point here
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:80", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_only_under_its_own_address(server: ViewServer, host: str, status: int) -> None:
    assert ask(server, "/api/status", {"Host": host})[0] == status


@pytest.mark.parametrize(
    "path",
    [
        "/../manifest.toml",
        "/image/../../manifest.toml",
        "/image/%2e%2e%2fmanifest.toml",
        "/image//etc/passwd",
        "/manifest.toml",
        f"/trajectory/{KEY}/0/../../../manifest.toml",
        "/real/-1.png",
        f"/image/{KEY}.png/../{KEY}.png",
    ],
)
def test_no_file_is_reached_by_its_path(server: ViewServer, path: str) -> None:
    status, _, body = ask(server, path)
    assert status in (400, 404) and b"root:" not in body and b"[classes]" not in body


def test_bad_bodies_are_refused_in_one_line(server: ViewServer) -> None:
    for body in (b"", b"[1]", b"{", b'{"keys": 3, "drop": true}', b'{"keys": ["../x"], "drop": true}', b"\xff"):
        status, _, answer = ask(server, "/api/mark", body=body)
        assert status == 400 and answer.strip().count(b"\n") == 0 and answer
    status, _, answer = ask(server, "/api/mark", {"Content-Length": "99999999999"}, b"")
    assert (status, answer) == (400, b"a request of this kind needs a Content-Length of at most 64 MiB\n")
    assert ask(server, "/api/nothing", body=b"{}")[0] == 404


def test_an_unforeseen_fault_is_not_taken_for_the_servers_end(
    server: ViewServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server.app, "get", lambda path, query: 1 / 0)
    status, _, body = ask(server, "/api/status")
    assert status == 500 and b"a fault of rarefy's own" in body
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_address_that_is_none_is_no_fault(server: ViewServer, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(b"GET http://[x?token=%ff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 403 ")
    assert capsys.readouterr().err == ""


def test_a_port_in_use_is_refused(server: ViewServer, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", os.fspath(own), "--port", str(server.port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rarefy: error: port: '127.0.0.1:{server.port}' is not an address to listen on (")
    with pytest.raises(OutputError, match="port"):
        ViewServer(server.app, port=70_000)


@pytest.mark.parametrize(("interrupt", "code"), [(KeyboardInterrupt(), 0), (KeyboardInterrupt(signal.SIGTERM), 143)])
def test_ctrl_c_ends_it_quietly(
    own: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    interrupt: KeyboardInterrupt,
    code: int,
) -> None:
    opened = queue.Queue[str]()

    def wait(server: ViewServer) -> None:
        assert opened.get(timeout=60) == server.url
        raise interrupt

    monkeypatch.setattr(ViewServer, "serve_forever", wait)
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.put(url) is None)
    assert main(["view", os.fspath(own), "--json", "--open"]) == code
    captured = capsys.readouterr()
    assert (captured.err == "") == (code == 0)
    assert json.loads(captured.out)["url"].startswith("http://127.0.0.1:")


def test_on_every_address_it_is_reached_by_the_machines_name(app: App) -> None:
    with ViewServer(app, "0.0.0.0") as server:
        name = socket.gethostname()
        assert server.url.startswith(f"http://{name}:{server.port}/?token=")
        assert server.answers_to(f"{name}:{server.port}") and server.answers_to("192.0.2.7:80")
        assert not server.answers_to("evil.example")
