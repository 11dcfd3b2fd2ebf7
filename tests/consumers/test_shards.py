"""Libraries that read the shards, each by its snippet in docs/EXPORT.md. Planted images say which they are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from libraries import Run, Snippet
from planted_run import planted_confidence

CARD = "README.md"


def with_webdataset(snippet: Snippet, run: Run, workers: int) -> list[tuple[Any, int]]:
    """The images that the snippet's loop sees."""
    names = snippet(
        "wds.WebDataset",
        ("out/demo", str(run.folder)),
        ("num_workers=8", f"num_workers={workers}"),
        ("for images, labels", "seen = []\nfor images, labels"),
        ("    pass", "    seen += zip(images, labels)"),
    )
    assert all(image.shape == (1, 28, 28) and image.dtype.is_floating_point for image, _ in names["seen"])
    return [(((image[0] + 1) * 127.5).round().byte().numpy(), int(label)) for image, label in names["seen"]]


@pytest.mark.parametrize("workers", [0, 2, 8])
@pytest.mark.parametrize("run", ["demo", "one_shard"])
def test_webdataset(run: str, workers: int, snippet: Snippet, request: pytest.FixtureRequest) -> None:
    """Every image once, also with more workers than shards."""
    data: Run = request.getfixturevalue(run)
    data.check(with_webdataset(snippet, data, workers))


@pytest.mark.parametrize("run", ["demo", "one_shard"])
def test_webdataset_on_two_ranks(
    run: str, snippet: Snippet, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together the ranks see every image once, also with fewer shards than ranks."""
    data: Run = request.getfixturevalue(run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    images = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        images.append(with_webdataset(snippet, data, 2))
    data.check(images[0] + images[1])
    assert sorted(map(len, images)) == ([30, 30] if run == "demo" else [0, 12])


def test_wids(demo: Run, snippet: Snippet) -> None:
    """Random access, by the sizes and paths in index.json; its md5 sums are those of the files."""
    wids = pytest.importorskip("wids")
    names = snippet("wids.ShardListDataset")
    samples = names["samples"]
    assert len(samples) == 60
    assert names["sample"]["__key__"] == "00000400001"
    assert names["sample"][".json"]["confidence"] == planted_confidence("00000400001")
    assert all(samples[number][".png"].mode == "L" for number in (0, 59))
    demo.check([(np.array(sample[".png"]), sample[".cls"]) for sample in (samples[number] for number in range(60))])
    index = json.loads((demo.folder / "index.json").read_text())
    for shard in index["shardlist"]:
        path = demo.folder / shard["url"]
        assert wids.wids.compute_file_md5sum(str(path)) == shard["md5sum"]
        assert wids.wids.compute_num_samples(str(path)) == shard["nsamples"]
    assert sorted(path.name for path in (demo.folder / "shards").iterdir()) == [f"rare-00000{n}.tar" for n in range(6)]


@pytest.mark.parametrize("run", ["demo", "selected"])
def test_datasets(run: str, snippet: Snippet, request: pytest.FixtureRequest) -> None:
    """Labels have names, grey images stay grey, columns have their types; with [select], the selected images."""
    pytest.importorskip("datasets")
    data: Run = request.getfixturevalue(run)
    train = snippet("load_dataset", ("out/demo", str(data.folder)))["train"]
    assert train.features["cls"].names[0] == "t-shirt/top" and train.features["cls"].names[9] == "ankle boot"
    assert train.features["json"]["shard"].dtype == "int32" and train.features["json"]["entropy"].dtype == "float64"
    assert {image.mode for image in train["png"]} == {"L"}
    data.check([(np.array(row["png"]), row["cls"]) for row in train])
    assert [row["confidence"] for row in train["json"]] == [planted_confidence(key) for key in train["__key__"]]
    assert all(row["class_name"] == train.features["cls"].int2str(row["class_id"]) for row in train["json"])


def test_datasets_without_a_copy(demo: Run, snippet: Snippet) -> None:
    train = snippet("load_dataset", ('"train")', '"train", streaming=True)'), ("train[0]", "next(iter(train))"))[
        "train"
    ]
    demo.check([(np.array(row["png"]), row["cls"]) for row in train])


@pytest.mark.parametrize("word", ["webdataset", "load_dataset"])
def test_the_cards_snippets(word: str, demo: Run, snippet: Snippet, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in the card's folder."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(demo.folder)
    blocks = (demo.folder / CARD).read_text().split("```python\n")[1:]
    (text,) = (block.partition("```")[0] for block in blocks if word in block)
    names: dict[str, Any] = {"seen": []}
    exec(text.replace("    image, class_id", "    seen.append(sample)\n    image, class_id"), names)
    demo.check([(np.array(row["png"]), row["cls"]) for row in names["seen"] or names["dataset"]])


@pytest.mark.slow  # most of it is waiting for Ray
def test_ray_data(demo: Run, snippet: Snippet) -> None:
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    try:
        rows = snippet("read_webdataset")["rows"].take_all()
    finally:
        ray.shutdown()
    assert all(row["png"].dtype == np.uint8 and row["json"]["key"] == row["__key__"] for row in rows)
    demo.check([(row["png"], row["cls"]) for row in rows])
