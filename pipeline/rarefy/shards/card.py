"""The data set's card: a README with metadata for the Hugging Face Hub."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from rarefy.shards.features import shard_features, yaml_string
from rarefy.shards.metadata import SCHEMA

SIZE_CATEGORIES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"),
)  # fmt: skip

UNKNOWN = "unknown"  # the Hub's word for it
AUDIT_BEGIN, AUDIT_END = "<!-- audit -->", "<!-- end of audit -->"
NOT_AUDITED = "## Audit\n\nNot audited yet: `rarefy audit` compares the images with real ones.\n"
OF_SELECTED = "## Audit\n\n`{folder}README.md` has the audit of the data set that was chosen from these images.\n"


@dataclass(frozen=True)
class CardInfo:
    """What the card says about the run. guidance: term names; sampler: one line.

    selection: of a run with [select], what these shards are; folder: where the data set's shards are, relative to the
    card, with a slash at its end; licence: what the model's card says, None if it says nothing.
    """

    name: str
    preset: str
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    guidance: tuple[str, ...]
    sampler: str
    selection: str = ""
    folder: str = ""
    licence: str | None = None


@dataclass(frozen=True)
class Contents:
    """What the card says about the shards.

    counts: samples by class id; shards: the first one's name and the last one's; weights: SHA-256 of the diffusion
    model's and the classifier's (None without one); beyond_limit, not_accepted: samples that took more candidates than
    the manifest allows, and those that its [accept] did not accept.
    """

    counts: Mapping[int, int]
    shards: tuple[str, str]
    num_shards: int
    weights: tuple[str, str | None]
    beyond_limit: int = 0
    not_accepted: int = 0


def render_card(info: CardInfo, contents: Contents, digest: str) -> str:
    """README.md of a sealed data set."""
    total = sum(contents.counts.values())
    sections = (
        _front_matter(info, total),
        _summary(info, total, contents.num_shards),
        f"{AUDIT_BEGIN}\n{OF_SELECTED.format(folder=info.folder) if info.folder else NOT_AUDITED}{AUDIT_END}\n",
        _usage(contents.shards[0], info),
        _limits(info),
    )
    checkpoint, classifier = contents.weights
    provenance = (
        f"## Provenance\n\nEvery image can be generated again from `manifest.toml` and its key.\n\n"
        f"- manifest digest `{digest}`\n- diffusion weights sha256 `{checkpoint}`\n"
        f"- {_classifier(classifier)}\n{_exceptions(contents)}"
    )
    return "\n".join((*sections, _columns(), _classes(info, contents.counts), provenance))


def _classifier(sha256: str | None) -> str:
    if sha256 is None:
        return "no classifier: the samples have no predicted class, confidence or entropy"
    return f"classifier weights sha256 `{sha256}`"


def _exceptions(contents: Contents) -> str:
    """Lines about images that do not meet the manifest's [accept]; empty if there are none."""
    lines = ""
    if contents.beyond_limit:
        lines += f"- {contents.beyond_limit:,} images took more candidates than the manifest's `max_candidates`\n"
    if contents.not_accepted:
        lines += f"- {contents.not_accepted:,} images were kept although no candidate passed `[accept]`\n"
    return lines


def _front_matter(info: CardInfo, total: int) -> str:
    size = next((label for bound, label in SIZE_CATEGORIES if total < bound), "10B<n<100B")
    return f"""---
license: {yaml_string(info.licence or UNKNOWN)}
pretty_name: {yaml_string(info.name)}
task_categories:
- image-classification
tags:
- synthetic
- rare
- webdataset
- rarefy
size_categories:
- {yaml_string(size)}
configs:
- config_name: default
  data_files:
  - split: train
    path: {info.folder}shards/*.tar
dataset_info:
  config_name: default
  features:
{textwrap.indent(shard_features(info.class_names), "  ")}
---
"""


def _summary(info: CardInfo, total: int, shards: int) -> str:
    guidance = " + ".join(info.guidance) or "none"
    colour = "grey" if info.channels == 1 else "colour"
    return f"""# {info.name}

{total:,} synthetic {colour} images of {info.image_size} x {info.image_size} pixels in {shards:,} WebDataset shards,
drawn from a diffusion model by rarefy.

| | |
|---|---|
| model | {info.preset} |
| sampler | {info.sampler} |
| guidance | {guidance} |
{f"| selection | {info.selection} |" + chr(10) if info.selection else ""}"""


def _usage(first: str, info: CardInfo) -> str:
    """first: the first shard's name. The snippets run in the card's folder, and elsewhere with its path."""
    prefix, folder = first.rpartition("-")[0], info.folder.removesuffix("/") or "."
    chosen = f"`{info.folder}README.md` says more about the images that were chosen.\n\n" if info.folder else ""
    return f"""## Use

{chosen}With `webdataset`:

```python
from pathlib import Path

import webdataset as wds

folder = Path("{folder}")  # relative to this file
shards = sorted(str(path) for path in folder.glob("shards/{prefix}-*.tar"))
dataset = wds.WebDataset(shards, shardshuffle=False, nodesplitter=wds.split_by_node, empty_check=False)
for sample in dataset.decode("{"pill" if info.channels == 1 else "pil"}"):
    image, class_id, info = sample["png"], sample["cls"], sample["json"]
```

With `datasets`, from this folder or from the Hub:

```python
import os

from datasets import load_dataset

dataset = load_dataset(os.path.abspath("."), split="train")  # the folder of this file; on the Hub, org/name
dataset[0]["png"], dataset.features["cls"].int2str(dataset[0]["cls"])
```

`{info.folder}index.json` is a wids index (random access); `{info.folder}metadata/*.parquet` has one row per sample,
`{info.folder}state/*.json` the hashes.
"""


def _limits(info: CardInfo) -> str:
    if info.licence:
        licence = f"The model's card names the licence `{info.licence}`."
    else:
        licence = f"The model names no licence: replace `{UNKNOWN}` at the top of this file by that of the images."
    return f"""## Limits and licence

- The images are synthetic. They can be wrong in ways that no metric sees, and they have the biases of the images that
  the model was trained on.
- An image's class is the one that the model was asked for. `predicted_id` is what the classifier sees, if there is one.
- Rare images are harder to tell from broken ones: look at them before you train on them (`audit/report.html`).
- {licence}
"""


def with_audit(card: str, section: str | None) -> str:
    """The card with this section about the audit, or with the sentence that there is none.

    Cards of earlier versions have no place for it and get one at their end.
    """
    text = NOT_AUDITED if section is None else section
    before, begin, rest = card.partition(AUDIT_BEGIN)
    _, end, after = rest.partition(AUDIT_END)
    if not end:
        return f"{card.rstrip()}\n\n{AUDIT_BEGIN}\n{text}{AUDIT_END}\n"
    return f"{before}{begin}\n{text}{end}{after}"


def _columns() -> str:
    lines = []
    for field in SCHEMA:
        unit = field.metadata.get(b"unit", b"").decode()
        lines.append(f"| {field.name} | {field.type} | {field.metadata[b'description'].decode()} | {unit} |")
    return "## Columns\n\n| column | type | meaning | unit |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"


def _classes(info: CardInfo, counts: Mapping[int, int]) -> str:
    lines = []
    for class_id in sorted(counts):
        name = info.class_names[class_id] if class_id < len(info.class_names) else str(class_id)
        lines.append(f"| {class_id} | {name.replace('|', '/')} | {counts[class_id]:,} |")
    return "## Classes\n\n| id | class | images |\n|---|---|---|\n" + "\n".join(lines) + "\n"
