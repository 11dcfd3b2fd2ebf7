"""The sampler's settings as a manifest gives them, without the sampler: reading a manifest needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rarefy.guidance.base import LATER, Term

if TYPE_CHECKING:
    from rarefy.diffusion.sampler import Chain
    from rarefy.models.folder import ModelFolder

RESPACINGS = 'a count ("250"), section counts ("10,10,5"), "ddimN" or "logsnrN"'


@dataclass(frozen=True)
class SamplerSettings:
    """The sampler of a manifest. steps: a respacing ("250", "10,10,5", "ddim25", "logsnr15"); others as in Chain.

    start: the original time step where the chain begins, from standard normal noise; None for the noisiest one. At the
    noisiest steps an error of eps is magnified in pred_xstart by 1 / sqrt(abar), a hundred times and more, so that a
    network after short training begins with glaring colours.
    """

    method: str = "ancestral"
    steps: str = "250"
    eta: float = 0.0
    classifier_every: int = 1
    start: int | None = field(default=None, metadata=LATER)

    def text(self) -> str:
        """What decides about images without guidance, in words."""
        start = "" if self.start is None else f", from step {self.start}"
        eta = "" if self.method == "ancestral" else f", eta {self.eta:g}"
        return f"{self.method}, steps {self.steps}{start}{eta}"

    def chain(self, preset: ModelFolder, terms: Sequence[Term] = ()) -> Chain:
        """The chain over a model's schedule. Raises ManifestError if they do not fit together."""
        from rarefy.diffusion.sampler import Chain
        from rarefy.diffusion.schedule import schedule_of

        schedule = schedule_of(preset, self.steps, self.start)
        return Chain(schedule, self.method, self.eta, terms, self.classifier_every)
