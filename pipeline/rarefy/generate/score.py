"""Scores finished images with the noise-aware classifier at t = 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rarefy.errors import ManifestError, bad
from rarefy.guidance.base import entropy
from rarefy.manifest import Accept

MOST_CANDIDATES = 1_000_000


@dataclass(frozen=True, eq=False)
class Scores:
    """One value per image, (B,) on the CPU.

    predicted_id: int64, the most probable class; confidence: p(y) of the target class; entropy: of the class
    probabilities, in nats; entropy_normalized: entropy / log K; margin: highest minus second highest probability.
    With a single class (K = 1) entropy_normalized is 0 and margin is 1.
    """

    predicted_id: Tensor
    confidence: Tensor
    entropy: Tensor
    entropy_normalized: Tensor
    margin: Tensor

    def wrong_rows(self) -> list[int]:
        """The images whose scores are not finite."""
        wrong = ~torch.stack([self.confidence, self.entropy, self.margin]).isfinite().all(dim=0)
        return [int(row) for row in wrong.nonzero()]

    def of_image(self, row: int) -> ImageScores:
        """The scores of one image of the batch."""
        return ImageScores(
            predicted_id=int(self.predicted_id[row]),
            confidence=float(self.confidence[row]),
            entropy=float(self.entropy[row]),
            entropy_normalized=float(self.entropy_normalized[row]),
            margin=float(self.margin[row]),
        )


@dataclass(frozen=True)
class ImageScores:
    """The scores of one image, as in ``Scores``; all None if the model has no classifier."""

    predicted_id: int | None
    confidence: float | None
    entropy: float | None
    entropy_normalized: float | None
    margin: float | None


NO_SCORES = ImageScores(None, None, None, None, None)


@torch.no_grad()
def score_images(classifier: Callable[[Tensor, Tensor], Tensor], images: Tensor, y: Tensor) -> Scores:
    """Score the 8-bit images as they are written, not the floats before rounding.

    classifier: (x, t (B,)) -> logits (B, K); images: (B, C, H, W) uint8; y: (B,) int64. Softmax in float32.
    """
    x = images.float() / 127.5 - 1
    log_probs = classifier(x, torch.zeros(len(x), device=x.device)).float().log_softmax(dim=1)
    probs = log_probs.exp()
    top = torch.cat([probs, torch.zeros_like(probs[:, :1])], dim=1).topk(2, dim=1)  # a second one, even if K = 1
    nats = entropy(log_probs)
    most = math.log(max(2, probs.shape[1]))
    return Scores(
        predicted_id=top.indices[:, 0].cpu(),
        confidence=probs.gather(1, y[:, None])[:, 0].cpu(),
        entropy=nats.cpu(),
        entropy_normalized=(nats / most).cpu(),
        margin=(top.values[:, 0] - top.values[:, 1]).cpu(),
    )


@dataclass(frozen=True)
class CandidateLimit:
    """What a user allows slots that ran out of the manifest's candidates. It is no part of the manifest.

    max_candidates: draws per slot, more than the manifest's, or None; keep: whether the last draw is then kept, with
    accepted = false. Slots that accept an earlier candidate keep that, so images already made stay the same.
    """

    max_candidates: int | None = None
    keep: bool = False

    def check(self, accept: Accept | None) -> None:
        """Raise ManifestError if these limits cannot have an effect."""
        if (self.max_candidates, self.keep) == (None, False):
            return
        more = self.max_candidates is not None
        name, value = ("--max-candidates", self.max_candidates) if more else ("--keep-exhausted", self.keep)
        if accept is None:
            raise ManifestError(bad(name, value, "of use here: the manifest has no [accept], so no draw is rejected"))
        if accept.exhausted == "keep":
            raise ManifestError(bad(name, value, "of use here: the manifest says accept.exhausted = 'keep'"))
        if self.max_candidates is not None and not accept.max_candidates < self.max_candidates <= MOST_CANDIDATES:
            allowed = f"more than accept.max_candidates = {accept.max_candidates} and at most {MOST_CANDIDATES}"
            raise ManifestError(bad(name, value, allowed))

    def rounds(self, accept: Accept | None) -> tuple[int, bool]:
        """How many candidates a slot may draw, and whether the last one is kept even if it is rejected."""
        if accept is None:
            return 1, False
        return self.max_candidates or accept.max_candidates, self.keep or accept.exhausted == "keep"


def accepted(accept: Accept | None, scores: Scores, row: int, class_id: int) -> bool:
    """Whether image ``row`` of the batch passes the manifest's filter."""
    if accept is None:
        return True
    on_class = not accept.on_class or int(scores.predicted_id[row]) == class_id
    confidence, nats = float(scores.confidence[row]), float(scores.entropy[row])
    return on_class and accept.confidence.hold(confidence) and accept.entropy.hold(nats)
