"""``rarefy doctor``: its lines are checked against a machine that is broken on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from rarefy.cli import main
from rarefy.doctor import cluster, devices, doctor, machine, software, storage
from rarefy.doctor.check import Check, ok, size
from rarefy.errors import DeviceError
from rarefy.shards.remote import RemoteFiles
from rarefy.shards.store import Store

Usage = namedtuple("Usage", "total used free")
SMALL = """
import sys
for name in ("torch", "ray"):
    sys.modules[name] = None
import importlib.metadata, importlib.util
find, number = importlib.util.find_spec, importlib.metadata.version
importlib.util.find_spec = lambda name, *rest: None if name in ("torch", "ray") else find(name, *rest)
from rarefy.doctor import software
software.requires_of = lambda name: ["numpy>=1.26"]
software.installed = lambda name, inner=software.installed: None if name in ("torch", "ray") else inner(name)
from rarefy.cli import main
code = main(["doctor", "--json", "--out", sys.argv[1]])
assert "scipy" not in sys.modules and "huggingface_hub" not in sys.modules
sys.exit(code)
"""


def named(checks: object, name: str) -> list[Check]:
    assert isinstance(checks, list)
    return [check for check in checks if check.name == name]


def test_this_machine_has_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--out", str(tmp_path / "new")]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("rarefy", "packages", "cores", "memory", "home", "cache", "clock", "torch", "storage"):
        assert sum(line[9:].startswith(f"{name} ") for line in lines) >= 1, name
    assert {line.split()[0] for line in lines[:-1]} <= {"ok", "warning"}
    assert not (tmp_path / "new").exists()


def test_the_small_install_has_a_doctor_too(tmp_path: Path) -> None:
    """In a process where torch and ray cannot be imported."""
    answer = subprocess.run([sys.executable, "-c", SMALL, str(tmp_path)], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    checks = [Check(**check) for check in json.loads(answer.stdout)["checks"]]
    (missing,) = [check for check in named(checks, "packages") if check.state == "warning"]
    assert missing.text == "torch and ray not installed" and "pip install 'rarefy[run]'" in missing.advice
    assert named(checks, "torch")[0].text.startswith("not installed")
    assert named(checks, "storage")[0].state == "ok"


def test_a_problem_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("check_software", "check_machine", "check_devices"):
        monkeypatch.setattr(doctor, name, lambda *_: iter([ok("a", "well")]))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("all is well\n")
    assert main(["doctor", "--out", "nonsense://x", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["problems"] == 1 and result["checks"][-1]["state"] == "problem"


REQUIREMENTS = [
    "numpy>=1.26",
    "nothing-of-this-name>=1",
    "pytest<1,>=0.5",
    'of-another-system>=1; sys_platform == "plan9"',
    'boto3>=1; extra == "s3"',
    'no-such-package>=1; extra == "gcs"',
    'rarefy[s3]; extra == "all"',
    'ruff>=0.8; extra == "dev"',
]


def test_packages_are_compared_with_the_requirements() -> None:
    wrong, extras = software._requirements(REQUIREMENTS)
    assert wrong.state == "problem"
    version = software.installed("pytest")
    assert wrong.text == f"nothing-of-this-name is not installed, pytest {version} is not <1,>=0.5"
    assert extras.text == "all, s3 installed; not installed: gcs"


def test_what_is_short_is_a_warning_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**6, 10**6))
    monkeypatch.setattr(machine, "memory_bytes", lambda: (4e9, 1e9))
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    checks = list(machine.check_machine())
    for name in ("shared memory", "temporary folder", "working folder", "memory", "cores", "home"):
        (check,) = named(checks, name)
        assert check.state == "warning" and check.advice, name
    assert "--shm-size" in named(checks, "shared memory")[0].advice
    assert machine._clock(1e9).state == "problem" and machine._clock(time.time()).state == "ok"


def test_memory_is_what_the_container_may_use(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   5000000 kB\n")
    assert machine.memory_bytes(tmp_path)[1] == 5_120_000_000
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1000000000\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("400000000\n")
    assert machine.memory_bytes(tmp_path) == (1e9, 6e8)


def test_the_cache_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine._cache().text == f"{tmp_path}/rarefy is empty"
    (tmp_path / "rarefy" / "models").mkdir(parents=True)
    (tmp_path / "rarefy" / "models" / "a").write_bytes(bytes(2_500_000))
    assert machine._cache().text == f"{tmp_path}/rarefy: 1 files, 2.5 MB; rm -r {tmp_path}/rarefy clears it"


def test_a_machine_without_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    (check,) = devices._kernels()
    assert check.state == "warning" and "no-such-compiler is not found" in check.text and "g++" in check.advice


def test_a_compiler_that_builds_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rarefy.device.find_compiler", lambda: "/bin/false")
    monkeypatch.setattr("rarefy.execution._has_cpu_kernels", lambda: False)
    (check,) = devices._kernels()
    assert check.state == "warning" and check.text == "/bin/false cannot build rarefy's CPU kernels"


def gpu_machine(count: int, version: str | None = "13.0", capability: tuple[int, int] = (9, 0)) -> SimpleNamespace:
    """torch as it is on a machine with GPUs."""
    properties = SimpleNamespace(name="NVIDIA X", major=capability[0], minor=capability[1])
    cuda = SimpleNamespace(
        device_count=lambda: count,
        get_device_properties=lambda _: properties,
        mem_get_info=lambda _: (70 * 10**9, 80 * 10**9),
        get_device_capability=lambda _: capability,
    )
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda=version), device=lambda *_: None)


def test_gpus_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rarefy.device.has_triton", lambda _: True)
    (check,) = devices._gpus(gpu_machine(1), ["NVIDIA X 550.1"])
    assert check == ok(
        "GPU",
        "cuda:0 NVIDIA X, 70.0 GB free of 80.0 GB, compute capability 9.0, driver 550.1, Triton kernels",
    )
    monkeypatch.setattr("rarefy.device.has_triton", lambda _: False)
    (check,) = devices._gpus(gpu_machine(1), [])
    assert (check.state, check.advice) == ("warning", "pip install triton")


def test_a_gpu_that_torch_cannot_use_is_a_problem() -> None:
    (check,) = devices._gpus(gpu_machine(0, version=None), ["NVIDIA X 550.1"])
    assert check.state == "problem" and "torch is built for CPUs only" in check.text
    (check,) = devices._gpus(gpu_machine(0), [])
    assert check.state == "ok"


def test_gpus_are_found_by_nvidias_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA X, 550.1'\necho 'NVIDIA X, 550.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert devices.nvidia_gpus() == ["NVIDIA X 550.1"] * 2
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert devices.nvidia_gpus() == []


def test_storage_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    (check,) = storage.check_storage(str(tmp_path))
    assert check.state == "ok"
    assert all(f"{name} " in check.text for name in ("create", "write", "read", "list", "delete"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    url = f"memory://doctor-{tmp_path.name}"
    (check,) = storage.check_storage(url)
    assert check.state == "ok"
    assert fsspec.filesystem("memory").find(f"/doctor-{tmp_path.name}") == []


def test_storage_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (check,) = storage.check_storage(str(tmp_path / "file" / "out"))
    assert check.state == "problem" and "is not writable" in check.text
    assert not (tmp_path / "out").exists()


def test_storage_where_two_writers_can_win_gets_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def careless(self: RemoteFiles, path: str, data: bytes, token: str) -> bool:
        self.put(path, data)
        return True

    monkeypatch.setattr(RemoteFiles, "create", careless)
    (check,) = storage.check_storage(f"memory://careless-{tmp_path.name}")
    assert check.state == "warning" and "two writers can both create a file" in check.text


def test_storage_that_loses_what_is_written_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Store, "read_bytes", lambda self, rel: b"other")
    (check,) = storage.check_storage(str(tmp_path))
    assert check.state == "problem" and "read did not do what it said" in check.text


def test_a_clock_that_differs_from_the_storages_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Store, "seconds_ahead", lambda self, rel: -90.0)
    _, check = storage.check_storage(str(tmp_path))
    assert (check.name, check.state) == ("clock", "warning") and "differs by 90 s" in check.text


def test_a_cluster_that_does_not_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DeviceError("ray_address: 'h:1' is not a Ray cluster that answers")

    monkeypatch.setattr("rarefy.generate.cluster.connected", refuse)
    check = cluster.check_ray("h:1")
    assert check.state == "problem" and "ray status" in check.advice


@pytest.mark.parametrize(("number", "text"), [(999, "1.0 kB"), (2.5e6, "2.5 MB"), (3e9, "3.0 GB"), (4e12, "4.0 TB")])
def test_sizes_are_for_people(number: float, text: str) -> None:
    assert size(number) == text
