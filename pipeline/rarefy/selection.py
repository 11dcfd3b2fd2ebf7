"""``[select]`` of a manifest: sample more images than are wanted, and keep the rarest of each class.

The counts of [classes] are what is kept. ``from`` times as many are sampled: the pool.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rarefy.errors import ManifestError, bad
from rarefy.fields import Table, get_choice, get_flag, get_integer, known_keys
from rarefy.models.folder import ModelFolder

FROM = "from"  # a Python keyword, so the field below has another name
MOST_TIMES = 1000
BY_RARITY = ("rarity", "avgknn")
BY_SCORE = ("confidence", "entropy")
ERROR, KEEP = "error", "keep"


@dataclass(frozen=True)
class Select:
    """How the kept images are chosen.

    times: pool images per kept image; by: what the rarest images have most of: ``rarity`` or ``avgknn`` (see
    rarefy.audit.rarity), ``entropy``, or least of: ``confidence``. on_class: only images that the classifier assigns to
    their class; inside: only images within the real data; exhausted: what a class with too few such images does:
    ``error``, or ``keep`` the best of its other images.
    """

    times: int
    by: str = "rarity"
    on_class: bool = True
    inside: bool = True
    exhausted: str = ERROR

    @property
    def needs_real_images(self) -> bool:
        """Whether the choice depends on the pool's rarity, which is measured against real images."""
        return self.inside or self.by in BY_RARITY

    def text(self) -> str:
        """The rule in words."""
        order = {"confidence": "lowest confidence", "avgknn": "highest AvgkNN"}.get(self.by, f"highest {self.by}")
        only = [text for text, asked in (("on class", self.on_class), ("inside the real data", self.inside)) if asked]
        return f"those with the {order} in each class" + (f", only images {' and '.join(only)}" if only else "")


def parse_select(table: Table, model: ModelFolder) -> Select:
    """Read [select]. Raises ManifestError, also for a rule that needs what the model does not have."""
    keys = [field.name for field in dataclasses.fields(Select) if field.name != "times"]
    known_keys(table, "select", (FROM, *keys))
    select = Select(
        times=get_integer(table, f"select.{FROM}", 2, MOST_TIMES),
        by=get_choice(table, "select.by", BY_RARITY + BY_SCORE, BY_RARITY[0]),
        on_class=get_flag(table, "select.on_class", model.classifier is not None),
        inside=get_flag(table, "select.inside", True),
        exhausted=get_choice(table, "select.exhausted", (ERROR, KEEP), ERROR),
    )
    _check_possible(select, model)
    return select


def _check_possible(select: Select, model: ModelFolder) -> None:
    """Raise ManifestError for a rule that needs a classifier or real images that the model does not have."""
    if model.classifier is None:
        allowed = "possible with a model that has no classifier (rarefy train classifier adds one)"
        if select.by in BY_SCORE:
            raise ManifestError(bad("select.by", select.by, allowed))
        if select.on_class:
            raise ManifestError(bad("select.on_class", True, allowed))
    if "reference" not in model.files:
        allowed = "possible with a model folder that has no real images (reference/)"
        if select.by in BY_RARITY:
            raise ManifestError(bad("select.by", select.by, allowed))
        if select.inside:
            raise ManifestError(bad("select.inside", True, allowed))
