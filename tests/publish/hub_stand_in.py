"""A stand-in for the Hugging Face Hub: a local HTTP server that speaks the calls that huggingface_hub makes.

It keeps repositories in memory: what is committed, and large files that were uploaded but not committed. It answers as
the Hub's documentation and huggingface_hub's code say, without xet; it is not the Hub. Faults are planted by
``HubStandIn.fail``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_stand_in"
LARGE = (".tar", ".parquet", ".png", ".safetensors", ".npz")
CLOSED, LOST = 0, 1


@dataclass
class Repository:
    """One repository. branches: files by path; the commit's number is its length of history."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*.tar lfs"}})
    history: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"]


@dataclass
class Fault:
    """What happens to the next requests that match.

    status: of the answer; CLOSED: the connection is closed instead; LOST: the work is done, but its answer is lost.
    """

    method: str
    path: str
    status: int
    times: int


class HubStandIn:
    """The server's state. requests: method and path of each, in order; before: called before each is answered.

    babbles: it answers with a page for people where JSON is expected, as a proxy may.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.before: Callable[[str], None] = lambda _: None
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.url, self.babbles = "", False

    def fail(self, method: str, path: str, status: int, times: int = 1) -> None:
        """Let the next requests fail whose method and path (a regular expression) match."""
        self.faults.append(Fault(method, path, status, times))

    def count(self, pattern: str) -> int:
        return sum(re.search(pattern, each) is not None for each in self.requests)

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStandIn

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(self._chunks())
        parts = urlsplit(self.path)
        path, self.query = parts.path, parse_qs(parts.query)
        name = f"{self.command} {path}"
        self.hub.before(name)
        fault = self.hub.take_fault(self.command, path)
        self.lost = fault is not None and fault.status == LOST
        if fault is not None and fault.status == CLOSED:
            self._close()
            return
        with self.hub.lock:
            self.hub.requests.append(name)
            if fault is not None and not self.lost:
                self._answer({"error": f"planted {fault.status}"}, fault.status)
            else:
                self._route(path)

    def _close(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.lost:
            self._close()
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self._answer({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def _route(self, path: str) -> None:
        if path.startswith("/lfs/"):
            oid = path.removeprefix("/lfs/")
            assert hashlib.sha256(self.body).hexdigest() == oid
            self.hub.objects[oid] = self.body
            self._answer({})
        elif path == "/api/validate-yaml":
            self._validate(json.loads(self.body)["content"])
        elif (
            self.command != "GET" and self.command != "HEAD" and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        ):
            self._refuse(401, "Unauthorized")
        elif path == "/api/repos/create":
            self._create(json.loads(self.body))
        elif match := re.fullmatch(r"/(?:datasets/)?(.+)\.git/info/lfs/objects/batch", path):
            self._batch()
        elif match := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], unquote(match[3]))
        elif match := re.fullmatch(r"/api/(?:dataset|model)s/([^/]+/[^/]+)(?:/([\w-]+)/([^/]+))?(/.*)?", path):
            self.folder = unquote(match[4] or "")
            self._repository(match[1], (match[2] or "").replace("paths-info", "paths"), unquote(match[3] or "main"))
        else:
            self._refuse(404, "NotFound")

    def _validate(self, card: str) -> None:
        if self.hub.babbles:
            self._answer(b"<html>a proxy's page</html>")
        elif "license: nonsense" in card:
            self._answer({"errors": [{"message": '"license" must be one of [...]'}]}, 400)
        else:
            self._answer({"errors": [], "warnings": []})

    def _create(self, wanted: dict[str, str]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if wanted["organization"] == "others":
            self._refuse(403, "You don't have the rights to create a repository under this namespace")
        elif name in self.hub.repositories:
            self._answer({"error": "You already created this repo", **url}, 409)
        else:
            self.hub.repositories[name] = Repository(wanted.get("visibility") == "private")
            self._answer(url)

    def _batch(self) -> None:
        objects = []
        for each in json.loads(self.body)["objects"]:
            known = each["oid"] in self.hub.objects
            actions = {} if known else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
            objects.append({"oid": each["oid"], "size": each["size"], **actions})
        self._answer({"transfer": "basic", "objects": objects})

    def _repository(self, name: str, call: str, revision: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif call == "branch":
            known = revision in repository.branches
            repository.branches.setdefault(revision, dict(repository.files))
            self._answer({}, 409 if known else 200)
        elif revision not in repository.branches and revision != self._sha(repository):
            self._refuse(404, "RevisionNotFound")
        else:
            files = repository.branches.get(revision, repository.files)
            getattr(self, f"_{call or 'info'}")(name, repository, files)

    @staticmethod
    def _sha(repository: Repository) -> str:
        return hashlib.sha1(str(len(repository.history)).encode()).hexdigest()

    def _info(self, name: str, repository: Repository, files: dict[str, bytes]) -> None:
        siblings = [{"rfilename": path} for path in files]
        content = {"id": name, "sha": self._sha(repository), "private": repository.private, "siblings": siblings}
        self._answer({**content, "tags": [], "downloads": 0, "likes": 0})

    _revision = _info

    def _preupload(self, name: str, repository: Repository, files: dict[str, bytes]) -> None:
        answers = []
        for each in json.loads(self.body)["files"]:
            there = files.get(each["path"])
            mode = "lfs" if each["path"].endswith(LARGE) else "regular"
            oid = None if there is None else _oids(each["path"], there)[mode == "lfs"]
            answers.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer({"files": answers})

    def _commit(self, name: str, repository: Repository, files: dict[str, bytes]) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                del files[value["path"]]
        repository.history.append(lines[0]["value"]["summary"])
        self._answer({"commitUrl": f"{self.hub.url}/{name}/commit/x", "commitOid": self._sha(repository)})

    def _tree(self, name: str, repository: Repository, files: dict[str, bytes]) -> None:
        folder = self.folder.lstrip("/")
        below = [entry for entry in _entries(files) if str(entry["path"]).startswith(f"{folder}/" if folder else "")]
        if folder and not below:
            self._refuse(404, "EntryNotFound")
        elif self.query.get("recursive", [""])[0].lower() == "true":
            self._answer(below)
        else:
            self._answer([entry for entry in below if str(entry["path"]).rpartition("/")[0] == folder])

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories[name]
        content = repository.branches.get(revision, repository.files).get(path)
        if content is None:
            self._refuse(404, "EntryNotFound")
            return
        blob, sha256 = _oids(path, content)
        headers = {"ETag": f'"{sha256 if path.endswith(LARGE) else blob}"', "X-Repo-Commit": self._sha(repository)}
        self._answer(content, headers=headers)

    def _paths(self, name: str, repository: Repository, files: dict[str, bytes]) -> None:
        wanted = parse_qs(self.body.decode())["paths"] if b"=" in self.body else json.loads(self.body)["paths"]
        self._answer([entry for entry in _entries(files) if entry["path"] in wanted])


def _entries(files: dict[str, bytes]) -> list[dict[str, object]]:
    """The files and folders of a commit, as the Hub lists them."""
    entries: list[dict[str, object]] = []
    for path, content in sorted(files.items()):
        blob, sha256 = _oids(path, content)
        large = {"lfs": {"oid": sha256, "size": len(content), "pointerSize": 134}} if path.endswith(LARGE) else {}
        entries.append({"type": "file", "path": path, "size": len(content), "oid": blob, **large})
    folders = {path.rpartition("/")[0] for path in files} - {""}
    return entries + [{"type": "directory", "path": folder, "oid": "0" * 40} for folder in sorted(folders)]


def _oids(path: str, content: bytes) -> tuple[str, str]:
    """git's hash of a small file, or of some pointer for a large one; and the SHA-256."""
    sha256 = hashlib.sha256(content).hexdigest()
    stored = b"pointer to " + sha256.encode() if path.endswith(LARGE) else content
    return hashlib.sha1(f"blob {len(stored)}\0".encode() + stored).hexdigest(), sha256


@contextmanager
def serving() -> Iterator[HubStandIn]:
    """A stand-in that answers on a port of this machine for the duration of the block."""
    hub = HubStandIn()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
