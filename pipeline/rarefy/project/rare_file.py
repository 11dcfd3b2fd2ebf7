"""The text of ``rare.toml``: which rare images the trained model makes, and why."""

from __future__ import annotations

import re

from rarefy.project.choices import Choices, sampling_batch
from rarefy.project.toml import Setting, comment, number, quote, section
from rarefy.project.train_file import MODEL


def rare_text(choices: Choices) -> str:
    """The whole file: a manifest for ``rarefy plan`` and ``rarefy run``."""
    name, folder = choices.name, choices.folder
    blocks = [
        comment(
            f"Rare images from the model of {name}: rarefy run {folder}/rare.toml --out OUT. Written by rarefy init. "
            f"rarefy plan {folder}/rare.toml shows what it would make."
        ),
        section(
            "",
            "",
            [
                Setting("name", quote(manifest_name(name)), "name of the data set"),
                Setting("seed", str(choices.seed), "another seed makes other images"),
            ],
        ),
        section("[model]", "", [Setting("path", quote(MODEL), "the model folder, relative to this file")]),
        section("[sampler]", "", _sampler(choices)),
        _GUIDANCE,
        section("[classes]", _why_classes(choices), [_classes(choices)]),
        section("[output]", "", _output(choices)),
        _ACCEPT,
    ]
    return "\n\n".join(blocks) + "\n"


def manifest_name(name: str) -> str:
    """A name as manifests have it: lower-case letters, digits and hyphens."""
    return f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-') or 'images'}-rare"


_GUIDANCE = """\
# Guidance towards rare images; the values are the best of rarefy's sweep on Fashion-MNIST (docs/RESULTS.md). They suit
# a model that makes good images without guidance; on one after short training they lowered recall (docs/TUTORIAL.md).
# So compare with a run without these two tables. Where the noise is low: towards images of whose class the classifier
# is only 50% sure. A larger scale: rarer, but worse.
[[guidance]]
term = "low-confidence"
scale = 1.0
tau = 0.5
window = [0, 500]

# Where the noise is high: away from what the model predicts, which is typical; [time step, gamma] points.
[[guidance]]
term = "predicted-real-image"
gamma = [[300, 0.0], [500, -0.05]]"""

_ACCEPT = """\
# Keep only images that the classifier assigns to their class; each rejected one is drawn again, which costs time.
# [accept]
# on_class = true
# exhausted = "keep\""""


def _sampler(choices: Choices) -> list[Setting]:
    batch = str(sampling_batch(choices.tier))
    return [
        Setting("steps", "50", "steps of dpm-solver++, the default method: as good as 250 ancestral ones"),
        Setting(
            "start", "950", "noisiest of 1,000 time steps: from 999, networks after short training give glaring colours"
        ),
        Setting("precision", quote("exact"), '"fast" is bfloat16 where the hardware has it'),
        Setting("batch", batch, "images per batch; another batch size rounds differently"),
    ]


def _why_classes(choices: Choices) -> str:
    most, least = max(choices.counts.values()), min(choices.counts.values())
    if choices.fill:
        return (
            f"The classes have {least:,} to {most:,} images: a long tail. This fills every class up to the largest, "
            f"with {choices.to_make:,} images in all. Later, new images in the folder count, too."
        )
    return (
        f"The classes have {least:,} to {most:,} images: there is no long tail to fill. So every class gets the same "
        f"number, {choices.to_make:,} images in all."
    )


def _classes(choices: Choices) -> Setting:
    if choices.fill:
        to = max(choices.counts.values())
        return Setting("fill", f"{{ data = {quote(choices.data)}, to = {number(to)} }}", "for each class: to - images")
    return Setting("per_class", number(choices.per_class), "half as many as the largest class has, at most 1,000")


def _output(choices: Choices) -> list[Setting]:
    size = 1000 if choices.to_make >= 100_000 else 500 if choices.to_make >= 5000 else 100
    return [
        Setting("shard_size", str(size), "images per file; a file is what one process makes at a time"),
        Setting("prefix", quote("rare"), "files are named shards/rare-000000.tar"),
    ]
