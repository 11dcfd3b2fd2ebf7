"""The installed package does not depend on other packages' names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_another_package_called_pipeline_does_not_matter(tmp_path: Path) -> None:
    """PyPI has a package of that name, and other people's checkouts have a folder of it."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    for command in ([sys.executable, "-m", "rarefy"], [str(Path(sys.executable).with_name("rarefy"))]):
        done = subprocess.run(
            [*command, "models"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "fashion-mnist-28 " in done.stdout
