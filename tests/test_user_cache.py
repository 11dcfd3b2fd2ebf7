"""The user's cache folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from rarefy.user_cache import keep, user_cache


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path / "some.so", interrupted)
    assert not list(tmp_path.iterdir())


def test_a_user_without_a_home_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="Not a directory"):
        keep(user_cache() / "cpu" / "some.so", lambda file: file.write(b""))
    assert not list(tmp_path.iterdir())
