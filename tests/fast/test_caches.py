"""Where Triton and torch.compile keep what they build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rarefy.fast.caches import CACHES, place_caches

PRINT = """
import os
from rarefy.fast.caches import CACHES, place_caches
place_caches()
print(*(os.environ[name] for name in CACHES), os.access(os.path.dirname(os.environ["TRITON_CACHE_DIR"]), os.W_OK))
"""


@pytest.fixture(autouse=True)
def unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CACHES:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_they_are_the_users_alone(tmp_path: Path) -> None:
    place_caches()
    for variable, name in CACHES.items():
        assert os.environ[variable] == str(tmp_path / "rarefy" / name)
        assert (tmp_path / "rarefy" / name).stat().st_mode & 0o777 == 0o700


def test_the_users_choice_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/chosen")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # no choice: it would be the working folder
    place_caches()
    assert os.environ["TRITON_CACHE_DIR"] == "/chosen"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "rarefy" / "inductor")


def test_an_open_folder_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "rarefy" / "triton").mkdir(parents=True)
    (tmp_path / "rarefy" / "triton").chmod(0o777)
    place_caches()
    assert not Path(os.environ["TRITON_CACHE_DIR"]).is_relative_to(tmp_path)


def test_without_a_home_they_live_as_long_as_the_process(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in CACHES}
    environment |= {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PRINT], env=environment, capture_output=True, text=True, check=True)
    triton, inductor, writable = done.stdout.split()
    assert Path(triton).parent == Path(inductor).parent and Path(triton).is_relative_to(tmp_path)
    assert writable == "True"
    assert list(tmp_path.iterdir()) == []
