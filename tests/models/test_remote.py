"""Model folders on the Hub and under URLs: copied once, whole or not at all, and the revision is recorded."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from small_model import MODEL, write_manifest, write_model

from rarefy.errors import ManifestError, MissingPackageError
from rarefy.manifest import load_manifest
from rarefy.models.config import OtherNetwork
from rarefy.models.folder import write_model_folder
from rarefy.models.remote import download
from rarefy.models.run_model import read_run_model, write_run_model
from rarefy.models.source import local_folder, on_this_machine

COMMIT = "c0ffee" + "0" * 34
MODEL_WITH_REFERENCE = dataclasses.replace(MODEL, files={**MODEL.files, "reference": "reference"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder with real images and a training state, and an empty user cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    path = write_model(tmp_path / "there", MODEL_WITH_REFERENCE)
    for name in ("reference/held-out-000000.tar", "training/diffusion/state.pt"):
        (path / name).parent.mkdir(parents=True)
        (path / name).write_bytes(name.encode())
    return path


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's API that snapshot_download calls, for one repository: tests/tiny."""

    root: Path
    requests: list[str]
    broken = ""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        if path.startswith("/api/models/tests/tiny/revision/"):
            revision = path.rpartition("/")[2]
            if revision in ("main", "v1", COMMIT):
                return self.answer(json.dumps({"id": "tests/tiny", "sha": COMMIT, "siblings": []}).encode())
            return self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        if path.startswith(f"/api/models/tests/tiny/tree/{COMMIT}"):
            entries = [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                       for name, data in content(self.root).items()]  # fmt: skip
            return self.answer(json.dumps(entries).encode())
        name = path.removeprefix(f"/tests/tiny/resolve/{COMMIT}/")
        if name != path and name in content(self.root):
            data = (self.root / name).read_bytes()
            sent = data[: len(data) // 2] if name == self.broken else data
            etag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self.answer(sent, 200, {**etag, "Content-Length": str(len(data))})
        return self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A local stand-in for the Hub that has the folder as tests/tiny."""
    constants = pytest.importorskip("huggingface_hub.constants")
    handler = type("OwnHub", (Hub,), {"root": folder, "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", os.fspath(tmp_path / "hub"))
    yield handler
    server.shutdown()


def test_a_model_of_the_hub_is_downloaded_once_and_its_commit_recorded(hub: type[Hub], tmp_path: Path) -> None:
    manifest = load_manifest(write_manifest(tmp_path / "rare.toml", "hf://tests/tiny@v1"))
    local = load_manifest(write_manifest(tmp_path / "local.toml", str(hub.root)))
    assert manifest.digest == local.digest
    assert manifest.model.source == f"hf://tests/tiny@{COMMIT}"
    assert manifest.model.trained
    wanted = content(hub.root)
    del wanted["training/diffusion/state.pt"]
    assert content(manifest.preset.path) == wanted
    stored = write_run_model(manifest.model)
    assert stored is not None
    seen = len(hub.requests)
    kept = read_run_model(stored, "model.json").model
    assert kept is not None
    again = on_this_machine(kept)
    assert again.folder.path == manifest.preset.path
    assert len(hub.requests) == seen, "the commit is known and complete: nothing is asked of the Hub"


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("hf://tests/tiny@v9", "v9"),
        ("hf://tests/none", "tests/none"),
        ("hf://tiny", "hf://org/name"),
        ("hf://tests/tiny@", "hf://org/name"),
    ],
)
def test_what_the_hub_lacks_is_one_line(hub: type[Hub], source: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"model\.path: ") as caught:
        load_manifest(write_manifest(tmp_path / "rare.toml", source))
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_half_a_download_is_never_used(hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_manifest(tmp_path / "rare.toml", "hf://tests/tiny")
    monkeypatch.setattr(hub, "broken", "unet.safetensors")
    with pytest.raises(ManifestError, match=r"model\.path: 'hf://tests/tiny'"):
        load_manifest(path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ManifestError, match=r"model\.path: 'hf://tests/tiny'"):
        load_manifest(path)


def test_a_hub_folder_without_its_files_is_refused(hub: type[Hub], tmp_path: Path) -> None:
    (hub.root / "unet.safetensors").unlink()
    with pytest.raises(ManifestError, match=r"files: 'unet\.safetensors' is missing there"):
        load_manifest(write_manifest(tmp_path / "rare.toml", "hf://tests/tiny"))


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'rarefy\[hub\]'"):
        download("hf://tests/tiny")


@pytest.fixture
def url(folder: Path) -> str:
    """The folder in a bucket in memory."""
    fs = fsspec.filesystem("memory")
    url = f"memory://{folder.parent.name}/models/tiny"
    for name, data in content(folder).items():
        fs.pipe_file(f"{url}/{name}", data)
    return url


def test_a_url_is_copied_once_without_training_states(url: str, folder: Path, tmp_path: Path) -> None:
    manifest = load_manifest(write_manifest(tmp_path / "rare.toml", url))
    assert manifest.digest == load_manifest(write_manifest(tmp_path / "local.toml", str(folder))).digest
    assert manifest.model.source == url
    wanted = content(folder)
    del wanted["training/diffusion/state.pt"]
    assert content(manifest.preset.path) == wanted
    assert manifest.preset.path.is_relative_to(tmp_path / "cache" / "rarefy" / "models")
    (manifest.preset.path / "seen").touch()
    assert (download(url)[0] / "seen").exists(), "the copy is used again"


def test_a_file_that_changes_there_is_copied_again(url: str) -> None:
    first = download(url)[0]
    fsspec.filesystem("memory").pipe_file(f"{url}/unet.safetensors", b"new")
    second = download(url)[0]
    assert first != second and (second / "unet.safetensors").read_bytes() == b"new"
    assert (first / "unet.safetensors").read_bytes() != b"new"


def test_a_copy_that_breaks_off_leaves_nothing(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type(fsspec.filesystem("memory"))
    get_file = memory.get_file

    def broken(self: object, path: str, *arguments: object) -> None:
        if path.endswith("classifier.safetensors"):
            raise ConnectionError("connection reset")
        get_file(self, path, *arguments)

    monkeypatch.setattr(memory, "get_file", broken)
    with pytest.raises(ManifestError, match=r"model\.path: .*that can be read \(connection reset\)"):
        download(url)
    assert [path.suffix for path in (tmp_path / "cache" / "rarefy" / "models").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("memory://nowhere/model", "it has no config.json"),
        ("nosuch://x/y", "a usable fsspec URL"),
    ],
)
def test_urls_without_a_model(url: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=named):
        load_manifest(write_manifest(tmp_path / "rare.toml", url))


def test_a_bucket_cannot_write_outside_of_the_cache(url: str) -> None:
    fsspec.filesystem("memory").pipe_file(f"{url}/reference/../../evil", b"x")
    fs = fsspec.filesystem("memory")
    if not any(".." in path for path in fs.find(url)):
        fs.store[f"{fs._strip_protocol(url)}/reference/../../evil"] = fs.store.pop(
            next(path for path in fs.store if path.endswith("/evil"))
        )
    with pytest.raises(ManifestError, match="it has a file named"):
        download(url)


@pytest.mark.parametrize("role", ["unet", "classifier"])
def test_a_download_cannot_name_code(role: str, url: str, tmp_path: Path) -> None:
    """An import path in a folder from elsewhere could name any function that is installed here."""
    evil = OtherNetwork("os:system", 8, 1, {"unet": 2, "classifier": 4}[role], 4 if role == "unet" else None)
    write_model_folder(dataclasses.replace(MODEL_WITH_REFERENCE, **{role: evil}), tmp_path)
    fsspec.filesystem("memory").pipe_file(f"{url}/config.json", (tmp_path / "config.json").read_bytes())
    with pytest.raises(ManifestError, match=rf"{role}\.kind: 'os:system' is not allowed in a downloaded folder"):
        local_folder(url)


def download_slowly(url: str) -> tuple[str, int]:
    """In a process of its own: returns the copy and how many files this process copied."""
    calls = []
    get_file = LocalFileSystem.get_file

    def slow(self: object, *arguments: object) -> None:
        calls.append(arguments)
        time.sleep(0.05)
        get_file(self, *arguments)

    LocalFileSystem.get_file = slow
    return str(download(url)[0]), len(calls)


def test_processes_of_a_machine_copy_once(folder: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        results = pool.map(download_slowly, [f"local://{folder}"] * 3)
    assert len({path for path, _ in results}) == 1
    assert sorted(count for _, count in results) == [0, 0, 4]
