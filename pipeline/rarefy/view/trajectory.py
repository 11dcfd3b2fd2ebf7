"""How an image came about, made again from the manifest, its key and its candidate. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.inputs.model import find_run_model
from rarefy.device import find_device
from rarefy.diffusion.sampler import Chain, sample, to_uint8
from rarefy.errors import RarefyError, bad
from rarefy.execution import repeatable
from rarefy.generate.execution import load_for_run
from rarefy.generate.score import score_images
from rarefy.guidance.base import entropy, times
from rarefy.manifest import Manifest, parse_manifest
from rarefy.models.load import Models
from rarefy.models.source import check_trained
from rarefy.plan import class_rank, make_plan, sample_seed
from rarefy.shards.claim import MANIFEST_FILE
from rarefy.shards.store import Store
from rarefy.shards.writer import encode_png
from rarefy.view.origin import Frame, Origin, Step, Trajectory

MOST_FRAMES = 48  # whose pictures are kept; confidence and entropy are known of every step

Progress = Callable[[int, int], None]
"""Steps done and in all; it may raise to end the work."""


class Sampler:
    """Makes images of a run again, one by one. The networks are loaded once.

    device: cpu, cuda or cuda:N; model: the user's --model, see ``find_run_model``. Raises ManifestError,
    CheckpointError or DeviceError if the run cannot be sampled here.
    """

    def __init__(self, store: Store, device: str, model: str | None, allow_plugins: bool) -> None:
        self.manifest = replace(_with_code(store, model, allow_plugins), batch=1)
        self.device = find_device(device)
        self.models: Models = load_for_run(self.manifest, self.device, "auto")
        self.chain: Chain = self.manifest.settings.chain(self.manifest.preset, self.manifest.terms)

    def trace(self, origin: Origin, progress: Progress) -> Trajectory:
        """Sample the image and keep what happened. Raises OutputError for a row that is not of this manifest."""
        rank = self._rank(origin)
        y = torch.tensor([origin.class_id], device=self.device)
        ranks = torch.tensor([rank], device=self.device)
        total, steps, frames = len(self.chain.schedule), list[Step](), list[Frame]()
        kept = set(np.linspace(0, total - 1, min(MOST_FRAMES, total)).round().astype(int).tolist())
        with repeatable(self.manifest.precision):
            for number, state in enumerate(sample(self.models, y, [origin.seed], self.chain, ranks)):
                progress(number, total)
                t = self.chain.coefficients[state.step - 1].t if state.step else 0
                pixels = to_uint8(state.x)
                steps.append(Step(t, *self._scores(pixels if state.step == 0 else state.x, t, y)))
                if number in kept:
                    frames.append(Frame(number, _png(pixels), _png(to_uint8(state.pred_xstart))))
        return Trajectory(tuple(steps), tuple(frames), pixels[0].cpu().numpy())

    def _rank(self, origin: Origin) -> float:
        """The image's rank within its class, after a check that the plan gives the row's class and seed."""
        slot = make_plan(self.manifest).shard(int(origin.key[:6])).slots[int(origin.key[6:])]
        seed = sample_seed(self.manifest.seed, slot.class_id, slot.class_index, origin.candidate)
        if (slot.class_id, seed) != (origin.class_id, origin.seed):
            row = f"class {origin.class_id} with seed {origin.seed}"
            raise RarefyError(
                bad(f"image {origin.key}", row, f"what the manifest plans: class {slot.class_id}, {seed}")
            )
        return class_rank(slot.class_index)

    @torch.no_grad()
    def _scores(self, x: Tensor, t: int, y: Tensor) -> tuple[float | None, float | None]:
        """p(y | x, t) and its entropy; the finished image, uint8, is scored exactly as the run has scored it."""
        classifier = self.models.classifier
        if classifier is None:
            return None, None
        if x.dtype == torch.uint8:
            scores = score_images(classifier, x, y)
            return float(scores.confidence[0]), float(scores.entropy[0])
        log_probs = classifier(x, times(x, t)).float().log_softmax(dim=1)
        return float(log_probs[0, y[0]].exp()), float(entropy(log_probs)[0])


def _with_code(store: Store, moved_to: str | None, allow_plugins: bool) -> Manifest:
    """The run's manifest with its terms and networks, which may be plug-ins, and the model folder where it is now."""
    unread = read_manifest(store)
    spec = find_run_model(unread.model, moved_to, needed=False)
    if spec.source is not None:
        check_trained(spec)
    text, source = store.read_bytes(MANIFEST_FILE).decode(), f"{store.root}/{MANIFEST_FILE}"
    return parse_manifest(text, source, None if spec.source is None else spec, allow_plugins=allow_plugins)


def _png(pixels: Tensor) -> bytes:
    image: NDArray[np.uint8] = pixels[0].cpu().numpy()
    return encode_png(image)
