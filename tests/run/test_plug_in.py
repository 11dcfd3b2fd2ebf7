"""The example of docs/TERMS.md, run for real: a term from outside the package, on Ray, to a verified run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rarefy.cli import main
from rarefy.shards.metadata import read_records
from rarefy.shards.store import Store

REPO = Path(__file__).parents[2]


def tiny(tmp_path: Path) -> Path:
    """The example's manifest, four images in three steps."""
    text = (REPO / "examples" / "boundary.toml").read_text()
    for old, new in (("logsnr20", "logsnr3"), ("per_class = 10", "total = 4"), ("batch = 50", "batch = 2")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = tmp_path / "boundary.toml"
    path.write_text(text)
    return path


def test_the_example_runs_on_ray_actors_that_find_it_on_the_python_path(tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = f"{REPO}{os.pathsep}{REPO / 'examples'}"
    environment = {**os.environ, "PYTHONPATH": path}
    for command in (["generate", str(tiny(tmp_path)), "--out", str(out), "--actors", "1"], ["verify", str(out)]):
        done = subprocess.run(
            [sys.executable, "-m", "rarefy.cli", *command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    records = read_records(Store(str(out)), "boundary-000000")
    assert [record.guidance for record in records] == ["boundary_term:Boundary+predicted-real-image"] * 4


def test_actors_that_cannot_import_it_end_the_run_with_the_modules_name(tmp_path: Path) -> None:
    """Here the driver alone can: a path of its own is not the environment that actors inherit."""
    program = (
        f"import sys; sys.path.append({str(REPO / 'examples')!r}); from rarefy.cli import main; "
        f"sys.exit(main(['generate', {str(tiny(tmp_path))!r}, '--out', {str(tmp_path / 'out')!r}, '--actors', '1']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "no actor could be started in 3 attempts" in last and "No module named 'boundary_term'" in last


def test_a_term_that_is_not_found_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny(tmp_path)
    path.write_text(path.read_text().replace("boundary_term:", "nowhere_term:"))
    assert main(["generate", str(path), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert "guidance[0].term: 'nowhere_term:Boundary' is not importable here" in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
