"""Building the C++ kernels with the machine's compiler, and the cache of what was built.

A library is code that this process runs. It is loaded only from a folder that belongs to the user and that nobody else
can write to, and only if it is complete: its sha256 is stored next to it. Otherwise it is built in a temporary folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rarefy.cores import usable_cores
from rarefy.device import find_compiler, processor
from rarefy.scratch import scratch_folder
from rarefy.user_cache import keep, private_cache

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC")
THREADS = ("-fopenmp",)  # if the compiler has it; without it kernels run in one thread


def load_library(sources: Path) -> ctypes.CDLL | None:
    """The library of a folder of C++ files, from the user's cache or built. None if no working compiler exists."""
    compiler = find_compiler()
    if compiler is None:
        return None
    for flags in ((*FLAGS, *THREADS), FLAGS):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return _load(compiler, flags, sources)
    return None


def _load(compiler: str, flags: tuple[str, ...], sources: Path) -> ctypes.CDLL:
    """Raises OSError, CalledProcessError."""
    name = f"{_digest(compiler, flags, sources)[:40]}.so"
    with _locked_cache() as folder, scratch_folder() as private:
        if folder is not None and _complete(folder / name):
            with contextlib.suppress(OSError):
                return ctypes.CDLL(str(folder / name))
        built = private / name
        _build(compiler, flags, sources, built)
        if folder is not None:
            with contextlib.suppress(OSError):  # the disk may be full
                _store(built, folder / name)
                # No program may be run from some systems' temporary folders.
                return ctypes.CDLL(str(folder / name))
        return ctypes.CDLL(str(built))


def _digest(compiler: str, flags: tuple[str, ...], sources: Path) -> str:
    """Identifies a build by compiler, flags, processor and sources."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    digest = hashlib.sha256("\0".join((*flags, version, processor())).encode())
    for source in sorted(sources.iterdir()):
        if source.suffix in (".cpp", ".h"):
            digest.update(source.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _locked_cache() -> Iterator[Path | None]:
    """The cache folder, locked so that only one process builds; None if there is no folder that can be trusted."""
    folder, lock = private_cache("cpu"), None
    if folder is not None:
        with contextlib.suppress(OSError):  # the disk may be full
            lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    if lock is None:
        yield None
        return
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks; each process then builds
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(lock)


def _complete(library: Path) -> bool:
    """Whether a library is the user's and has the sha256 stored next to it: a truncated one would kill the process."""
    try:
        status = library.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            return False
        return hashlib.sha256(library.read_bytes()).hexdigest() == library.with_suffix(".sha256").read_text()
    except OSError:
        return False


def _store(built: Path, library: Path) -> None:
    content = built.read_bytes()
    keep(library, lambda file: file.write(content))
    keep(library.with_suffix(".sha256"), lambda file: file.write(hashlib.sha256(content).hexdigest().encode()))


def _build(compiler: str, flags: tuple[str, ...], sources: Path, library: Path) -> None:
    def run(*arguments: str) -> None:
        subprocess.run([compiler, *flags, *arguments], check=True, capture_output=True)

    objects = {str(source): str(library.parent / f"{source.stem}.o") for source in sources.glob("*.cpp")}
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(lambda source: run("-c", source, "-o", objects[source]), objects))
    run("-shared", *objects.values(), "-o", str(library))
