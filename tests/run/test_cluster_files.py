"""Files for KubeRay, Slurm and Docker: valid, and in agreement with the package and its exit codes."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from rarefy.cli import make_parser

REPO = Path(__file__).parents[2]
JOBS = REPO / "jobs"
SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())
FILES = ("rayjob", "raycluster")


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((JOBS / f"{name}.yaml").read_text())
    return content


def cluster(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = load(name)["spec"]
    return spec["rayClusterSpec"] if name == "rayjob" else spec


@pytest.mark.parametrize("name", FILES)
def test_kuberay_files_fit_the_schema(name: str) -> None:
    jsonschema.validate(load(name), SCHEMA)


def test_the_schema_finds_mistakes() -> None:
    """Every key that is renamed and every value of another type is an error."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for name in FILES:
        whole = load(name)
        for path in paths(whole):
            broken = copy.deepcopy(whole)
            *above, last = path
            parent: Any = broken
            for step in above:
                parent = parent[step]
            if free(path):
                parent[last] = ["not a text"]
            elif isinstance(last, str):
                parent[f"{last}x"] = parent.pop(last)
            else:
                parent[last] = "not a table"
            assert not validator.is_valid(broken), path


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all keys and items."""
    steps = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for step in steps:
        yield (*above, step)
        yield from paths(value[step], (*above, step))


def free(path: tuple[Any, ...]) -> bool:
    """Whether any name is allowed here."""
    return len(path) > 1 and path[-2] in ("rayStartParams", "requests", "limits", "nodeSelector")


@pytest.mark.parametrize("name", FILES)
def test_clusters_keep_the_driver_apart_and_start_from_zero(name: str) -> None:
    spec = cluster(name)
    assert spec["rayVersion"] == version("ray")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = spec["workerGroupSpecs"]
    assert group["minReplicas"] == 0
    pods = [spec["headGroupSpec"]["template"]["spec"], group["template"]["spec"]]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        names = [port["name"] for port in pod["containers"][0]["ports"]]
        assert "metrics" in names


def test_the_rayjob_runs_a_command_that_exists_and_repeats_no_users_error() -> None:
    spec = load("rayjob")["spec"]
    python, option, module, *words = shlex.split(spec["entrypoint"])
    assert (python, option, module) == ("python", "-m", "rarefy.job")
    parsed = make_parser().parse_args(words)
    assert "://" in parsed.out
    worker = spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert float(worker["resources"]["limits"]["nvidia.com/gpu"]) >= parsed.gpus_per_actor
    mounts = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert str(Path(parsed.manifest).parent) in {mount["mountPath"] for mount in mounts}
    assert spec["backoffLimit"] == 0
    assert spec["submitterConfig"]["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_dockerfiles_are_clean(name: str) -> None:
    path = JOBS / "docker" / f"{name}.Dockerfile"
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, "--no-color", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_dockerfiles_run_as_a_user_and_copy_what_exists(name: str) -> None:
    lines = (JOBS / "docker" / f"{name}.Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    pod = cluster("rayjob")["headGroupSpec"]["template"]["spec"]
    assert users == [str(pod["securityContext"]["runAsUser"])]
    assert any("g++" in line for line in lines)
    kept = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert copied == kept
    assert all((REPO / word).exists() for word in copied)
    extras = re.search(r"'\.\[(.*)\]'", "\n".join(lines))
    assert extras is not None
    declared = (REPO / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", declared, re.MULTILINE) for extra in extras[1].split(","))


STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$LOG"
case "$(basename "$0") $1 ${2:-}" in
    "scontrol show "*) echo gpu-1; echo gpu-2 ;;
    "srun "*) if [ -z "${NO_HEAD:-}" ]; then exec sleep 60; fi ;;
    "ray status"*) if [ -n "${NO_HEAD:-}" ]; then exit 1; fi ;;
    "python -c "*) echo token ;;
    "python -m "*)
        until [ "$(grep -c '^srun ' "$LOG")" -ge 2 ]; do sleep 0.05; done
        if [ "${DRIVER_SLEEPS:-}" = no ]; then kill -USR1 $PPID; exit 143; fi
        if [ -n "${DRIVER_SLEEPS:-}" ]; then
            sleep 60 >/dev/null 2>&1 &
            trap 'kill $!; exit 143' TERM
            kill -USR1 $PPID
            wait
        fi
        exit "$CODE" ;;
esac
"""


def run_slurm(folder: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The script's end with stand-ins for Slurm, Ray and Python, and the calls of these."""
    for name in ("scontrol", "srun", "ray", "python"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    log = folder / "log"
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "LOG": str(log),
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "gpu-[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
    }
    words = ["bash", str(JOBS / "slurm.sh"), "run", "m.toml", "--out", "/shared/rare"]
    done = subprocess.run(words, env=environment | variables, capture_output=True, text=True, check=False)
    return done, log.read_text().splitlines()


@pytest.mark.parametrize(
    ("code", "sleeps", "result", "again"),
    [
        (0, "", 0, False),
        (2, "", 2, False),
        (75, "", 75, True),
        (143, "", 143, False),
        (0, "yes", 143, True),
        (0, "no", 143, True),
    ],
)
def test_the_slurm_script_returns_the_drivers_code(
    tmp_path: Path, code: int, sleeps: str, result: int, again: bool
) -> None:
    """sleeps: the job's time runs out while the driver works (yes) or at the moment when it ends (no)."""
    done, calls = run_slurm(tmp_path, CODE=str(code), DRIVER_SLEEPS=sleeps)
    assert done.returncode == result, done.stderr
    assert ("scontrol requeue 12345" in calls) == again
    assert "python -m rarefy.job run m.toml --out /shared/rare" in calls
    started = sorted((line for line in calls if line.startswith("srun ")), key=lambda line: "--exclude" in line)
    assert len(started) == 2
    assert "--nodelist=gpu-1 ray start --head --port=22345" in started[0]
    assert "--exclude=gpu-1" in started[1]
    assert "--address=gpu-1:22345" in started[1]


def test_the_slurm_script_says_that_ray_did_not_start(tmp_path: Path) -> None:
    done, calls = run_slurm(tmp_path, NO_HEAD="yes")
    assert (done.returncode, done.stderr) == (75, "slurm.sh: Ray did not start on gpu-1\n")
    assert not any("rarefy" in line for line in calls)


def test_the_slurm_script_prints_its_usage() -> None:
    done = subprocess.run([JOBS / "slurm.sh"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "usage")
