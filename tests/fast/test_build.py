"""Building a library of one function: what is cached, what is refused, and who builds."""

from __future__ import annotations

import os
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rarefy import scratch
from rarefy.device import find_compiler
from rarefy.fast.cpu import build
from rarefy.fast.cpu.build import load_library

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one function, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "seven.cpp").write_text('extern "C" long seven() { return 7; }\n')
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "rarefy" / "cpu"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with one line per link step of the compiler."""
    file, compiler = tmp_path / "log", tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) echo built >> {file}; sleep 0.3;; esac\nexec {find_compiler()} "$@"\n'
    )
    compiler.chmod(0o755)
    file.touch()
    monkeypatch.setenv("CXX", str(compiler))
    return file


def works(sources: Path) -> bool:
    library = load_library(sources)
    return library is not None and library.seven() == 7


def builds(log: Path) -> int:
    return len(log.read_text().splitlines())


def test_a_library_is_kept_for_the_user_alone(sources: Path, cache: Path, log: Path) -> None:
    before = os.umask(0)
    try:
        assert works(sources)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert works(sources) and builds(log) == 1


def test_other_sources_are_another_library(sources: Path, cache: Path, log: Path) -> None:
    assert works(sources)
    (sources / "seven.cpp").write_text('extern "C" long seven() { return 3 + 4; }\n')
    assert works(sources) and builds(log) == 2
    assert len(list(cache.glob("*.so"))) == 2


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_truncated_library_is_never_loaded(size: int, sources: Path, cache: Path, log: Path) -> None:
    """The end of a mapped file that is cut off would kill the process with SIGBUS."""
    assert works(sources)
    (library,) = cache.glob("*.so")
    whole = library.read_bytes()
    library.unlink()  # this process has mapped it
    library.write_bytes(whole[:size])
    assert works(sources) and builds(log) == 2
    assert library.read_bytes() == whole


def test_a_library_without_its_hash_is_never_loaded(sources: Path, cache: Path, log: Path) -> None:
    assert works(sources)
    (digest,) = cache.glob("*.sha256")
    digest.unlink()
    assert works(sources) and builds(log) == 2


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777])
def test_a_folder_that_others_can_read_or_write_is_not_used(mode: int, sources: Path, cache: Path, log: Path) -> None:
    assert works(sources)
    cache.chmod(mode)
    assert works(sources) and works(sources) and builds(log) == 3


def test_another_users_folder_is_not_used(
    sources: Path, cache: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert works(sources)
    monkeypatch.setattr(build.os, "getuid", lambda: cache.stat().st_uid + 1)
    assert works(sources) and builds(log) == 2


def test_another_users_or_an_open_library_is_never_loaded(sources: Path, cache: Path, log: Path) -> None:
    assert works(sources)
    (library,) = cache.glob("*.so")
    library.chmod(0o666)
    assert works(sources) and builds(log) == 2
    library.rename(library.with_suffix(".elsewhere"))
    library.symlink_to(library.with_suffix(".elsewhere"))
    assert works(sources) and builds(log) == 3


def test_a_link_to_a_folder_is_not_used(sources: Path, cache: Path, log: Path) -> None:
    assert works(sources)
    cache.rename(cache.parent / "elsewhere")
    cache.symlink_to(cache.parent / "elsewhere")
    assert works(sources) and builds(log) == 2


def test_one_builds_and_the_others_wait(sources: Path, log: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(works, [sources] * 4))
    assert builds(log) == 1


def test_a_failed_build_leaves_nothing(
    sources: Path, cache: Path, log: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (sources / "wrong.cpp").write_text("no C++\n")
    assert load_library(sources) is None
    assert [file.name for file in cache.iterdir()] == ["lock"]
    for compiler in ("no-such-compiler", "false"):
        monkeypatch.setenv("CXX", compiler)
        assert load_library(sources) is None
    assert capfd.readouterr() == ("", "")


def test_a_cache_that_cannot_be_written_is_not_needed(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert works(sources)


def test_the_temporary_folder_need_not_allow_programs(
    sources: Path, cache: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = build.ctypes.CDLL

    def refuse(path: str) -> object:
        if not Path(path).is_relative_to(cache):
            raise OSError("failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(build.ctypes, "CDLL", refuse)
    assert works(sources) and builds(log) == 1


def test_a_killed_build_leaves_nothing_for_long(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next actor removes its folder, which it recognizes by the name."""
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    compiler = tmp_path / "killed"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *.cpp*) kill -9 $PPID;; esac\nexec {find_compiler()} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    if (child := os.fork()) == 0:
        works(sources)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    scratch.sweep()
    assert not list((tmp_path / "temporary").iterdir())


def test_a_compiler_without_openmp_builds_for_one_thread(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "plain"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec {find_compiler()} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert works(sources)
