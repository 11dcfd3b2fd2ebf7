"""What ``rarefy init`` chooses for a data set: everything that its two files say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rarefy.generate.progress import duration
from rarefy.models.config import NetworkConfig
from rarefy.project.mirror import Mirror
from rarefy.project.networks import CPU, Tier
from rarefy.project.speed import Speed

IMAGES_PER_ROOT = 12_000  # images to see for each unit of sqrt(training images): 3 million for 60,000
CLASSIFIER_SHARE, JUDGE_SHARE = 0.25, 0.1  # of the images that the diffusion network sees
FEWEST_SEEN = 50_000
LONG_TAIL = 2.0  # the largest class over the smallest, from which rare classes are drawn more often
FEW = 100  # fewer images of a class than this are too few (docs/QUICKSTART.md)
MOST_PER_CLASS = 1000


@dataclass(frozen=True)
class Part:
    """The training of one network. passes: over the training images; why_images: how their number was chosen."""

    name: str
    images: int
    speed: Speed
    passes: float
    why_images: str

    @property
    def seconds(self) -> float:
        """Estimated time of training."""
        return self.images / self.speed.images_per_s


@dataclass(frozen=True)
class Choices:
    """A project before its files are written.

    folder: the project's name on disk; data: path of the images, relative to it; counts: images by class name,
    held-out ones included; training: images to train on; held_out: images that are not; test: whether those are a test
    set of their own.
    """

    name: str
    folder: str
    data: str
    skip_broken: bool
    counts: Mapping[str, int]
    training: int
    held_out: int
    test: bool
    size: int
    why_size: str
    unet: NetworkConfig
    classifier: NetworkConfig
    tier: Tier
    hardware: str
    mirror: Mirror
    parts: Sequence[Part]
    seed: int

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.unet.in_channels

    @property
    def imbalance(self) -> float:
        """The largest class over the smallest."""
        return max(self.counts.values()) / max(min(self.counts.values()), 1)

    @property
    def fill(self) -> Mapping[str, int]:
        """Images to make by class name, so that every class has as many as the largest; empty if balanced."""
        most = max(self.counts.values())
        return {name: most - n for name, n in self.counts.items() if n < most} if self.imbalance > LONG_TAIL else {}

    @property
    def per_class(self) -> int:
        """Images to make of every class where there is no long tail: half as many as there are, at most 1,000."""
        return max(1, min(max(self.counts.values()) // 2, MOST_PER_CLASS))

    @property
    def to_make(self) -> int:
        """Number of images that the run makes."""
        return sum(self.fill.values()) or self.per_class * len(self.counts)


def plan_part(name: str, training: int, tier: Tier, speed: Speed, given: int | None) -> Part:
    """How many images a network sees: by the rule, at most what the time allows; ``given`` is the user's choice."""
    share = {"diffusion": 1.0, "classifier": CLASSIFIER_SHARE, "judge": JUDGE_SHARE}[name]
    if given is not None:
        images, why = max(1, round(given * share)), "as you asked"
    else:
        wanted = max(IMAGES_PER_ROOT * math.sqrt(training) * tier.passes * share, FEWEST_SEEN * share)
        affordable = tier.hours * 3600 * speed.images_per_s * share
        images = _round(min(wanted, affordable))
        why = "the usual number for so many images"
        if affordable < wanted:
            why = f"what {duration(tier.hours * share * 3600)} allow here; {_round(wanted):,} would be better"
    return Part(name, images, speed, images / training, why)


def balance(imbalance: float, name: str) -> tuple[float, str]:
    """How much more often rare classes are drawn (0: as the data is, 1: all classes equally often), and why."""
    if imbalance <= LONG_TAIL:
        return 0.0, f"0 = as the data is: the largest class has {imbalance:.1f} times the images of the smallest"
    if name == "diffusion":
        return (
            0.5,
            f"0.5 = halfway: if all were drawn equally often, a class {imbalance:.0f} times smaller would be memorised",
        )
    return 1.0, "1 = all classes equally often: no class may be preferred because it has more images"


def few_images(counts: Mapping[str, int], bare: Sequence[str], shown: int = 12) -> list[str]:
    """Warnings for people about classes with too few images; empty if there are none."""
    few = sorted((n, name) for name, n in counts.items() if n < FEW)
    lines = []
    if few:
        named = [f"{name} ({n})" for n, name in few]
        lines.append(
            f"{len(few)} of {len(counts)} classes have fewer than {FEW} images: {_first(named, shown)}; what the "
            f"model makes of them will vary less than real images do, so collect more if you can (docs/QUICKSTART.md)"
        )
    if bare:
        lines.append(
            f"no image is held out of {len(bare)} classes, so the audit cannot judge them: {_first(bare, shown)}"
        )
    return lines


def _first(names: Sequence[str], shown: int) -> str:
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _round(value: float) -> int:
    """Two significant digits."""
    unit: int = 10 ** max(int(math.log10(max(value, 1))) - 1, 0)
    return max(1, round(value / unit) * unit)


def sampling_batch(tier: Tier) -> int:
    """Images per batch of the run."""
    return 64 if tier is CPU else 256
