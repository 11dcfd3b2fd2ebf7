"""Generates shards from their plans: sample, score, filter, encode, commit. Knows nothing about Ray."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from rarefy.diffusion.sampler import Chain, sample, to_uint8
from rarefy.errors import ExhaustedError, NonFiniteError
from rarefy.execution import build_kernels, repeatable
from rarefy.generate.execution import load_for_run
from rarefy.generate.memory import BatchMemory
from rarefy.generate.score import (
    MOST_CANDIDATES,
    NO_SCORES,
    CandidateLimit,
    ImageScores,
    Scores,
    accepted,
    score_images,
)
from rarefy.manifest import Manifest
from rarefy.models.load import Models
from rarefy.plan import Slot, class_rank, make_plan, sample_seed, shard_name
from rarefy.scratch import sweep
from rarefy.shards.marker import Marker, read_committed
from rarefy.shards.metadata import SampleRecord, sample_key
from rarefy.shards.retry import PATIENCE_S
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard, encode_png


@dataclass(frozen=True)
class Snapshot:
    """An actor's work so far. in_flight: images per running attempt, in fractions; scored: number of draws.

    accepted: those among them that passed [accept]; steps, step_seconds: sampler steps of a batch, and their time;
    advances: rises with each step of a batch, each encoded image and each commit, so an actor hangs if it stands still.
    doing: what it does before it can generate.
    """

    in_flight: Mapping[str, float] = field(default_factory=dict)
    scored: int = 0
    confidence_sum: float = 0.0
    entropy_sum: float = 0.0
    advances: int = 0
    accepted: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    doing: str = ""


def add_up(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Sums over all draws; nothing in flight."""
    names = [f.name for f in fields(Snapshot) if f.name not in ("in_flight", "doing")]
    listed = list(snapshots)
    return Snapshot({}, *(sum(getattr(snapshot, name) for snapshot in listed) for name in names))


@dataclass(frozen=True)
class _Draw:
    """One slot's kept image, whose PNG is still being encoded. scores: None without a classifier."""

    slot: Slot
    candidate: int
    scores: ImageScores | None
    accepted: bool
    png: Future[bytes]


@dataclass
class _Tally:
    """Progress of a running shard. images: finished steps, as a number of images; started: time of the first step."""

    images: float = 0.0
    started: float | None = None


class ShardGenerator:
    """Generates shards; the models are loaded once.

    ``generate`` may be called from two threads: their batches take turns, so one shard is encoded and written while the
    next is sampled. device: "cpu" or "cuda"; threads: number of batches sampled at once on the CPU; compile: auto, off
    or full (see rarefy.execution); candidates: what the user allows slots that ran out of candidates; patience_s: see
    Store.
    """

    def __init__(
        self,
        manifest: Manifest,
        root: str,
        device: str,
        threads: int,
        compile: str = "auto",
        candidates: CandidateLimit | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.manifest, self.root, self.device, self.compile = manifest, root, device, compile
        self._limit, self._patience_s = candidates or CandidateLimit(), patience_s
        self._counting = threading.Lock()
        self._tallies: dict[str, _Tally] = {}
        self._totals = Snapshot()
        self._doing = ""
        # On the CPU each batch runs in one thread: with several, torch's rounding depends on their number.
        self._sampler = ThreadPoolExecutor(threads if device == "cpu" else 1, thread_name_prefix="sample")
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="png")

    def load(self) -> tuple[str, str | None]:
        """Load the models and return the sha256 of checkpoint and classifier (None if there is none).

        Raises CheckpointError, DeviceError, ManifestError.
        """
        self._limit.check(self.manifest.accept)
        sweep()  # what killed actors have left on this machine
        device = torch.device(self.device)
        self._doing = "actors build kernels (once on a machine)"
        build_kernels(device, self.compile)
        self._doing = "actors load the models"
        self._models: Models = load_for_run(self.manifest, device, self.compile)
        self._chain: Chain = self.manifest.settings.chain(self.manifest.preset, self.manifest.terms)
        self._memory = BatchMemory(device)
        self._store = Store(self.root, self._patience_s)
        self._doing = ""
        return self._models.checkpoint_sha256, self._models.classifier_sha256

    def generate(self, shard: int, attempt: str) -> Marker:
        """Generate and commit one shard. If another attempt has committed it, return its marker and sample nothing.

        Raises ExhaustedError if slots run out of candidates, NonFiniteError, OutputError, StorageError.
        """
        name = shard_name(self.manifest.prefix, shard)
        if (earlier := read_committed(self._store, name, self.manifest.digest)) is not None:
            return earlier
        with self._counting:
            tally = self._tallies[attempt] = _Tally()
        try:
            samples = [self._sample(shard, draw) for draw in self._fill(shard, tally)]
            header = ShardHeader(name, shard, self.manifest.text, self.manifest.digest, attempt)
            assert tally.started is not None
            marker = commit_shard(self._store, header, samples, time.monotonic() - tally.started)
            self._advance()
            return marker
        finally:
            with self._counting:
                del self._tallies[attempt]

    def progress(self) -> Snapshot:
        """Counts so far; safe to call while shards are generated."""
        with self._counting:
            in_flight = {name: tally.images for name, tally in self._tallies.items()}
            return replace(self._totals, in_flight=in_flight, doing=self._doing)

    def _fill(self, shard: int, tally: _Tally) -> list[_Draw]:
        """One draw per slot, in slot order. Slots whose draw was rejected draw their next candidate together."""
        rounds, keep_last = self._limit.rounds(self.manifest.accept)
        kept: dict[int, _Draw] = {}
        drawn: Counter[int] = Counter()
        pending: Sequence[Slot] = make_plan(self.manifest).shard(shard).slots
        for candidate in range(rounds):
            drawn.update(slot.class_id for slot in pending)
            for draw in self._round(pending, candidate, keep_last and candidate == rounds - 1, tally):
                kept[draw.slot.index] = draw
            pending = [slot for slot in pending if slot.index not in kept]
            if not pending:
                return [kept[index] for index in sorted(kept)]
        raise ExhaustedError(self._exhausted(shard, pending, drawn, kept))

    def _round(self, pending: Sequence[Slot], candidate: int, keep_all: bool, tally: _Tally) -> list[_Draw]:
        """Draw one candidate per pending slot, in batches, and return the draws to keep."""
        size = self.manifest.batch
        batches = [pending[start : start + size] for start in range(0, len(pending), size)]
        futures = [self._sampler.submit(self._draw, slots, candidate, keep_all, tally) for slots in batches]
        try:
            return [draw for future in futures for draw in future.result()]
        finally:
            for future in futures:
                future.cancel()  # if one batch failed, the others need not run

    def _draw(self, slots: Sequence[Slot], candidate: int, keep_all: bool, tally: _Tally) -> list[_Draw]:
        """Sample and score one batch, and return the draws to keep."""
        seeds = [sample_seed(self.manifest.seed, s.class_id, s.class_index, candidate) for s in slots]
        y = torch.tensor([slot.class_id for slot in slots], device=self.device)
        ranks = torch.tensor([class_rank(slot.class_index) for slot in slots], device=self.device)
        self._count(tally, 0.0)
        with self._memory.batch(len(slots)), repeatable(self.manifest.precision):
            began = time.monotonic()
            for state in sample(self._models, y, seeds, self._chain, ranks):
                x = state.x
                self._count(tally, len(slots) / len(self._chain.schedule))
            step_seconds = time.monotonic() - began
            images = to_uint8(x)
            classifier = self._models.classifier
            scores = None if classifier is None else score_images(classifier, images, y)
        if scores is not None:
            self._add(scores, slots, seeds)
        pixels: NDArray[np.uint8] = images.cpu().numpy()
        draws = []
        for row, slot in enumerate(slots):
            passed = scores is None or accepted(self.manifest.accept, scores, row, slot.class_id)
            if passed or keep_all:
                png = self._encoder.submit(encode_png, pixels[row])
                own = None if scores is None else scores.of_image(row)
                draws.append(_Draw(slot, candidate, own, passed, png))
        self._count(tally, float(len(draws) - len(slots)))
        passes = sum(draw.accepted for draw in draws)
        self._add_counts(Snapshot(accepted=passes, steps=len(self._chain.schedule), step_seconds=step_seconds))
        return draws

    def _sample(self, shard: int, draw: _Draw) -> Sample:
        manifest, slot, scores = self.manifest, draw.slot, draw.scores or NO_SCORES
        png = draw.png.result()
        self._advance()
        record = SampleRecord(
            key=sample_key(shard, slot.index),
            shard=shard,
            index=slot.index,
            class_id=slot.class_id,
            class_name=manifest.preset.class_name(slot.class_id),
            predicted_id=scores.predicted_id,
            confidence=scores.confidence,
            entropy=scores.entropy,
            entropy_normalized=scores.entropy_normalized,
            margin=scores.margin,
            seed=sample_seed(manifest.seed, slot.class_id, slot.class_index, draw.candidate),
            candidate=draw.candidate,
            guidance="+".join(term.name for term in manifest.terms),
            steps=len(self._chain.schedule),
            checkpoint_sha256=self._models.checkpoint_sha256,
            classifier_sha256=self._models.classifier_sha256,
            manifest_digest=manifest.digest,
            image_sha256=hashlib.sha256(png).hexdigest(),
            width=manifest.preset.image_size,
            height=manifest.preset.image_size,
            accepted=draw.accepted,
        )
        return Sample(record, png)

    def _count(self, tally: _Tally, images: float) -> None:
        with self._counting:
            tally.started = tally.started or time.monotonic()
            tally.images += images
        self._advance()

    def _advance(self) -> None:
        with self._counting:
            self._totals = replace(self._totals, advances=self._totals.advances + 1)

    def _add(self, scores: Scores, slots: Sequence[Slot], seeds: Sequence[int]) -> None:
        """Count a batch's scores. Raises NonFiniteError: the filter would take NaN for an image to draw again."""
        if wrong := scores.wrong_rows():
            class_id, seed = slots[wrong[0]].class_id, seeds[wrong[0]]
            raise NonFiniteError(
                f"an image of class {class_id} with seed {seed} has scores that are not finite (NaN or infinity) after "
                "the last step"
            )
        self._add_counts(
            Snapshot({}, len(scores.confidence), float(scores.confidence.sum()), float(scores.entropy.sum()))
        )

    def _add_counts(self, new: Snapshot) -> None:
        with self._counting:
            self._totals = add_up([self._totals, new])

    def _exhausted(self, shard: int, pending: Sequence[Slot], drawn: Counter[int], kept: dict[int, _Draw]) -> str:
        """The error message: the class with the most empty slots, and how many of its draws passed."""
        class_id, empty = Counter(slot.class_id for slot in pending).most_common(1)[0]
        passed = sum(draw.slot.class_id == class_id for draw in kept.values())
        rounds, _ = self._limit.rounds(self.manifest.accept)
        more = min(4 * rounds, MOST_CANDIDATES)
        return (
            f"{shard_name(self.manifest.prefix, shard)}: {empty} slots of class {class_id} "
            f"({self.manifest.preset.class_name(class_id)}) got no image that [accept] accepts in {rounds} candidates: "
            f"{passed} of {drawn[class_id]} draws passed ({passed / drawn[class_id]:.1%}); repeat the command with "
            f"--max-candidates {more}, or with --keep-exhausted to keep the last draw: the output stays the same and "
            "nothing made so far is lost"
        )
