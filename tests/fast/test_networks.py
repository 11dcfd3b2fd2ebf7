"""The faster networks compared with the plain ones, and with the goldens."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from kernel_cases import error
from torch import Tensor, nn

from goldens import config, files, fill, read, relative_error
from rarefy.errors import DeviceError
from rarefy.execution import prepare
from rarefy.fast.conv import FastConv3x3
from rarefy.fast.networks import to_bfloat16
from rarefy.models.adm import ADM, Classifier, UNet
from rarefy.models.config import NetworkConfig

CPU = torch.device("cpu")
BASE = NetworkConfig(
    image_size=16, in_channels=3, model_channels=32, out_channels=6, num_res_blocks=1,
    attention_resolutions=(2,), channel_mult=(1, 2), num_heads=2,
)  # fmt: skip
FORMS = {
    "base": BASE,
    "plain-resampling": replace(BASE, resblock_updown=False),
    "mean-nearest": replace(BASE, resblock_updown=False, conv_resample=False),
    "additive-embedding": replace(BASE, use_scale_shift_norm=False),
    "new-order": replace(BASE, use_new_attention_order=True, num_head_channels=16),
    "grey-28-classes": replace(BASE, image_size=28, in_channels=1, out_channels=1, num_classes=3),
    "fractional": replace(BASE, channel_mult=(0.5, 1, 2), model_channels=64, attention_resolutions=(4,)),
}
POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
pytestmark = pytest.mark.usefixtures("any_size")


def randomised(network: ADM) -> ADM:
    """Blocks start as the identity, which would hide most faults: give every zeroed layer values."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


def inputs(shape: NetworkConfig, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    x = torch.randn(3, shape.in_channels, shape.image_size, shape.image_size, dtype=dtype).requires_grad_()
    t = torch.tensor([5.0, 300.0, 900.0])
    return (x, t) if shape.num_classes is None else (x, t, torch.tensor([0, 2, 1]))


def results(network: ADM, arguments: tuple[Tensor, ...]) -> list[Tensor]:
    """The output, and the gradients of the image and of all parameters."""
    y = network(*arguments)
    leaves = [arguments[0], *network.parameters()]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, weights, allow_unused=True, materialize_grads=True)]


def check(network: ADM, compile: str, dtype: torch.dtype = torch.float32) -> None:
    plain, fast = network.to(dtype), prepare(copy.deepcopy(network).to(dtype), CPU, compile=compile)
    assert type(fast) is not type(plain) and fast.state_dict().keys() == plain.state_dict().keys()
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    arguments = inputs(network.config, dtype)
    for ours, expected in zip(results(fast, arguments), results(plain, arguments), strict=True):
        assert ours.dtype == expected.dtype
        # Some gradients are zero but for rounding, such as that of the bias of the attention's keys.
        assert (ours - expected).norm() <= tolerance * expected.norm().clamp_min(10)
    with torch.no_grad():
        assert error(fast(*arguments), plain(*arguments)) < tolerance


@pytest.mark.parametrize("compile", ["auto", "off"])
@pytest.mark.parametrize("form", FORMS)
def test_a_fast_unet_has_the_plain_ones_results_and_gradients(form: str, compile: str) -> None:
    check(randomised(UNet(FORMS[form])), compile)


@pytest.mark.parametrize("pool", POOLS)
def test_a_fast_classifier_has_the_plain_ones_results_and_gradients(pool: str) -> None:
    network = randomised(Classifier(replace(BASE, out_channels=7, num_head_channels=32, pool=pool)))
    check(network, "auto")
    fast, (x, _) = prepare(copy.deepcopy(network), CPU), inputs(BASE)
    assert error(fast.features(x), network.features(x)) < 2e-5  # type: ignore[operator]


def test_a_network_in_float64_stays_one() -> None:
    check(randomised(UNet(BASE)), "auto", torch.float64)


@pytest.mark.parametrize("compile", ["auto", "off"])
@pytest.mark.parametrize("kind", ["unet", "classifier"])
def test_goldens(kind: str, compile: str) -> None:
    for file in files(kind):
        golden, arrays = read(file)
        network = fill((UNet if kind == "unet" else Classifier)(config(golden["config"])))
        prepare(network, CPU, compile=compile)  # type: ignore[type-var]
        arguments = [arrays["x"], arrays["t"], *([arrays["y"]] if kind == "unet" and "y" in arrays else [])]
        assert relative_error(network(*arguments), arrays["output" if kind == "unet" else "logits"]) < 1e-4


def test_the_kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from rarefy.fast.cpu import native

    if not native.available():
        pytest.skip("needs a C++ compiler")
    calls: list[str] = []
    call = native._call
    monkeypatch.setattr(native, "_call", lambda name, *a: calls.append(name) or call(name, *a))  # type: ignore[func-returns-value]
    shape = replace(BASE, resblock_updown=False, conv_resample=False, attention_resolutions=())
    network = prepare(randomised(UNet(shape)).requires_grad_(False), CPU)
    with torch.no_grad():
        network(*inputs(shape))
    blocks = 2 + 2 + 4  # encoder, middle, decoder: two fused convolutions each, and one in the output layer
    assert calls == ["norm_forward" if n == 6 else "norm_conv3x3" for n in range(2 * blocks + 2)]  # 6: attention
    calls.clear()
    prepare(network, CPU, compile="off")(*inputs(shape))
    assert not calls


def test_autocast_computes_in_bfloat16_and_gradients_stay_float32() -> None:
    plain = randomised(UNet(BASE))
    fast = prepare(copy.deepcopy(plain), CPU)
    expected = results(plain, inputs(BASE))
    with torch.autocast("cpu", torch.bfloat16):
        ours = results(fast, inputs(BASE))
    assert not torch.equal(ours[0], expected[0]) and all(value.dtype == torch.float32 for value in ours)
    assert error(ours[0], expected[0]) < 5e-2
    assert error(torch.cat([g.flatten() for g in ours[2:]]), torch.cat([g.flatten() for g in expected[2:]])) < 0.2


def test_dropout_is_active_in_training_only() -> None:
    network = prepare(randomised(UNet(replace(BASE, dropout=0.5))), CPU)
    arguments = inputs(BASE)
    assert torch.equal(network(*arguments), network(*arguments))
    assert error(network.train()(*arguments), network.eval()(*arguments)) > 0.01


def test_dropout_drops_what_the_plain_network_drops() -> None:
    """With a probability of 1, so that no random number matters."""
    plain = randomised(UNet(replace(BASE, dropout=1.0))).train()
    fast = prepare(copy.deepcopy(plain), CPU)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert error(fast(*inputs(BASE)), plain(*inputs(BASE))) < 2e-5


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_layer_works_channels_last(channels: int, reduced: bool) -> None:
    """One layer that falls back to (B, C, H, W) order makes its neighbours reorder too: a third of the speed."""
    network = randomised(UNet(replace(BASE, in_channels=channels, out_channels=2 * channels))).requires_grad_(False)
    prepare(network, CPU)
    if reduced:
        to_bfloat16(network)
    strays = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        images = [h for h in (*inputs, output) if isinstance(h, Tensor) and h.ndim == 4 and min(h.shape[1:]) > 1]
        strays.extend(type(layer).__name__ for h in images if h.stride(1) != 1)

    for layer in list(network.modules())[1:]:
        layer.register_forward_hook(look)
    network(torch.randn(2, channels, 16, 16), torch.full((2,), 10.0))
    assert not strays


def test_fast_precision_stays_near_exact() -> None:
    """Relative error on eps of random weights, as bfloat16's 8 bits give (a trained model has a tenth of it)."""
    exact = randomised(UNet(replace(BASE, num_head_channels=32))).requires_grad_(False)
    fast = prepare(copy.deepcopy(exact), CPU)
    to_bfloat16(fast)
    assert fast.dtype == torch.bfloat16 and fast.out[2].weight.dtype == torch.float32
    (x, t), expected = inputs(BASE), exact(*inputs(BASE))
    eps = fast(x, t)
    assert eps.dtype == torch.float32
    assert 0 < error(eps, expected) < 3e-2


def test_a_copy_of_a_fast_network_is_its_own() -> None:
    network = prepare(randomised(UNet(BASE)).requires_grad_(False), CPU)
    other, before = copy.deepcopy(network), network(*inputs(BASE))
    for parameter in other.parameters():
        parameter.zero_()
    assert torch.equal(network(*inputs(BASE)), before) and not torch.equal(other(*inputs(BASE)), before)


def test_a_copy_does_not_keep_the_originals_recorded_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from rarefy import fast

    monkeypatch.setattr(fast, "compiled", lambda network, batch: lambda *a: type(network).forward(network, *a))
    network = fast.prepare(randomised(UNet(BASE)).requires_grad_(False), CPU, "exact", "full", 3)
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        parameter.zero_()
    assert "forward" in network.__dict__ and not other(*inputs(BASE)).any()


@pytest.mark.parametrize("form", ["base", "plain-resampling", "mean-nearest"])
@pytest.mark.parametrize("size", [(31, 31), (32, 31), (31, 32), (32, 30)], ids=str)
def test_other_image_sizes_give_the_plain_results_or_fail_like_them(size: tuple[int, int], form: str) -> None:
    plain = randomised(UNet(FORMS[form])).requires_grad_(False)
    fast, (x, t) = prepare(copy.deepcopy(plain), CPU), (torch.randn(4, 3, *size), torch.full((4,), 300.0))
    if size == (32, 30):
        assert error(fast(x, t), plain(x, t)) < 2e-5
        return
    for network, grad in ((plain, False), (fast, False), (fast, True)):
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            network(x, t)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("form", ["base", "additive-embedding"])
def test_one_time_step_serves_the_whole_batch(form: str, batch: int) -> None:
    plain = randomised(UNet(FORMS[form]))
    fast, x, t = prepare(copy.deepcopy(plain), CPU), torch.randn(batch, 3, 16, 16).requires_grad_(), torch.tensor([5.0])
    for ours, expected in zip(results(fast, (x, t)), results(plain, (x, t)), strict=True):
        assert (ours - expected).norm() <= 2e-5 * expected.norm().clamp_min(10)
    with torch.no_grad():
        assert error(fast(x, t), plain(x, t)) < 2e-5


def test_second_derivatives_are_refused_by_the_kernels() -> None:
    """Autograd would silently take the kernels' gradients for constants."""
    network, (x, t) = prepare(randomised(UNet(BASE)), CPU), inputs(BASE)
    with pytest.raises(RuntimeError, match="create_graph: True is not possible with rarefy's kernels"):
        torch.autograd.grad(network(x, t).sum(), x, create_graph=True)
    prepare(network, CPU, compile="off")
    (gradient,) = torch.autograd.grad(network(x, t).sum(), x, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), x)[0].any()


def test_a_subclass_stays_plain() -> None:
    class Mine(UNet):
        pass

    network = randomised(Mine(BASE)).requires_grad_(False)
    before = network(*inputs(BASE))
    assert error(prepare(network, CPU)(*inputs(BASE)), before) < 2e-5


def test_autocast_leaves_float64_alone() -> None:
    network = prepare(randomised(UNet(BASE)).double(), CPU)
    arguments = inputs(BASE, torch.float64)
    expected = network(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(*arguments), expected)


@pytest.mark.parametrize("trains", ["in_layers.0", "in_layers.2", "out_layers.0", "out_layers.3", "emb_layers", "bias"])
def test_gradients_of_a_partly_frozen_network(trains: str) -> None:
    plain = randomised(UNet(BASE)).requires_grad_(False)
    fast, (x, t) = prepare(copy.deepcopy(plain), CPU), inputs(BASE)
    gradients = []
    for network in (fast, plain):
        leaves = [p.requires_grad_() for name, p in network.named_parameters() if trains in name]
        y = network(x.detach(), t)
        gradients.append(torch.autograd.grad(y, leaves, torch.linspace(-1, 1, y.numel()).view_as(y)))
    for ours, expected in zip(*gradients, strict=True):
        assert (ours - expected).norm() <= 2e-5 * expected.norm().clamp_min(10)


@pytest.mark.parametrize("assign", [True, False])
def test_weights_go_from_a_plain_network_to_a_fast_one_and_back(assign: bool) -> None:
    fast, plain, again = prepare(UNet(BASE).eval(), CPU), randomised(UNet(BASE)), UNet(BASE).eval()
    fast.load_state_dict(plain.state_dict(), assign=assign)
    again.load_state_dict(fast.state_dict(), assign=assign)
    with torch.no_grad():
        assert error(fast(*inputs(BASE)), plain(*inputs(BASE))) < 2e-5
        assert torch.equal(again(*inputs(BASE)), plain(*inputs(BASE)))


def test_rounded_weights_cannot_become_exact() -> None:
    network = prepare(UNet(BASE), CPU)
    to_bfloat16(network)
    with pytest.raises(DeviceError, match="precision: 'exact' is not possible: the network's weights are in bfloat16"):
        prepare(network, CPU)


def test_preparing_again_changes_the_kernels_alone() -> None:
    network = prepare(randomised(UNet(BASE)).requires_grad_(False), CPU)
    convolutions = [module for module in network.modules() if isinstance(module, FastConv3x3)]
    first = network(*inputs(BASE))
    assert all(module.own_kernels for module in convolutions)
    prepare(network, CPU, compile="off")
    assert not any(module.own_kernels for module in convolutions)
    assert torch.equal(prepare(network, CPU)(*inputs(BASE)), first)
