"""Storage calls that fail for a while, for good, or after they have succeeded."""

from __future__ import annotations

import errno
import http.client
import os
import pickle
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import botocore.exceptions
import pytest
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from rarefy.errors import OutputError, StorageError
from rarefy.shards import retry
from rarefy.shards.claim import claim_output
from rarefy.shards.retry import Outlook, outlook
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard

# What to do with a request: answer with (status, error code), lose the server's answer, or None to pass it on.
Fault = tuple[int, str] | str | None
Rule = Callable[[BaseHTTPRequestHandler], Fault]


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(retry, "LONGEST_DELAY_S", 0.05)


def failing(error: Callable[[], Exception], times: int) -> Callable[[int], None]:
    left = [times]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise error()

    return fsync


def test_one_input_error_while_syncing_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync, the kernel may have dropped the data, so it must be written to a new file."""
    inodes = []

    def fsync(descriptor: int) -> None:
        inodes.append(os.fstat(descriptor).st_ino)
        if len(inodes) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = Store(str(tmp_path))
    hold = (tmp_path / "hold").open("wb")  # keeps the first inode number from being used again at once
    monkeypatch.setattr(os, "fsync", fsync)
    store.write_bytes("x", b"1")
    hold.close()
    assert store.read_bytes("x") == b"1" and len(inodes) >= 3
    monkeypatch.setattr(os, "fsync", failing(lambda: OSError(errno.EIO, "x"), 2))
    with store.staged("table") as private:
        private.write_bytes(b"rows")
    assert store.read_bytes("table") == b"rows"
    monkeypatch.setattr(os, "fsync", failing(lambda: OSError(errno.ESTALE, "x"), 2))
    assert store.create("y", b"2") and not store.create("y", b"3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hold", "table", "x", "y"]


def test_an_error_that_stays_ends_after_the_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]  # a clock that only sleeping moves on
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(retry, "FIRST_DELAY_S", 1.0)
    monkeypatch.setattr(retry, "LONGEST_DELAY_S", 5.0)
    monkeypatch.setattr(os, "fsync", failing(lambda: OSError(errno.EIO, os.strerror(errno.EIO)), 10**6))
    line = r"^out: '.*/x' is not writable at the moment \(Input/output error; tried for (2[5-9]|30) s\)$"
    with pytest.raises(StorageError, match=line) as caught:
        Store(str(tmp_path), patience_s=30.0).write_bytes("x", b"1")
    assert 25.0 < now[0] <= 30.0, "the next try would have begun after the patience"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT])
def test_a_permanent_error_is_not_repeated(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(lambda: OSError(number, os.strerror(number)), 1))
    with pytest.raises(OutputError, match=r"x' is not writable \([^;]*\)$") as caught:
        Store(str(tmp_path)).write_bytes("x", b"1")
    assert not isinstance(caught.value, StorageError)


def of_s3(status: int, code: str) -> Exception:
    answer = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = botocore.exceptions.ClientError(answer, "PutObject")  # type: ignore[arg-type]  # as botocore fills it
    return translate_boto_error(error)  # type: ignore[no-any-return]


class HttpError(Exception):
    """As gcsfs defines it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"x, {code}")
        self.code = code


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (of_s3(503, "SlowDown"), Outlook.TRANSIENT),
        (of_s3(503, "503"), Outlook.TRANSIENT),
        (of_s3(500, "InternalError"), Outlook.TRANSIENT),
        (of_s3(502, "BadGateway"), Outlook.TRANSIENT),
        (of_s3(429, "TooManyRequests"), Outlook.TRANSIENT),
        (of_s3(400, "RequestTimeout"), Outlook.TRANSIENT),
        (of_s3(409, "ConditionalRequestConflict"), Outlook.TRANSIENT),
        (of_s3(403, "AccessDenied"), Outlook.REFUSED),
        (of_s3(400, "ExpiredToken"), Outlook.REFUSED),
        (of_s3(403, "403"), Outlook.REFUSED),
        (botocore.exceptions.NoCredentialsError(), Outlook.REFUSED),
        (of_s3(404, "NoSuchBucket"), Outlook.PERMANENT),
        (of_s3(400, "InvalidBucketName"), Outlook.PERMANENT),
        (of_s3(501, "NotImplemented"), Outlook.PERMANENT),
        (of_s3(412, "PreconditionFailed"), Outlook.PERMANENT),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="x"), Outlook.TRANSIENT),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="x"), Outlook.TRANSIENT),
        (botocore.exceptions.ParamValidationError(report="x"), Outlook.PERMANENT),
        (HttpError(503), Outlook.TRANSIENT),
        (HttpError(404), Outlook.PERMANENT),
        (OSError("Forbidden: b/o\nno access"), Outlook.REFUSED),
        (TimeoutError(), Outlook.TRANSIENT),
        (ConnectionResetError(errno.ECONNRESET, "x"), Outlook.TRANSIENT),
        (http.client.IncompleteRead(b""), Outlook.TRANSIENT),
        (FileNotFoundError(errno.ENOENT, "x"), Outlook.PERMANENT),
    ],
)
def test_what_drivers_raise_is_sorted(error: Exception, expected: Outlook) -> None:
    assert outlook(error, is_local=False) is expected


def test_a_refusal_by_the_local_disk_is_permanent() -> None:
    assert outlook(PermissionError(errno.EACCES, "x"), is_local=True) is Outlook.PERMANENT


class Proxy:
    """Passes requests on to an S3 server, except where ``rule`` says otherwise. log: method, path and fault."""

    def __init__(self, server: str) -> None:
        self.rule: Rule = lambda request: None
        self.log: list[tuple[str, str, Fault]] = []
        proxy, target = self, urlsplit(server)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.rule(self)
                proxy.log.append((self.command, self.path, fault))
                if isinstance(fault, tuple):
                    error = f"<Error><Code>{fault[1]}</Code><Message>{fault[1]}</Message></Error>".encode()
                    self.reply(fault[0], {"Content-Type": "application/xml"}, error)
                    return
                assert target.hostname is not None
                onward = http.client.HTTPConnection(target.hostname, target.port)
                onward.request(self.command, self.path, body, dict(self.headers))
                answer = onward.getresponse()
                content = answer.read()
                onward.close()
                if fault == "lose":
                    self.close_connection = True
                else:
                    self.reply(answer.status, dict(answer.getheaders()), content)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any  # noqa: N815  # the library's names

            def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def next(self, count: int, fault: Fault, method: str = "") -> None:
        """Let the next ``count`` requests (of one method) fail."""
        left = [count]

        def rule(request: BaseHTTPRequestHandler) -> Fault:
            if left[0] and request.command.startswith(method):
                left[0] -= 1
                return fault
            return None

        self.rule = rule


@pytest.fixture
def proxy(bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server.server_port}")
    S3FileSystem.clear_instance_cache()
    yield proxy
    proxy.server.shutdown()
    proxy.server.server_close()


def test_503s_are_survived_by_every_call(proxy: Proxy, bucket: str) -> None:
    store = Store(f"{bucket}/out")

    def local_copy() -> bytes:
        with store.local_copy("a/x") as path:
            return path.read_bytes()

    calls: list[tuple[Callable[[], object], object]] = [
        (lambda: store.write_bytes("a/x", b"12"), None),
        (lambda: store.read_bytes("a/x"), b"12"),
        (lambda: store.read_or_none("a/x"), b"12"),
        (lambda: store.read_or_none("a/absent"), None),
        (lambda: store.exists("a/x"), True),
        (lambda: store.exists("a/absent"), False),
        (lambda: store.size("a/x"), 2),
        (lambda: store.size_or_none("a/absent"), None),
        (lambda: store.list("a"), ["x"]),
        (local_copy, b"12"),
        (lambda: store.create("a/y", b"1"), True),
        (lambda: store.create("a/y", b"2"), False),
        (lambda: store.withdraw("a/x", "0" * 64), False),
        (lambda: store.delete("a/y"), None),
        (lambda: store.check_writable(), None),
    ]
    for call, expected in calls:
        for fault in ((503, "SlowDown"), (500, "InternalError"), "lose"):
            if expected is True:
                store.delete("a/y")
            proxy.next(2, fault)
            assert call() == expected
    assert store.list("a") == ["x"]


def test_the_delays_of_driver_and_store_do_not_multiply(proxy: Proxy, bucket: str) -> None:
    store = Store(f"{bucket}/out", patience_s=0.0)
    proxy.next(10**6, (503, "SlowDown"))
    with pytest.raises(StorageError, match="at the moment"):
        store.write_bytes("x", b"1")
    assert [fault for _, _, fault in proxy.log] == [(503, "SlowDown")]


def test_a_create_whose_answer_is_lost_has_created(proxy: Proxy, bucket: str) -> None:
    store = Store(f"{bucket}/out")
    proxy.next(1, "lose", "PUT")
    assert store.create("x", b"mine")
    assert [method for method, _, _ in proxy.log] == ["PUT", "PUT", "HEAD"]
    assert not store.create("x", b"mine"), "the same content from another call"
    proxy.next(1, (503, "SlowDown"), "PUT")
    assert not store.create("x", b"another's"), "the earlier try wrote nothing"
    assert store.read_bytes("x") == b"mine"


def test_a_token_that_is_renewed_is_read_again(
    proxy: Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    text = "[default]\naws_access_key_id = {}\naws_secret_access_key = secret\n"
    file.write_text(text.format("first"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    accepted = ["first"]
    for number, refusal in enumerate([(403, "AccessDenied"), (400, "ExpiredToken")]):
        store = Store(f"{bucket}/out{number}")
        proxy.rule = lambda request, r=refusal: None if accepted[-1] in request.headers["Authorization"] else r
        store.write_bytes("x", b"1")
        accepted.append(f"renewed{number}")
        file.write_text(text.format(accepted[-1]))
        store.write_bytes("x", b"2")
        assert store.read_or_none("x") == b"2"


def test_a_missing_permission_is_reported_at_once(proxy: Proxy, bucket: str) -> None:
    store = Store(f"{bucket}/out")
    store.list()
    proxy.next(10**6, (403, "AccessDenied"), "PUT")
    with pytest.raises(OutputError, match=r"is not writable \(AccessDenied\)$") as caught:
        store.check_writable()
    assert not isinstance(caught.value, StorageError)
    assert len([method for method, _, _ in proxy.log if method == "PUT"]) == 2, "once more with new credentials"


def test_a_refusal_that_stays_is_a_storage_error(proxy: Proxy, bucket: str) -> None:
    store = Store(f"{bucket}/out", patience_s=0.2)
    store.write_bytes("x", b"1")
    proxy.next(10**6, (403, "AccessDenied"))
    with pytest.raises(StorageError, match=r"not writable at the moment \(AccessDenied; tried for \d s\)$"):
        store.write_bytes("x", b"2")


def test_requests_of_one_commit(
    proxy: Proxy, bucket: str, make_header: Callable[[int], ShardHeader], make_samples: Callable[[int], list[Sample]]
) -> None:
    """Their number does not depend on how many shards there are."""
    store = Store(f"{bucket}/out")
    claim_output(store, "text", "d" * 64)
    commit_shard(store, make_header(0), make_samples(0), seconds=1.0)
    proxy.log.clear()
    commit_shard(store, make_header(1), make_samples(1), seconds=1.0)
    assert [method for method, _, _ in proxy.log] == ["GET", "PUT", "PUT", "PUT", "HEAD", "HEAD"]
    proxy.log.clear()
    commit_shard(store, make_header(1), make_samples(1), seconds=1.0)
    assert [method for method, _, _ in proxy.log] == ["GET", "HEAD", "HEAD", "GET"]
