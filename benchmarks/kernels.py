"""The small choices behind the step's speed, each beside its alternative: ``python benchmarks/kernels.py --threads 1``.

Normalisation (torch's own against ours, in torch operations and as a kernel), 3x3 convolutions
(torch's against our kernel: time, and error against float64), what a decoder's block does first (join two images,
normalise and convolve them, and the 1x1 convolution beside: our kernels one by one, and the one for all), attention
(torch's fused kernel, plain products and our kernel, which runs in bfloat16 alone) and the C allocator (a float32 step
with and without ``keep_freed_memory``, each in a process of its own).
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.error import relative_error
from benchmarks.step import Case, timed
from rarefy.bench.measure import interleave, machine, spread
from rarefy.fast import norm, norm_conv
from rarefy.fast.conv import Conv3x3
from rarefy.fast.cpu import native
from rarefy.fast.precision import to_device
from rarefy.models import blocks

NORM_SHAPES = ((64, 32, 28), (64, 64, 14), (64, 96, 7), (4, 192, 64))  # batch, channels, side
CONV_SHAPES = (  # batch, channels in and out, side: the embedded model's, then ADM-64's down to its smallest images
    (64, 32, 32, 28), (64, 64, 64, 14), (64, 96, 96, 7), (64, 32, 2, 28),
    (4, 192, 192, 64), (4, 384, 384, 32), (4, 576, 576, 16), (4, 768, 768, 8),
)  # fmt: skip
JOINED_SHAPES = (  # batch, channels of both and out, side: the embedded model's, then ADM-64's
    (64, 64, 32, 32, 28), (64, 96, 64, 64, 14), (64, 96, 96, 96, 7), (4, 192, 192, 192, 64), (4, 576, 384, 384, 32),
)  # fmt: skip
ATTENTION_SHAPES = ((64, 3, 49, 32), (4, 12, 64, 64), (4, 9, 256, 64), (4, 6, 1024, 64))  # batch, heads, tokens, width
CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)


def norm_times(batch: int, channels: int, side: int, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Milliseconds of normalisation, scale, shift and SiLU, and of its gradient with respect to the image."""
    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side).to(dtype).to(memory_format=torch.channels_last)
    scale, shift, weights = torch.randn(batch, channels).to(dtype), torch.randn(batch, channels).to(dtype), x.clone()
    layer = norm.group_norm(channels).to(dtype).requires_grad_(False)

    def torchs(h: Tensor) -> Tensor:
        return F.silu(layer(h) * (1 + scale[..., None, None]) + shift[..., None, None])

    def written(form: str) -> Callable[[Tensor], Tensor]:
        def run(h: Tensor) -> Tensor:
            native.use(form == "native")
            return norm.norm_act(h, layer, scale, shift)

        return run

    forms = {"torch": torchs} | {form: written(form) for form in ("eager", "native")}
    cases: dict[str, Callable[[], object]] = {}
    for name, form in forms.items():
        cases[name] = functools.partial(_without_gradient, form, x)
        cases[f"{name} + backward"] = functools.partial(_with_gradient, form, x, weights)
    return _milliseconds(cases, repeats)


def conv_times(shape: tuple[int, int, int, int], dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Milliseconds of a convolution and of its gradients, image and weights, and the errors relative to float64."""
    torch.manual_seed(0)
    batch, channels, out, side = shape
    x = torch.randn(batch, channels, side, side).to(dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(out, channels, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    bias, grad = torch.randn(out).to(dtype), torch.randn(batch, out, side, side).to(dtype)
    grad = grad.to(memory_format=torch.channels_last)

    def backward(of: int, *images: Tensor) -> Tensor:
        ones, wanted = [1, 1], [number == of for number in range(3)]
        found = torch.ops.aten.convolution_backward(*images, [out], ones, ones, ones, False, [0, 0], 1, wanted)
        gradient: Tensor = found[of]
        return gradient

    cases: dict[str, Callable[[], Tensor]] = {
        "torch": lambda: F.conv2d(x, weight, bias, padding=1),
        "native": lambda: native.conv3x3(x, weight, bias),
        "torch gradient": lambda: backward(0, grad, x, weight),
        "torch weights": lambda: backward(1, grad, x, weight),
        "native weights": lambda: native.conv3x3_weights(x, grad)[0],
    }
    if out % native.CHANNELS == 0:
        cases["native gradient"] = lambda: native.conv3x3(grad, weight, None, turned=True)
    exact = grad.double(), x.double(), weight.double()
    wanted = {
        "": F.conv2d(*exact[1:], bias.double(), padding=1),
        " gradient": backward(0, *exact),
        " weights": backward(1, *exact),
    }
    errors = {
        name: relative_error(case(), wanted[name.removeprefix("torch").removeprefix("native")])
        for name, case in cases.items()
    }
    return _milliseconds(cases, repeats) | {f"{name} error": error for name, error in errors.items()}


def joined_times(shape: tuple[int, int, int, int, int], dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Milliseconds of the first half of a decoder's block, without gradients."""
    torch.manual_seed(0)
    batch, first, second, out, side = shape
    sizes = [(batch, channels, side, side) for channels in (first, second)]
    parts = [torch.randn(size).to(dtype).to(memory_format=torch.channels_last) for size in sizes]
    group = norm.group_norm(first + second)
    convs = (Conv3x3(first + second, out).to(dtype), torch.nn.Conv2d(first + second, out, 1).to(dtype))
    conv, skip = (to_device(layer, CPU).eval() for layer in convs)

    def apart() -> None:
        x = norm_conv.join(parts)
        conv(norm.norm_act(x, group)), skip(x)

    native.use(True)
    cases: dict[str, Callable[[], object]] = {
        "apart": apart,
        "together": lambda: norm_conv.norm_act_conv_and_skip(parts, group, conv, skip),
    }
    with torch.no_grad():
        return _milliseconds(cases, repeats)


def attention_times(shape: tuple[int, int, int, int], dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Milliseconds of attention, and of it with the gradient of all that goes in."""
    torch.manual_seed(0)
    batch, heads, tokens, width = shape
    qkv = torch.randn(batch, tokens, 3 * heads * width).to(dtype)
    weights = torch.randn(batch, tokens, heads * width).to(dtype)

    def torchs(kernel: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: kernel(*blocks.split_heads(x, heads, True)).transpose(1, 2).flatten(2)

    def ours(x: Tensor) -> Tensor:
        native.use(True)
        return blocks.self_attention(x, heads, True)

    forms = {"fused": torchs(F.scaled_dot_product_attention), "products": torchs(blocks.plain_attention)}
    if dtype == torch.bfloat16:
        forms["native"] = ours
    cases: dict[str, Callable[[], object]] = {}
    for name, form in forms.items():
        cases[name] = functools.partial(_without_gradient, form, qkv)
        cases[f"{name} + backward"] = functools.partial(_with_gradient, form, qkv, weights)
    return _milliseconds(cases, repeats)


def step_seconds(keep: bool, threads: int, repeats: int) -> float:
    """Median CPU seconds of an exact guided step of the embedded model, batch 64, in a fresh process."""
    command = [sys.executable, __file__, "--one-step", str(int(keep)), "--threads", str(threads)]
    done = subprocess.run([*command, "--repeats", str(repeats)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def _one_step(keep: bool, threads: int, repeats: int) -> float:
    steps = [timed(Case("exact", "fashion-mnist-28", 64, "cpu", threads, keep)).step for _ in range(repeats + 1)]
    return statistics.median(steps[1:])


def _without_gradient(form: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return form(x)


def _with_gradient(form: Callable[[Tensor], Tensor], x: Tensor, weights: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(form(x), x, weights)[0]


def _milliseconds(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    return {name: round(spread(s).median * 1e3, 3) for name, s in interleave(cases, repeats, CPU).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15, help="measured runs a case")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    parser.add_argument("--one-step", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one_step is not None:
        print(_one_step(bool(arguments.one_step), arguments.threads, arguments.repeats))
        return 0
    if not native.available():
        print("these need a C++ compiler: g++ or $CXX", file=sys.stderr)
        return 2
    result: dict[str, object] = {"norm_ms": {}, "conv_ms": {}, "joined_ms": {}, "attention_ms": {}}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for shape in NORM_SHAPES:
            times = norm_times(*shape, dtype, arguments.repeats)
            print(f"norm {shape} {name}: {times}", flush=True)
            result["norm_ms"] |= {f"{shape} {name}": times}  # type: ignore[operator]
        for sizes in CONV_SHAPES:
            times = conv_times(sizes, dtype, arguments.repeats)
            print(f"convolution {sizes} {name}: {times}", flush=True)
            result["conv_ms"] |= {f"{sizes} {name}": times}  # type: ignore[operator]
        for joined in JOINED_SHAPES:
            times = joined_times(joined, dtype, arguments.repeats)
            print(f"decoder's block {joined} {name}: {times}", flush=True)
            result["joined_ms"] |= {f"{joined} {name}": times}  # type: ignore[operator]
        for sizes in ATTENTION_SHAPES:
            times = attention_times(sizes, dtype, arguments.repeats)
            print(f"attention {sizes} {name}: {times}", flush=True)
            result["attention_ms"] |= {f"{sizes} {name}": times}  # type: ignore[operator]
    seconds = {name: step_seconds(keep, arguments.threads, arguments.repeats) for name, keep in _KEEP.items()}
    print(f"exact step, seconds by allocator: {seconds}")
    if arguments.json:
        print(json.dumps({**result, "allocator_s": seconds, "machine": machine(CPU)}))
    return 0


_KEEP = {"default": False, "kept": True}

if __name__ == "__main__":
    sys.exit(main())
