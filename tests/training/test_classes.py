"""Training a model's classes on data of other classes is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_images import encode, noise, write_files

from rarefy.cli import main


def test_data_of_other_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = encode(noise(0, 32, 32, 3))
    recipe = b'preset = "fashion-mnist-28"\ndata = "photos"\n[train]\nimages = 8\n'
    names = [f"photos/{name}/1.png" for name in ("coat", "dragon", *map(str, range(8)))]
    write_files(tmp_path, {"r.toml": recipe} | dict.fromkeys(names, photograph))
    for kind in ("diffusion", "classifier"):
        command = ["train", kind, str(tmp_path / "r.toml"), "--out", str(tmp_path / "out"), "--device", "cpu"]
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "data: classes are matched by name; 'dragon' is not in the model." in told
        assert len(told.splitlines()) == 1 and not (tmp_path / "out").exists()
