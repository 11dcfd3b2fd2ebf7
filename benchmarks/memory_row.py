"""Bytes that a guided step keeps alive, counted on tensors without content; see benchmarks/memory.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from rarefy.diffusion.sampler import denoiser
from rarefy.fast.precision import set_precision
from rarefy.guidance.base import Networks, StepState
from rarefy.guidance.guide import Guide
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.models.adm import Classifier, UNet
from rarefy.models.folder import find_model


class Live(TorchDispatchMode):
    """Counts the bytes of every storage that operations make while it is entered, until it goes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.sizes: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._add, out)
        self.peak = max(self.peak, self.now())
        return out

    def now(self) -> int:
        """Bytes alive."""
        for ended in [reference for reference in self.sizes if reference.expired()]:
            del self.sizes[ended]
        return sum(self.sizes.values())

    def _add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.sizes[StorageWeakRef(storage)] = storage.nbytes()
        return tensor


class Blocks:
    """The largest working set of some blocks: input bytes and the most alive at once above what was there before."""

    def __init__(self, blocks: Sequence[nn.Module], live: Live) -> None:
        self.live, self.largest = live, 0
        self._outer: list[tuple[int, int]] = []
        for block in blocks:
            for layer in block.children():
                layer.register_forward_pre_hook(self._enter)
                layer.register_forward_hook(self._leave)

    def _enter(self, layer: nn.Module, inputs: Any) -> None:
        self._outer.append((self.live.now(), self.live.peak))
        self.live.peak = self._outer[-1][0]

    def _leave(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        before, peak = self._outer.pop()
        made = self.live.peak - before
        self.largest = max(self.largest, made + inputs[0].numel() * inputs[0].element_size())
        self.live.peak = max(self.live.peak, peak)


def activations(preset_name: str, batch: int, precision: str) -> dict[str, int]:
    """Bytes of the block row and its parts, and of everything alive at the step's peak. Runs no arithmetic."""
    preset = find_model(preset_name)
    with FakeTensorMode():
        unet, classifier = UNet(preset.unet), Classifier(preset.classifier)
        for network in (unet, classifier):
            network.eval().requires_grad_(False)
            set_precision(network, precision, torch.device("cpu"))
        x = torch.zeros(batch, preset.channels, preset.image_size, preset.image_size)
        y, t = torch.zeros(batch, dtype=torch.int64), torch.zeros(batch)
        live = _live_step(unet, classifier, x, y)
        found = _unet_row(unet, lambda: unet(x, t, None if preset.num_classes is None else y))
        found |= _classifier_row(classifier, lambda: classifier(x, t), x)
    unet_row, row = found["skips"] + found["unet_block"], found["saved"] + found["classifier_block"]
    return {**found, "unet_row": unet_row, "row": max(unet_row, row), "live": live}


def _unet_row(unet: UNet, forward: Callable[[], Tensor]) -> dict[str, int]:
    skips: list[int] = []
    live = Live()
    with torch.no_grad(), live:
        blocks = Blocks(unet.blocks(), live)
        for block in unet.input_blocks:
            last = list(block.children())[-1]
            last.register_forward_hook(lambda layer, inputs, out: skips.append(out.numel() * out.element_size()))
        forward()
    return {"skips": sum(skips), "unet_block": blocks.largest}


def _classifier_row(classifier: Classifier, forward: Callable[[], Tensor], x: Tensor) -> dict[str, int]:
    parameters = {StorageWeakRef(parameter.untyped_storage()) for parameter in classifier.parameters()}
    saved: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (reference := StorageWeakRef(storage)) not in parameters:
            saved[reference] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        x.requires_grad_()
        output = forward()  # while it stands, so does all that was saved
    total = sum(saved.values())
    del output
    live = Live()
    with torch.no_grad(), live:
        blocks = Blocks(classifier.blocks(), live)
        forward()
    return {"saved": total, "classifier_block": blocks.largest}


def _live_step(unet: UNet, classifier: Classifier, x: Tensor, y: Tensor) -> int:
    """A step's two networks one after the other, as the sampler calls them."""

    live = Live()
    with torch.no_grad(), live:
        denoise = denoiser(unet)
        output = denoise(x, torch.zeros(len(x)), y)
        state = StepState(0, 0, 0.5, x, y, output[:, : x.shape[1]], x)
        Guide([ClassifierGuidance()], Networks(denoise, classifier))(state)
    return live.peak
