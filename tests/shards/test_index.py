from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rarefy.errors import NAMES_SHOWN, OutputError, ShardError, first_names
from rarefy.shards.card import CardInfo, Contents, render_card
from rarefy.shards.check import check_shard
from rarefy.shards.claim import claim_output
from rarefy.shards.index import is_sealed
from rarefy.shards.seal import seal
from rarefy.shards.spec import RunSpec
from rarefy.shards.store import Store
from rarefy.shards.verify import strangers, verify
from rarefy.shards.writer import Sample, ShardHeader, commit_shard

Plan = tuple[str, str, list[str], dict[int, int]]
Header = Callable[[int], ShardHeader]
Samples = Callable[[int], list[Sample]]
TAR, PARQUET, MARKER = "shards/rare-000001.tar", "metadata/rare-000001.parquet", "state/rare-000001.json"


def everything(store: Store) -> dict[str, bytes]:
    """Every file's bytes by path."""
    paths = [f"{folder}{name}" for folder in ("", "state/", "shards/", "metadata/") for name in store.list(folder)]
    return {rel: store.read_bytes(rel) for rel in paths if rel not in ("state", "shards", "metadata")}


def names(spec: RunSpec) -> list[str]:
    return [shard.name for shard in spec.shards]


def test_seal_writes_the_data_set(run: Store, spec: RunSpec, card: CardInfo) -> None:
    sealed = seal(run, spec, card)
    assert is_sealed(run)
    assert (sealed.shards, sealed.samples, sealed.counts) == (3, 18, {0: 9, 1: 9})
    index = json.loads(run.read_bytes("index.json"))
    assert (index["__kind__"], index["wids_version"]) == ("wids-shard-index-v1", 1)
    for name, entry in zip(names(spec), index["shardlist"], strict=True):
        data = run.read_bytes(entry["url"])
        assert entry == {
            "url": f"shards/{name}.tar",
            "md5sum": hashlib.md5(data).hexdigest(),
            "nsamples": 6,
            "filesize": len(data),
        }
    listing = json.loads(run.read_bytes("metadata.json"))
    assert (listing["total"], listing["counts"]) == (18, {"0": 9, "1": 9})
    assert [entry["parquet"] for entry in listing["shards"]] == [f"metadata/{name}.parquet" for name in names(spec)]
    (entropy,) = (column for column in listing["columns"] if column["name"] == "entropy")
    assert (entropy["type"], entropy["unit"]) == ("double", "nat")
    success = json.loads(run.read_bytes("_SUCCESS"))
    assert success == {"manifest_digest": spec.digest, "shards": 3, "samples": 18}
    files = ["README.md", "_SUCCESS", "index.json", "manifest.toml", "metadata", "metadata.json", "shards", "state"]
    assert run.list() == files
    # Readers such as polars take a folder of Parquet files only if it has nothing else.
    assert run.list("metadata") == [f"{name}.parquet" for name in names(spec)]


def test_card_front_matter_is_what_the_hub_reads(run: Store, spec: RunSpec, card: CardInfo) -> None:
    seal(run, spec, card)
    _, front, body = run.read_bytes("README.md").decode().split("---\n", 2)
    table = yaml.safe_load(front)
    assert table["license"] == "unknown"
    assert table["pretty_name"] == card.name
    assert table["size_categories"] == ["n<1K"]
    assert table["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "shards/*.tar"}]},
    ]
    assert "| 1 | ankle boot | 9 |" in body
    assert '"shards/rare-*.tar"' in body


CARD = """# odd: "name" # 1

18 synthetic colour images of 4 x 4 pixels in 3 WebDataset shards,
drawn from a diffusion model by rarefy.

| | |
|---|---|
| model | fashion-mnist-28 |
| sampler | ancestral, 250 steps |
| guidance | classifier + low-confidence |

<!-- audit -->
## Audit

Not audited yet: `rarefy audit` compares the images with real ones.
<!-- end of audit -->

## Use

With `webdataset`:

```python
from pathlib import Path

import webdataset as wds

folder = Path(".")  # relative to this file
shards = sorted(str(path) for path in folder.glob("shards/rare-*.tar"))
dataset = wds.WebDataset(shards, shardshuffle=False, nodesplitter=wds.split_by_node, empty_check=False)
for sample in dataset.decode("pil"):
    image, class_id, info = sample["png"], sample["cls"], sample["json"]
```

With `datasets`, from this folder or from the Hub:

```python
import os

from datasets import load_dataset

dataset = load_dataset(os.path.abspath("."), split="train")  # the folder of this file; on the Hub, org/name
dataset[0]["png"], dataset.features["cls"].int2str(dataset[0]["cls"])
```

`index.json` is a wids index (random access); `metadata/*.parquet` has one row per sample,
`state/*.json` the hashes.

## Limits and licence

- The images are synthetic. They can be wrong in ways that no metric sees, and they have the biases of the images that
  the model was trained on.
- An image's class is the one that the model was asked for. `predicted_id` is what the classifier sees, if there is one.
- Rare images are harder to tell from broken ones: look at them before you train on them (`audit/report.html`).
- The model names no licence: replace `unknown` at the top of this file by that of the images.

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


def contents(**changes: object) -> Contents:
    shards = ("rare-000000", "rare-000002")
    return replace(Contents({0: 9, 2: 9}, shards, 3, ("a" * 64, "b" * 64)), **changes)  # type: ignore[arg-type]  # by name


def test_the_cards_text(spec: RunSpec, card: CardInfo) -> None:
    _, _, body = render_card(card, contents(), spec.digest).split("---\n", 2)
    assert body.startswith(f"\n{CARD}") and body.endswith(CLASSES)
    mine = contents(shards=("my-rare-000000", "my-rare-000002"))
    assert '"shards/my-rare-*.tar"' in render_card(card, mine, "")
    grey = replace(card, channels=1, guidance=(), class_names=("a|b",))
    text = render_card(grey, contents(counts={0: 999}, weights=("a", None)), "")
    assert "999 synthetic grey images" in text and "| guidance | none |" in text and "| 0 | a/b | 999 |" in text
    assert text.endswith("- no classifier: the samples have no predicted class, confidence or entropy\n")


def test_the_card_counts_images_that_the_manifest_does_not_accept(card: CardInfo) -> None:
    text = render_card(card, contents(beyond_limit=1234, not_accepted=56), "")
    assert text.endswith(
        "- 1,234 images took more candidates than the manifest's `max_candidates`\n"
        "- 56 images were kept although no candidate passed `[accept]`\n"
    )


@pytest.mark.parametrize(("count", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**10, "10B<n<100B")])
def test_the_cards_size_category(count: int, size: str, card: CardInfo) -> None:
    front = yaml.safe_load(render_card(card, contents(counts={0: count}), "").split("---\n")[1])
    assert front["size_categories"] == [size] and front["task_categories"] == ["image-classification"]
    assert front["tags"] == ["synthetic", "rare", "webdataset", "rarefy"]


def test_sealing_twice_gives_the_same_files(run: Store, spec: RunSpec, card: CardInfo) -> None:
    files = ("index.json", "README.md", "_SUCCESS", "metadata.json")
    seal(run, spec, card)
    before = [run.read_bytes(name) for name in files]
    seal(run, spec, card)
    assert [run.read_bytes(name) for name in files] == before


def test_seal_refuses_gaps(run: Store, spec: RunSpec, card: CardInfo) -> None:
    run.delete(MARKER)
    with pytest.raises(ShardError, match="1 missing: rare-000001; run generate again"):
        seal(run, spec, card)
    assert not is_sealed(run) and not run.exists("index.json")


def test_seal_changes_nothing_unasked(run: Store, spec: RunSpec, card: CardInfo) -> None:
    seal(run, spec, card)
    run.write_bytes(TAR, run.read_bytes(TAR)[:-1])
    before = everything(run)
    with pytest.raises(
        ShardError, match=r"1 damaged: rare-000001 \(.* bytes, .*\); nothing was changed, _SUCCESS incl"
    ):
        seal(run, spec, card)
    assert everything(run) == before


def test_repair_withdraws_damaged_shards(
    run: Store, spec: RunSpec, card: CardInfo, make_header: Header, make_samples: Samples
) -> None:
    seal(run, spec, card)
    run.write_bytes(TAR, run.read_bytes(TAR)[:-1])
    run.delete("state/rare-000002.json")
    said = (
        r"^shards: 1 missing: rare-000002; 1 damaged: rare-000001 \(.*\); _SUCCESS deleted; 1 markers of damaged shards"
    )
    with pytest.raises(ShardError, match=said):
        seal(run, spec, card, repair=True)
    assert not is_sealed(run)
    assert run.list("state") == ["rare-000000.json", "run.json"]
    for shard in (1, 2):
        commit_shard(run, make_header(shard), make_samples(shard), seconds=1.0)
    seal(run, spec, card, repair=True)
    assert is_sealed(run) and verify(run, spec) == {}


def test_repair_leaves_a_marker_that_another_attempt_has_replaced(
    run: Store, spec: RunSpec, card: CardInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.read_bytes("state/rare-000001.json")
    run.write_bytes("state/rare-000001.json", whole.replace(b"tar", b"rat"))
    judge = strangers

    def late_attempt(store: Store, spec: RunSpec) -> Iterator[str]:
        store.write_bytes("state/rare-000001.json", whole)
        return judge(store, spec)

    monkeypatch.setattr("rarefy.shards.seal.strangers", late_attempt)
    with pytest.raises(ShardError, match="1 damaged: rare-000001"):
        seal(run, spec, card, repair=True)
    assert run.read_bytes("state/rare-000001.json") == whole


def test_repair_replaces_a_whole_shard_that_is_not_the_plans(
    run: Store, spec: RunSpec, card: CardInfo, make_header: Header, make_samples: Samples
) -> None:
    """Its files agree with each other and with their marker, so that another attempt would adopt them."""
    for rel in (TAR, PARQUET, MARKER):
        run.delete(rel)
    wrong = [replace(sample, record=replace(sample.record, seed=7, candidate=1)) for sample in make_samples(1)]
    commit_shard(run, make_header(1), wrong, seconds=1.0)
    with pytest.raises(ShardError, match=r"1 damaged: rare-000001 \(sample 00000100000: seed is 7, the plan says"):
        seal(run, spec, card, repair=True)
    commit_shard(run, make_header(1), make_samples(1), seconds=1.0)
    seal(run, spec, card)
    assert verify(run, spec) == {}


class StoppedError(Exception):
    """A crash."""


class Stopping(Store):
    """A store that stops its process after a number of changes."""

    def __init__(self, root: str, changes: int) -> None:
        super().__init__(root)
        self.left = changes

    def _count(self) -> None:
        if not self.left:
            raise StoppedError
        self.left -= 1

    def write_bytes(self, rel: str, data: bytes) -> None:
        self._count()
        super().write_bytes(rel, data)

    def delete(self, rel: str) -> None:
        self._count()
        super().delete(rel)

    def withdraw(self, rel: str, sha256: str) -> bool:
        self._count()
        return super().withdraw(rel, sha256)

    @contextmanager
    def staged(self, rel: str) -> Iterator[Path]:
        with super().staged(rel) as path:
            yield path
            self._count()


@pytest.mark.parametrize("repair", [False, True])
def test_a_crash_never_leaves_an_incomplete_run_sealed(
    repair: bool, run: Store, spec: RunSpec, card: CardInfo, make_header: Header, make_samples: Samples
) -> None:
    """After each change that sealing or repairing makes. The run is sealed and whole, or it is not sealed."""
    seal(run, spec, card)
    for changes in itertools.count():
        if repair:
            run.write_bytes(TAR, b"damaged")
            run.write_bytes("metadata/rare-000002.parquet", b"damaged")
        ended = False
        try:
            seal(Stopping(run.root, changes), spec, card, repair)
            ended = True
        except StoppedError:
            pass
        except ShardError:
            ended = True
        missing = [shard for shard in range(3) if not run.exists(f"state/rare-00000{shard}.json")]
        assert not (missing and is_sealed(run))
        assert set(verify(run, spec)) <= {"rare-000001", "rare-000002"}
        for shard in missing:
            commit_shard(run, make_header(shard), make_samples(shard), seconds=1.0)
        with suppress(ShardError):
            seal(run, spec, card, repair=True)
        for shard in (1, 2):
            commit_shard(run, make_header(shard), make_samples(shard), seconds=1.0)
        seal(run, spec, card)
        assert verify(run, spec) == {}
        if ended:
            break
    assert changes == (7 if repair else 5)


def test_seal_refuses_strangers_and_other_manifests(run: Store, spec: RunSpec, card: CardInfo) -> None:
    run.write_bytes("shards/other-000000.tar", b"")
    with pytest.raises(ShardError, match=r"shards/other-000000\.tar: not part of this plan"):
        seal(run, spec, card)
    assert run.exists("shards/other-000000.tar") and not is_sealed(run)
    run.delete("shards/other-000000.tar")
    with pytest.raises(OutputError, match=r"is not a whole run: manifest\.toml has the digest"):
        seal(run, replace(spec, digest="e" * 64), card)
    seal(run, spec, card)


def test_the_indexs_bytes_are_those_of_json_dumps(run: Store, spec: RunSpec, card: CardInfo) -> None:
    seal(run, spec, card)
    for rel in ("index.json", "metadata.json", "_SUCCESS"):
        data = run.read_bytes(rel)
        assert data == json.dumps(json.loads(data), indent=1).encode() + b"\n"


def test_seal_without_a_run_writes_nothing(store: Store, spec: RunSpec, card: CardInfo) -> None:
    with pytest.raises(OutputError, match=r"^out: '.*' is not a rarefy run: it has no state/run\.json$"):
        seal(store, spec, card)
    assert store.list() == []


def test_seal_deletes_the_files_of_dead_attempts(
    tmp_path: Path, spec: RunSpec, card: CardInfo, make_samples: Samples, make_header: Header
) -> None:
    store = Store(str(tmp_path / "out"))
    claim_output(store, "text", spec.digest)
    for shard in range(3):
        commit_shard(store, make_header(shard), make_samples(shard), seconds=1.0)
    left = [tmp_path / "out" / folder / f".rare-000001.tar.{'f' * 32}.tmp" for folder in ("shards", "rarity", "audit")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half a file")
        os.utime(path, (0, 0))
    assert check_shard(store, spec.shards[1], spec.digest).problems == ()
    seal(store, spec, card)
    assert not any(path.exists() for path in left)


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
