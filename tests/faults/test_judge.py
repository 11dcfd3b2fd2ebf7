"""The judge finds what is planted."""

from __future__ import annotations

import fsspec
import pytest

from benchmarks.synthetic import commit_synthetic, synthetic_manifest
from faults.judge import content, judge
from faults.world import Output
from rarefy.shards.store import Store

SHARDS = [f"rare-{number:06d}" for number in range(3)]


@pytest.fixture
def output(tmp_path: object) -> Output:
    """Three shards of two images."""
    manifest, store = synthetic_manifest(3, rows=2), Store(f"{tmp_path}/out")
    for shard in range(3):
        commit_synthetic(store, manifest, shard, "attempt")
    return Output(store.root, fsspec.filesystem("file"), store.path)


def files(output: Output) -> dict[str, bytes]:
    return {name: output.read(name) for name in output.names()}


def test_an_equal_run_is_good(output: Output) -> None:
    assert judge(output, content(files(output))).good
    assert output.committed() == 3


def test_lost_doubled_and_wrong_are_counted(output: Output) -> None:
    expected = content(files(output))
    tars, tables = ([f"{folder}/{name}.{end}" for name in SHARDS] for folder, end in
                    (("shards", "tar"), ("metadata", "parquet")))  # fmt: skip
    second = output.read(tars[1])
    output.write(tars[2], second)
    verdict = judge(output, expected)
    assert (verdict.lost, verdict.doubled, verdict.wrong, verdict.equal) == (2, 2, 0, False)
    output.delete(tables[0])
    assert judge(output, expected).lost == 4


def test_other_pixels_under_a_right_key_are_wrong(output: Output) -> None:
    """The images of a run with another seed, whose keys are the same."""
    expected = content(files(output))
    changed = dict(expected.pixels)
    key = next(iter(changed))
    changed[key] = "0" * 64
    verdict = judge(output, type(expected)(changed, expected.keys, expected.rows, expected.digest))
    assert (verdict.lost, verdict.doubled, verdict.wrong, verdict.equal) == (0, 0, 1, True)
    assert not verdict.good
