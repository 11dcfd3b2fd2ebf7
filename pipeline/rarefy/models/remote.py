"""Model folders that are elsewhere: on the Hugging Face Hub, or under any fsspec URL. They are copied once per machine.

Only what ``config.json`` names is copied from a URL, and never ``training/``, whose checkpoints nobody needs to sample.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from rarefy.errors import ManifestError, bad
from rarefy.extras import missing_package
from rarefy.models.config_file import read_files, read_object
from rarefy.shards.retry import driver_errors, one_line
from rarefy.user_cache import locked, user_cache

HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
CONFIG = "config.json"
ALSO = ("provenance.json", "README.md")
NOT_COPIED = "training/*"
# What file systems say about a file's version; none of them says all.
VERSION_KEYS = ("size", "mtime", "created", "ETag", "etag", "LastModified", "Last-Modified", "last_modified", "updated",
                "generation", "md5Hash", "Content-MD5", "content_md5")  # fmt: skip


def is_remote(source: str) -> bool:
    """Whether a model's source is a URL and not a local path."""
    return "://" in source and not source.startswith("file://")


def download(source: str) -> tuple[Path, str]:
    """The local copy of the model folder at a URL, and its source with the revision resolved to a commit.

    A copy that is complete is used again as long as the files there do not change. Raises ManifestError.
    """
    return _from_hub(source) if source.startswith("hf://") else (_from_url(source), source)


def _from_hub(source: str) -> tuple[Path, str]:
    match = HUB.fullmatch(source)
    if match is None:
        raise ManifestError(bad("model.path", source, "hf://org/name or hf://org/name@revision"))
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        if (missing := missing_package(f"model.path: {source!r}", error)) is None:
            raise
        raise missing from error
    try:
        path = Path(snapshot_download(match[1], revision=match[2], ignore_patterns=[NOT_COPIED]))
    except (OSError, ValueError, getattr(errors, "HTTPError", OSError)) as error:
        allowed = f"a model folder on the Hub that can be read ({' '.join(str(error).split())[:300]})"
        raise ManifestError(bad("model.path", source, allowed)) from None
    return path, f"hf://{match[1]}@{path.name}"


def _from_url(url: str) -> Path:
    with _reporting(url):
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        files = _listing(fs, str(root).rstrip("/"), url)
        key = hashlib.sha256(json.dumps([url, files], sort_keys=True).encode()).hexdigest()[:32]
        target = user_cache() / "models" / key
        if not target.is_dir():
            with locked(target.with_suffix(".lock")):
                if not target.is_dir():  # another process may just have copied it
                    _copy(fs, str(root).rstrip("/"), list(files), target)
    return target


def _listing(fs: Any, root: str, url: str) -> dict[str, dict[str, str]]:
    """The files to copy, by path in the folder, with what the file system says about their version."""
    try:
        config = read_object(json.loads(fs.cat_file(f"{root}/{CONFIG}")), CONFIG)
        named = read_files(config.get("files", {}), "files", depth=0)
    except FileNotFoundError:
        raise ManifestError(bad("model.path", url, "a model folder: it has no config.json")) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ManifestError(f"{url}/{CONFIG}: cannot be read (not JSON: {error})") from None
    except ManifestError as error:
        raise ManifestError(f"{url}/{CONFIG}: {error}") from None
    files = {}
    for name in (CONFIG, *ALSO, *dict.fromkeys(named.values())):
        for path in fs.find(f"{root}/{name}"):
            relative = path[path.index(f"{root}/") + len(root) + 1 :]
            if ".." in PurePosixPath(relative).parts:
                raise ManifestError(bad("model.path", url, f"a model folder: it has a file named {relative!r}"))
            info = fs.info(path)
            files[relative] = {key: str(info[key]) for key in VERSION_KEYS if key in info}
    return files


def _copy(fs: Any, root: str, files: list[str], target: Path) -> None:
    """Copy into a private folder, which gets its name when it is complete."""
    private = Path(tempfile.mkdtemp(dir=target.parent, suffix=".part"))
    try:
        for name in files:
            (private / name).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{root}/{name}", str(private / name))
        private.rename(target)
    finally:
        shutil.rmtree(private, ignore_errors=True)


@contextmanager
def _reporting(url: str) -> Iterator[None]:
    try:
        yield
    except ManifestError:
        raise
    except (ValueError, ImportError) as cause:
        if (missing := missing_package(f"model.path: {url!r}", cause)) is not None:
            raise missing from cause
        raise ManifestError(bad("model.path", url, f"a usable fsspec URL ({one_line(cause)})")) from cause
    except driver_errors() as cause:
        raise ManifestError(bad("model.path", url, f"a model folder that can be read ({one_line(cause)})")) from cause
