"""CPU quotas of containers, as the files of control groups say them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rarefy import cores, device
from rarefy.cores import cpu_quota, usable_cores


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        (  # without a namespace; the parent is stricter
            {
                "proc/self/cgroup": "0::/kube/pod/box\n",
                "sys/fs/cgroup/kube/pod/box/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/kube/pod/cpu.max": "150000 50000\n",
                "sys/fs/cgroup/kube/cpu.max": "max 100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/docker/1\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "5:memory:/m\n", "sys/fs/cgroup/memory/m/cpu.max": "100000 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "rubbish\n"}, None),
    ],
)
def test_quota(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert cpu_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(("quota", "expected"), [(None, 6), (0.5, 1), (2.5, 2), (6.0, 6), (64.0, 6)])
def test_cores_are_those_of_the_affinity_within_the_quota(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3, 9)))
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert usable_cores() == expected


@pytest.mark.parametrize(
    ("names", "torch_sees", "expected"),
    [
        (None, 4, 4),
        ("", 0, 0),
        ("2,0", 2, 2),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6, GPU-1d3c", 2, 2),
        ("MIG-a", 1, 1),
        ("MIG-a,MIG-b, MIG-c", 1, 3),
        ("MIG-a,MIG-a", 1, 1),
        ("MIG-gone", 0, 0),
    ],
)
def test_gpus_named_by_the_environment(
    names: str | None, torch_sees: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch counts what CUDA finds; CUDA shows a process only the first part of a GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if names is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    monkeypatch.setattr(device.torch.cuda, "device_count", lambda: torch_sees)
    assert device.visible_gpus() == expected
