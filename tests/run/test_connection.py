"""Addresses of Ray clusters that cannot be used, and what Ray prints by itself."""

from __future__ import annotations

import socket
import threading

import pytest
from ray._raylet import get_authentication_mode

from rarefy.errors import DeviceError
from rarefy.generate.cluster import _OthersText, connected, forget_token
from rarefy.generate.fit import Request

CLOSED = "127.0.0.1:CLOSED"  # stands for a port where nobody listens


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("address", ["ray://head:10001", CLOSED, "127.0.0.1:99999", f"{'a' * 300}:1", "[::1:1"])
def test_an_address_where_nobody_answers_is_refused_at_once(address: str, closed_port: int) -> None:
    address = address.replace("CLOSED", str(closed_port))
    with pytest.raises(DeviceError, match=r"^ray_address: "), connected(Request(1, 0.0, 1, 1), address):
        pytest.fail("there is no such cluster")


def test_what_rays_threads_print_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    stream = _OthersText()
    thread = threading.Thread(target=lambda: print("a worker died", file=stream), name="ray_listen_error_messages")
    thread.start()
    thread.join()
    print("ours", file=stream, flush=True)
    assert capsys.readouterr() == ("", "ours\n")


@pytest.mark.slow
def test_the_token_of_an_embedded_ray_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a driver that connects to a cluster later refuses its head's calls, and every actor ends at once."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    forget_token()
    before = get_authentication_mode()
    with connected(Request(1, 0.0, 1, 1), None):
        assert get_authentication_mode() != before
    assert get_authentication_mode() == before
