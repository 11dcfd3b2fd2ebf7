"""Tests a fixed random sample of mutants with mutmut: ``make mutants`` (docs/MUTANTS.md).

mutmut works on copies in ``out/mutants``. A second call resumes the first one and tests survivors again. If the package
has changed since, everything starts over.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[1]
WORK = REPO / "out" / "mutants"
SEED = 22
AT_IMPORT = "rarefy.shards.metadata.x__field__"  # runs at import, before mutmut activates a mutant
SURVIVED = (0, 33)  # exit codes: all tests passed; no test calls the function
LINKS = {"src": "pipeline"} | {
    name: name for name in ("benchmarks", "docs", "examples", "manifests", "pyproject.toml", "tests")
}
CONFIG = """[mutmut]
source_paths = src
only_mutate =
    src/rarefy/plan.py
    src/rarefy/guidance/*
    src/rarefy/diffusion/*
    src/rarefy/training/*
    src/rarefy/shards/*
also_copy =
    benchmarks
    docs
    examples
    manifests
pytest_add_cli_args =
    -m
    not slow
    --deselect
    tests/training/test_recipe.py::test_recipes_that_ship_are_valid
pytest_add_cli_args_test_selection =
    tests/diffusion
    tests/guidance
    tests/run/test_manifest.py
    tests/run/test_plan.py
    tests/shards
    tests/training
    tests/test_golden.py
process_isolation = forkserver
timeout_multiplier = 4
timeout_constant = 10
track_dependencies = false
use_git_change_detection = false
debug = true
"""


def mutmut(*names: str) -> None:
    """Test these mutants. The first call also generates all mutants and learns which tests call which function."""
    command = [Path(sys.executable).with_name("mutmut"), "run", "--max-children", "1", *names]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORK / "mutants" / "src")}
    subprocess.run(command, cwd=WORK, env=environment, check=True)


def results() -> dict[str, int | None]:
    """Exit code of the tests by mutant: 1 if a test failed, 0 if all passed, None if not tested yet."""
    files = sorted((WORK / "mutants" / "src").rglob("*.meta"))
    return {name: code for file in files for name, code in json.loads(file.read_text())["exit_code_by_key"].items()}


def main(count: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it; tests need it
    newest = max(file.stat().st_mtime for file in (REPO / "pipeline").rglob("*.py"))
    config = WORK / "setup.cfg"
    if config.exists() and config.stat().st_mtime < newest:
        shutil.rmtree(WORK)
    # Python ignores an entry of PYTHONPATH that does not exist when it starts.
    (WORK / "mutants" / "src").mkdir(parents=True, exist_ok=True)
    if not config.exists():
        config.write_text(CONFIG)
    for link, target in LINKS.items():
        if not (WORK / link).exists():
            (WORK / link).symlink_to(REPO / target)
    if not results():
        mutmut("rarefy.plan.x_make_plan__mutmut_1")
    names = sorted(name for name in results() if not name.startswith(AT_IMPORT))
    sample = random.Random(SEED).sample(names, count)
    if left := [name for name in sample if results()[name] in (None, *SURVIVED)]:
        mutmut(*left)
    survivors = [name for name in sample if results()[name] in SURVIVED]
    print(f"{count - len(survivors)} of {count} mutants killed; {len(survivors)} survived:", *survivors, sep="\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 320)
