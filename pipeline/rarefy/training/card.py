"""The model folder's card: a README with metadata for the Hugging Face Hub."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rarefy.models.folder import ModelFolder
from rarefy.training.output import RealImages, read_json

METRICS = {
    "fid": "FID (EfficientNet-lite0 features)",
    "precision": "precision",
    "recall": "recall",
    "on_class": "on class",
}


def write_card(model: ModelFolder, images: RealImages) -> None:
    """Write the folder's ``README.md`` from its provenance."""
    text = render_card(model, images, read_json(model.path / "provenance.json"))
    temporary = model.path / "README.md.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(model.path / "README.md")


def render_card(model: ModelFolder, images: RealImages, record: Mapping[str, Any]) -> str:
    """The card: metadata, what the model is, how to sample from it, its quality and its training images."""
    sections = (
        _front_matter(model, record),
        _summary(model, images, record),
        _usage(),
        _quality(record),
        _parts(record),
    )
    return "\n".join((*sections, _classes(model, images)))


def _front_matter(model: ModelFolder, record: Mapping[str, Any]) -> str:
    # JSON strings are valid YAML, so names with colons or quotes are safe.
    return f"""---
license: unknown
library_name: rarefy
pipeline_tag: unconditional-image-generation
tags:
- diffusion
- image-generation
- rarefy
model_name: {json.dumps(model.name)}
{_results(model, record.get("quality") or {})}---
"""


def _results(model: ModelFolder, quality: Mapping[str, Any]) -> str:
    """The measured quality as the Hub's ``model-index``; empty without one."""
    measured = {key: quality[key] for key in METRICS if key in quality and math.isfinite(quality[key])}
    if not measured:
        return ""
    lines = ["model-index:", f"- name: {json.dumps(model.name)}", "  results:"]
    lines += ["  - task:", "      type: unconditional-image-generation", "    dataset:"]
    lines += [f'      name: "{quality["reference_images"]:,} held-out images"', "      type: held-out", "    metrics:"]
    for key, value in measured.items():
        lines += [f"    - type: {key}", f"      name: {json.dumps(METRICS[key])}", f"      value: {value!r}"]
    return "\n".join(lines) + "\n"


def _summary(model: ModelFolder, images: RealImages, record: Mapping[str, Any]) -> str:
    colour = "grey" if model.channels == 1 else "colour"
    kind = "A class-conditional" if model.num_classes is not None else "An unconditional"
    classifier = " with a noise-aware classifier" if "classifier" in model.files else ""
    trained = "It" if "diffusion" in record else "Its classifier"  # somebody else trained the U-Net
    return f"""# {model.name}

{model.description}

{kind} diffusion model{classifier} for {colour} images of {model.image_size} x {model.image_size} pixels.
{trained} was trained on {len(images.train):,} images of {len(model.class_names):,} classes.

rarefy does not know the licence of the training images: replace `unknown` at the top of this file.
"""


def _usage() -> str:
    return """## Use

A manifest that names this folder (`rare.toml`):

```toml
name = "rare"
[model]
path = "path/to/this/folder"
[classes]
per_class = 10
```

```console
rarefy plan rare.toml
rarefy run rare.toml --out out
```
"""


def _quality(record: Mapping[str, Any]) -> str:
    quality = record.get("quality")
    if quality is None:
        return "## Quality\n\nNot measured yet: this takes a trained U-Net and held-out images.\n"
    rows = [
        f"| {label} | {quality[key]:.4g} | {quality['real'][key]:.4g} |"
        for key, label in METRICS.items()
        if key in quality
    ]
    judge = (
        f"\nOn class: fraction of images whose class the {quality['judged_by']} recognises."
        if quality["judged_by"]
        else ""
    )
    return f"""## Quality

{quality["sample_images"]:,} images of the model ({quality["sampler"]}) and as many training images, measured against
{quality["reference_images"]:,} held-out images, which no training step saw. FID depends on these numbers of images, so
compare it only within this table.{judge}

| | this model | real images |
|---|---|---|
{chr(10).join(rows)}
"""


def _parts(record: Mapping[str, Any]) -> str:
    rows = []
    for part in ("diffusion", "classifier", "judge"):
        if entry := record.get(part):
            rows.append(f"| {part} | {entry['images']:,} | {entry['seconds'] / 3600:.2f} | {_measured(entry)} |")
    head = "## Training\n\n| part | images seen | hours | on held-out images |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n\n`training/` has recipes and logs, `provenance.json` the hashes.\n"


def _measured(entry: Mapping[str, Any]) -> str:
    if loss := (entry.get("held_out") or {}).get("held_out_loss"):
        return f"loss {loss:.4f}"
    accuracy = entry.get("test_accuracy") or {}
    return ", ".join(f"{value:.1%} right at {step}" for step, value in accuracy.items()) or "not measured"


def _classes(model: ModelFolder, images: RealImages) -> str:
    classes = len(model.class_names)
    held_out = np.zeros(classes, int)
    if images.held_out is not None:
        held_out = np.bincount(images.held_out.labels, minlength=classes)
    rows = [
        f"| {class_id} | {name.replace('|', '/')} | {trained:,} | {held:,} |"
        for class_id, (name, trained, held) in enumerate(
            zip(model.class_names, images.train.counts, held_out, strict=True)
        )
    ]
    head = "## Classes\n\n| id | class | training images | held-out images |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"
