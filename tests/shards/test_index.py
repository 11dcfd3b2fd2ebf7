from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from rarefy.errors import NAMES_SHOWN, OutputError, ShardError, first_names
from rarefy.shards.card import CardInfo, render_card
from rarefy.shards.claim import claim_output
from rarefy.shards.index import is_sealed, seal
from rarefy.shards.listing import committed
from rarefy.shards.marker import read_marker
from rarefy.shards.store import Store
from rarefy.shards.verify import verify, verify_shard
from rarefy.shards.writer import Sample, ShardHeader, commit_shard, encode_png

Plan = tuple[str, str, list[str], dict[int, int]]
Header = Callable[[int], ShardHeader]
Samples = Callable[[int], list[Sample]]
TAR, PARQUET, MARKER = "shards/rare-000001.tar", "metadata/rare-000001.parquet", "state/rare-000001.json"


def swap_file(tar: bytes, name: str, content: bytes) -> bytes:
    """The tar with another content for one of its files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as source, tarfile.open(fileobj=out, mode="w") as target:
        for member in source:
            data = source.extractfile(member).read()  # type: ignore[union-attr]  # every member is a file
            data = content if member.name == name else data
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return out.getvalue()


def forge_marker(store: Store, **claims: object) -> None:
    marker = read_marker(store, "rare-000001")
    assert marker is not None
    store.write_bytes(MARKER, replace(marker, **claims).to_json())  # type: ignore[arg-type]  # by name


def problems(store: Store, plan: Plan) -> str:
    by_shard = verify(store, plan[2], plan[1])
    assert list(by_shard) == ["rare-000001"]
    return "; ".join(by_shard["rare-000001"])


def test_a_whole_run_has_no_problems(run: Store, plan: Plan) -> None:
    assert verify(run, plan[2], plan[1]) == {}


@pytest.mark.parametrize("cut", [1, 2000, 9000])
def test_truncated_tar_is_reported(cut: int, run: Store, plan: Plan) -> None:
    data = run.read_bytes(TAR)
    run.write_bytes(TAR, data[:-cut])
    assert f"tar has {len(data) - cut} bytes, its marker says {len(data)}" in problems(run, plan)


def test_swapped_image_is_reported_even_if_the_marker_agrees(
    run: Store, plan: Plan, make_image: Callable[..., np.ndarray]
) -> None:
    forged = swap_file(run.read_bytes(TAR), "00000100003.png", encode_png(make_image(9, 9)))
    run.write_bytes(TAR, forged)
    lines = problems(run, plan)
    assert "tar has" in lines and "sample 00000100003: its image does not have the sha256 that its row says" in lines
    hashes = {"tar_sha256": hashlib.sha256(forged).hexdigest(), "tar_md5": hashlib.md5(forged).hexdigest()}
    forge_marker(run, tar_bytes=len(forged), **hashes)
    assert problems(run, plan) == "sample 00000100003: its image does not have the sha256 that its row says"


@pytest.mark.parametrize(
    ("extension", "content", "message"),
    [
        ("cls", b"7", "its .cls is b'7', its row says class 1"),
        ("json", b"{", "its .json and its row differ in format (the .json cannot be parsed)"),
        ("json", b"[]", "its .json and its row differ in format (the .json is not an object)"),
        ("json", None, "its .json and its row differ in format"),
    ],
)
def test_swapped_text_is_reported(extension: str, content: bytes | None, message: str, run: Store, plan: Plan) -> None:
    name = f"00000100003.{extension}"
    with tarfile.open(fileobj=io.BytesIO(run.read_bytes(TAR))) as tar:
        same_values = tar.extractfile(name).read() + b" "  # type: ignore[union-attr]  # the member is a file
    forged = swap_file(run.read_bytes(TAR), name, same_values if content is None else content)
    run.write_bytes(TAR, forged)
    forge_marker(run, tar_bytes=len(forged), tar_sha256=hashlib.sha256(forged).hexdigest(),
                 tar_md5=hashlib.md5(forged).hexdigest())  # fmt: skip
    assert problems(run, plan) == f"sample 00000100003: {message}"


def test_changed_parquet_row_is_reported_even_if_the_marker_agrees(run: Store, plan: Plan) -> None:
    table = pq.read_table(pa.BufferReader(run.read_bytes(PARQUET)))
    changed = pc.if_else(pc.equal(table["key"], "00000100004"), 0.5, table["confidence"])
    table = table.set_column(table.schema.get_field_index("confidence"), table.schema.field("confidence"), changed)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    forged = sink.getvalue().to_pybytes()
    run.write_bytes(PARQUET, forged)
    lines = problems(run, plan)
    assert "Parquet has" in lines and "sample 00000100004: its .json and its row differ in confidence" in lines
    forge_marker(run, parquet_bytes=len(forged), parquet_sha256=hashlib.sha256(forged).hexdigest())
    assert problems(run, plan) == "sample 00000100004: its .json and its row differ in confidence"


def test_lost_parquet_row_is_reported(run: Store, plan: Plan) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(pa.BufferReader(run.read_bytes(PARQUET))).slice(1), sink)
    run.write_bytes(PARQUET, sink.getvalue().to_pybytes())
    lines = problems(run, plan)
    assert "Parquet has 5 rows, its marker says 6" in lines
    assert "sample 00000100000 is in the tar but has no row" in lines


@pytest.mark.parametrize("data", [b"", b"PAR1 no PAR1"])
def test_broken_parquet_is_reported(data: bytes, run: Store, plan: Plan) -> None:
    run.write_bytes(PARQUET, data)
    assert "rare-000001.parquet: not a readable Parquet file" in problems(run, plan)


@pytest.mark.parametrize("rel", [TAR, PARQUET])
def test_missing_file_is_named(rel: str, run: Store, plan: Plan) -> None:
    run.delete(rel)
    assert problems(run, plan) == f"{rel} is missing"


def test_marker_of_another_digest_is_named(run: Store, plan: Plan) -> None:
    forge_marker(run, manifest_digest="e" * 64)
    assert problems(run, plan) == f"its marker is for manifest {'e' * 64}, not {plan[1]}"
    assert list(committed(run, plan[2], plan[1])) == ["rare-000000", "rare-000002"]


def test_damaged_marker_is_named_and_not_committed(run: Store, plan: Plan) -> None:
    run.write_bytes(MARKER, b'{"name": "rare-0')
    assert problems(run, plan).startswith("state/rare-000001.json: not JSON")
    assert list(committed(run, plan[2], plan[1])) == ["rare-000000", "rare-000002"]


def test_seal_writes_the_data_set(run: Store, plan: Plan, card: CardInfo) -> None:
    sealed = seal(run, *plan, card)
    assert is_sealed(run)
    assert (sealed.shards, sealed.samples, sealed.counts) == (3, 18, {0: 9, 1: 9})
    index = json.loads(run.read_bytes("index.json"))
    assert (index["__kind__"], index["wids_version"]) == ("wids-shard-index-v1", 1)
    for name, entry in zip(plan[2], index["shardlist"], strict=True):
        data = run.read_bytes(entry["url"])
        assert entry == {
            "url": f"shards/{name}.tar",
            "md5sum": hashlib.md5(data).hexdigest(),
            "nsamples": 6,
            "filesize": len(data),
        }
    listing = json.loads(run.read_bytes("metadata/_index.json"))
    assert (listing["total"], listing["counts"]) == (18, {"0": 9, "1": 9})
    assert [entry["parquet"] for entry in listing["shards"]] == [f"metadata/{name}.parquet" for name in plan[2]]
    (entropy,) = (column for column in listing["columns"] if column["name"] == "entropy")
    assert (entropy["type"], entropy["unit"]) == ("double", "nat")
    success = json.loads(run.read_bytes("_SUCCESS"))
    assert success == {"manifest_digest": plan[1], "shards": 3, "samples": 18}
    files = ["README.md", "_SUCCESS", "index.json", "manifest.toml", "metadata", "shards", "state"]
    assert run.list() == files


def test_card_front_matter_is_what_the_hub_reads(run: Store, plan: Plan, card: CardInfo) -> None:
    seal(run, *plan, card)
    _, front, body = run.read_bytes("README.md").decode().split("---\n", 2)
    table = yaml.safe_load(front)
    assert table["pretty_name"] == card.name
    assert table["size_categories"] == ["n<1K"]
    assert table["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "shards/*.tar"}]},
    ]
    assert "| 1 | ankle boot | 9 |" in body
    assert '"shards/rare-{000000..000002}.tar"' in body


CARD = """# odd: "name" # 1

18 synthetic colour images of 4 x 4 pixels in 3 WebDataset shards,
drawn from a diffusion model by rarefy.

| | |
|---|---|
| model | fashion-mnist-28 |
| sampler | ancestral, 250 steps |
| guidance | classifier + low-confidence |

## Use

```python
import webdataset as wds
dataset = wds.WebDataset("shards/rare-{000000..000002}.tar", shardshuffle=False).decode("pil")
for sample in dataset:
    image, class_id, info = sample["png"], sample["cls"], sample["json"]
```

`index.json` is a wids index (random access); `metadata/*.parquet` has one row per sample, `state/*.json`
the hashes.

## Columns

| column | type | meaning | unit |
|---|---|---|---|
| key | string | sample key in the tar: six digits of shard, five of index |  |
"""
CLASSES = f"""
## Classes

| id | class | images |
|---|---|---|
| 0 | t-shirt/top | 9 |
| 2 | 2 | 9 |

## Provenance

Every image can be generated again from `manifest.toml` and its key.

- manifest digest `{"d" * 64}`
- diffusion weights sha256 `{"a" * 64}`
- classifier weights sha256 `{"b" * 64}`
"""


def test_the_cards_text(plan: Plan, card: CardInfo) -> None:
    _, _, body = render_card(card, {0: 9, 2: 9}, plan[2], plan[1]).split("---\n", 2)
    assert body.startswith(f"\n{CARD}") and body.endswith(CLASSES)
    assert "shards/my-rare-{000000..000002}.tar" in render_card(card, {0: 1}, [f"my-{name}" for name in plan[2]], "")
    grey = render_card(replace(card, channels=1, guidance=(), class_names=("a|b",)), {0: 999}, plan[2], "")
    assert "999 synthetic grey images" in grey and "| guidance | none |" in grey and "| 0 | a/b | 999 |" in grey


@pytest.mark.parametrize(("count", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**10, "10B<n<100B")])
def test_the_cards_size_category(count: int, size: str, plan: Plan, card: CardInfo) -> None:
    front = yaml.safe_load(render_card(card, {0: count}, plan[2], plan[1]).split("---\n")[1])
    assert front["size_categories"] == [size] and front["task_categories"] == ["image-classification"]
    assert front["tags"] == ["synthetic", "rare", "webdataset", "rarefy"]


def test_sealing_twice_gives_the_same_files(run: Store, plan: Plan, card: CardInfo) -> None:
    names = ("index.json", "README.md", "_SUCCESS", "metadata/_index.json")
    seal(run, *plan, card)
    before = [run.read_bytes(name) for name in names]
    seal(run, *plan, card)
    assert [run.read_bytes(name) for name in names] == before


def test_seal_refuses_gaps(run: Store, plan: Plan, card: CardInfo) -> None:
    run.delete(MARKER)
    with pytest.raises(ShardError, match="1 missing: rare-000001; run generate again"):
        seal(run, *plan, card)
    assert not is_sealed(run) and not run.exists("index.json")


def test_seal_deletes_the_marker_of_a_damaged_shard(
    run: Store, plan: Plan, card: CardInfo, make_header: Header, make_samples: Samples
) -> None:
    seal(run, *plan, card)
    run.write_bytes(TAR, run.read_bytes(TAR)[:-1])
    with pytest.raises(ShardError, match=r"1 damaged, markers deleted: rare-000001 \(tar has"):
        seal(run, *plan, card)
    assert not is_sealed(run)
    assert list(committed(run, plan[2], plan[1])) == ["rare-000000", "rare-000002"]
    commit_shard(run, make_header(1), make_samples(1), seconds=1.0)
    seal(run, *plan, card)
    assert is_sealed(run)


def test_seal_refuses_other_counts_strangers_and_other_places(run: Store, plan: Plan, card: CardInfo) -> None:
    text, digest, names, _ = plan
    with pytest.raises(ShardError, match="counts"):
        seal(run, text, digest, names, {0: 10, 1: 8}, card)
    run.write_bytes("shards/other-000000.tar", b"")
    with pytest.raises(ShardError, match=r"other-000000\.tar: not part of this plan"):
        seal(run, *plan, card)
    run.delete("shards/other-000000.tar")
    with pytest.raises(OutputError, match="it contains the run of"):
        seal(run, text, "e" * 64, names, {0: 9, 1: 9}, card)
    seal(run, text, digest, names, {0: 9, 1: 9, 2: 0}, card)


def test_seal_without_a_run_writes_nothing(store: Store, plan: Plan, card: CardInfo) -> None:
    with pytest.raises(OutputError, match=r"^out: '.*' is not a rarefy run$"):
        seal(store, *plan, card)
    assert store.list() == []


def test_seal_deletes_the_files_of_dead_attempts(
    tmp_path: Path, plan: Plan, card: CardInfo, make_samples: Samples, make_header: Header
) -> None:
    store = Store(str(tmp_path / "out"))
    claim_output(store, plan[0], plan[1])
    for shard in range(3):
        commit_shard(store, make_header(shard), make_samples(shard), seconds=1.0)
    left = tmp_path / "out" / "shards" / f".rare-000001.tar.{'f' * 32}.tmp"
    left.write_bytes(b"half a tar")
    os.utime(left, (0, 0))
    assert verify_shard(store, "rare-000001", plan[1]) == []
    seal(store, *plan, card)
    assert not left.exists()


def test_claim(store: Store) -> None:
    claim_output(store, "first", "1" * 64)
    claim_output(store, "first # with a comment", "1" * 64)
    assert store.read_bytes("manifest.toml") == b"first"
    with pytest.raises(OutputError, match=f"it contains the run of {'1' * 64}"):
        claim_output(store, "second", "2" * 64)
    assert store.read_bytes("manifest.toml") == b"first"
    # Killed between writing the two files: the same run continues.
    store.delete("manifest.toml")
    claim_output(store, "first", "1" * 64)
    assert store.read_bytes("manifest.toml") == b"first"


def test_claim_refuses_a_folder_with_other_files(store: Store) -> None:
    store.write_bytes("thesis.tex", b"")
    with pytest.raises(OutputError, match=r"empty or a rarefy run \(it contains thesis.tex\)"):
        claim_output(store, "first", "1" * 64)
    assert store.list() == ["thesis.tex"]


def test_claim_of_a_damaged_run_file_is_one_line(store: Store) -> None:
    store.write_bytes("state/run.json", b"[]")
    with pytest.raises(OutputError, match="a file that rarefy wrote"):
        claim_output(store, "first", "1" * 64)


def test_long_lists_of_names_are_cut() -> None:
    assert first_names([str(n) for n in range(NAMES_SHOWN)]).endswith(f", {NAMES_SHOWN - 1}")
    assert first_names([str(n) for n in range(NAMES_SHOWN + 3)]).endswith(f", {NAMES_SHOWN - 1} and 3 more")
