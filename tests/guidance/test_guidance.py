"""Guidance terms compared with finite differences in float64, and the identities of docs/METHODS.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import ManifestError
from rarefy.guidance.base import (
    Classify,
    Networks,
    StepState,
    Term,
    at,
    entropy,
    other_log_prob,
    target_log_prob,
)
from rarefy.guidance.guide import Guide
from rarefy.guidance.registry import parse_term
from rarefy.guidance.terms import ClassifierGuidance, EntropyAscent, LowConfidence, PredictedRealImage

K, SHAPE, T = 5, (2, 3, 3), 400


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class SmallClassifier(nn.Module):
    """A smooth nonlinear classifier whose logits depend on the time step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.hidden = nn.Linear(math.prod(SHAPE), 16)
        self.out = nn.Linear(16, K)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.tanh(self.hidden(x.flatten(1)))) * (1 + t[:, None] / 100)
        return logits


def state(seed: int = 0) -> StepState:
    g = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(4, *SHAPE, generator=g), torch.randn(4, *SHAPE, generator=g)
    pred = ((x - math.sqrt(0.6) * eps) / math.sqrt(0.4)).clamp(-1, 1)
    return StepState(7, T, 0.4, x, torch.tensor([0, 3, 4, 3]), eps, pred)


def never_denoise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    raise AssertionError("no term here calls the U-Net")


def guidance(terms: Sequence[Term], s: StepState, classify: Classify | None) -> Tensor | None:
    """G at a single step."""
    return Guide(terms, Networks(never_denoise, classify))(s)


def finite_difference(term: Any, s: StepState, classify: nn.Module, factor: Tensor | None = None) -> Tensor:
    """Central differences of each image's objective, times a constant ``factor`` per image."""
    gradient = torch.zeros_like(s.x_t)
    t = torch.full((4,), float(T))
    flat = gradient.view(4, -1)
    with torch.no_grad():
        for i in range(flat.shape[1]):
            h = torch.zeros(math.prod(SHAPE))
            h[i] = 1e-5
            up, down = (
                term.objective(classify(s.x_t + sign * h.view(SHAPE), t).log_softmax(-1), s) for sign in (1, -1)
            )
            flat[:, i] = (up - down) / 2e-5
    return gradient if factor is None else gradient * factor[:, None, None, None]


@pytest.mark.parametrize(
    "term",
    [
        ClassifierGuidance(scale=3.0),
        ClassifierGuidance(scale=((0, 1.0), (1000, 5.0))),
        LowConfidence(scale=2.0, tau=0.5),
        LowConfidence(scale=2.0, tau=0.0),
        LowConfidence(scale=1.5, tau=((0, 0.2), (800, 1.0))),
        EntropyAscent(scale=1.5),
        EntropyAscent(scale=((0, 1.0), (1000, 5.0))),
    ],
    ids=repr,
)
def test_classifier_terms_match_finite_differences(term: Term) -> None:
    classify, s = SmallClassifier(), state()
    actual = guidance([term], s, classify)
    torch.testing.assert_close(actual, finite_difference(term, s, classify), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("max_scale", [None, 1.2])
def test_entropy_scaling_multiplies_the_gradient_by_log_k_over_entropy(max_scale: float | None) -> None:
    classify, s = SmallClassifier(), state()
    log_probs = classify(s.x_t, torch.full((4,), float(T))).log_softmax(-1).detach()
    factor = math.log(K) / entropy(log_probs)
    assert factor.max() > 1.2, "the bound must take effect in this test"
    factor = factor if max_scale is None else factor.clamp(max=max_scale)
    actual = guidance([ClassifierGuidance(scale=2.0, entropy_scaling=True, max_scale=max_scale)], s, classify)
    plain = ClassifierGuidance(scale=2.0)
    torch.testing.assert_close(actual, finite_difference(plain, s, classify, factor), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("classes", [2, 10, 55, 1000])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("gap", [0.0, 5.0, 40.0, 79.0, 84.0, 90.0, 101.0, 200.0, 600.0])
def test_entropy_scaling_is_right_and_finite_where_float32_has_no_numbers(
    gap: float, scale: float, classes: int
) -> None:
    """The gradient with respect to the logits, (log K / H) (onehot - p), written out in float64."""
    logits = torch.linspace(-0.5, 0.5, classes)[None].repeat(2, 1)
    logits[0, 1] += gap  # sure of the target class
    p = logits.log_softmax(1).exp()
    others = torch.cat([p[:, :1], p[:, 2:]], dim=1)
    doubt = others.sum(1)  # 1 - p(y) without cancellation
    nats = -(others * others.log()).sum(1) - p[:, 1] * torch.log1p(-doubt)
    expected = -p * (math.log(classes) / nats)[:, None]
    expected[:, 1] = doubt * math.log(classes) / nats
    z, s = logits.float().requires_grad_(), replace(state(), y=torch.tensor([1, 1]))
    term = ClassifierGuidance(scale=scale, entropy_scaling=True)
    (actual,) = torch.autograd.grad(term.objective(z.log_softmax(1), s).sum(), z)
    # From a gap of 17 on float32 rounds p(y) to 1 and loses the term p(y) log p(y) of the entropy, 1 / gap of it; the
    # form for vanishing numbers has it.
    tolerance = 1e-4 if gap > 100 else 0.03
    torch.testing.assert_close(actual[:, 0].double(), scale * expected[:, 0], rtol=tolerance, atol=0)
    torch.testing.assert_close(actual.double().sum(1), torch.zeros(2), rtol=0, atol=scale)


def test_entropy_scaling_is_finite_where_the_classifier_is_sure_of_another_class() -> None:
    """The formula itself has no bound there."""
    logits = torch.zeros(3, 55, dtype=torch.float32)
    logits[:, 7] = torch.tensor([20.0, 101.0, 1e30])
    z, s = logits.requires_grad_(), replace(state(), y=torch.tensor([1, 1, 1]))
    term = ClassifierGuidance(scale=10.0, entropy_scaling=True)
    (actual,) = torch.autograd.grad(term.objective(z.log_softmax(1), s).sum(), z)
    assert actual.isfinite().all()
    assert actual[:, 1].tolist() == pytest.approx([10 * math.log(55) * math.exp(20) / 54 / 21, 1e13, 1e13], rel=0.06)


def test_predicted_real_image_matches_the_gradient_of_the_log_gaussian_around_the_prediction() -> None:
    s = state()
    x = s.x_t.clone().requires_grad_()
    log_density = -0.5 * (x - math.sqrt(0.4) * s.pred_xstart).square().sum() / 0.6
    (expected,) = torch.autograd.grad(0.7 * log_density, x)
    actual = guidance([PredictedRealImage(gamma=0.7)], s, None)
    torch.testing.assert_close(actual, expected)


def test_tau_of_one_is_classifier_guidance() -> None:
    classify, s = SmallClassifier(), state()
    plain = guidance([ClassifierGuidance(scale=2.5)], s, classify)
    torch.testing.assert_close(guidance([LowConfidence(scale=2.5, tau=1.0)], s, classify), plain)


def test_low_confidence_is_scale_times_tau_minus_p_times_d() -> None:
    """The form that docs/METHODS.md derives: S (tau - p) D with D = grad log p / (1 - p)."""
    classify, s = SmallClassifier(), state()
    grad_log_p = guidance([ClassifierGuidance(scale=1.0)], s, classify)
    p = classify(s.x_t, torch.full((4,), float(T))).softmax(-1).gather(1, s.y[:, None]).detach()[..., None, None]
    assert grad_log_p is not None
    actual = guidance([LowConfidence(scale=3.0, tau=0.3)], s, classify)
    torch.testing.assert_close(actual, 3.0 * (0.3 - p) * grad_log_p / (1 - p))


def test_terms_add_up_and_one_classifier_pass_serves_them_all() -> None:
    classify, s, calls = SmallClassifier(), state(), []

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        logits: Tensor = classify(x, t)
        return logits

    terms = [ClassifierGuidance(scale=1.0), LowConfidence(scale=2.0, tau=0.4), PredictedRealImage(gamma=-0.1)]
    together = guidance(terms, s, counted)
    assert calls == [4]
    apart = [guidance([term], s, classify) for term in terms]
    torch.testing.assert_close(together, apart[0] + apart[1] + apart[2])  # type: ignore[operator]


def test_a_term_outside_its_window_is_zero_and_costs_no_pass() -> None:
    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the classifier was called outside every window")

    terms = [ClassifierGuidance(scale=1.0, window=(0, T - 1)), PredictedRealImage(gamma=1.0, window=(T + 1, 1000))]
    assert guidance(terms, state(), never) is None
    edge = [PredictedRealImage(gamma=1.0, window=(T, T))]
    assert guidance(edge, state(), never) is not None


def passes(terms: Sequence[Term], times: Sequence[int], classifier_every: int) -> tuple[list[int], list[Tensor | None]]:
    """The time steps at which a chain over ``times`` calls the classifier, and G at each step."""
    classify, called = SmallClassifier(), []

    def counted(x: Tensor, t: Tensor) -> Tensor:
        called.append(int(t[0]))
        logits: Tensor = classify(x, t)
        return logits

    guide = Guide(terms, Networks(never_denoise, counted), classifier_every)
    gradients = [guide(replace(state(seed), t=t)) for seed, t in enumerate(times)]
    return called, gradients


TIMES = [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]


@pytest.mark.parametrize(
    ("classifier_every", "window", "called"),
    [
        (1, (250, 750), [700, 600, 500, 400, 300]),
        (2, (250, 750), [700, 500, 300]),
        (3, None, [900, 600, 300, 0]),
        (99, (250, 750), [700]),
        (4, (-2, -1), []),
    ],
)
def test_classifier_passes_are_counted_from_the_first_step_inside_the_window(
    classifier_every: int, window: tuple[float, float] | None, called: list[int]
) -> None:
    actual, gradients = passes([ClassifierGuidance(window=window)], TIMES, classifier_every)
    assert actual == called
    low, high = window or (0, 999)
    assert [g is not None for g in gradients] == [low <= t <= high for t in TIMES]


def test_steps_in_between_reuse_the_last_pass_and_score_terms_are_recomputed() -> None:
    ramp = ((0, 1.0), (1000, 9.0))
    _, every = passes([ClassifierGuidance(scale=ramp)], TIMES[:4], 1)
    _, second = passes([ClassifierGuidance(scale=ramp)], TIMES[:4], 2)
    for k, kept in enumerate((0, 0, 2, 2)):
        torch.testing.assert_close(second[k], every[kept], rtol=0, atol=0)
    assert not torch.equal(every[0], every[1])  # type: ignore[arg-type] # else the loop proves nothing
    both = passes([ClassifierGuidance(scale=ramp), PredictedRealImage(gamma=0.1)], TIMES[:4], 2)[1]
    for k, total in enumerate(both):
        assert total is not None and second[k] is not None
        expected = guidance([PredictedRealImage(gamma=0.1)], replace(state(k), t=TIMES[k]), None)
        torch.testing.assert_close(total - second[k], expected)  # type: ignore[operator]


def test_a_pass_is_made_when_a_window_opens_or_closes() -> None:
    early, late = ClassifierGuidance(scale=2.0, window=(650, 1000)), LowConfidence(window=(0, 450))
    called, gradients = passes([early, late], TIMES, 4)
    assert called == [900, 400, 0]
    assert [g is None for g in gradients] == [650 > t > 450 for t in TIMES]
    alone = guidance([late], replace(state(5), t=400), SmallClassifier())
    torch.testing.assert_close(gradients[6], alone)
    overlapping = passes([early, ClassifierGuidance(window=(0, 750))], TIMES, 3)[0]
    assert overlapping == [900, 700, 600, 300, 0], "at 700 the second opens, at 600 the first has closed"


def test_log_of_one_minus_p_stays_exact_if_p_rounds_to_one() -> None:
    logits = torch.tensor([[100.0, 0.0, 0.0]], dtype=torch.float32)
    log_probs, y = logits.log_softmax(-1), torch.tensor([0])
    assert target_log_prob(log_probs, y).exp().item() == 1.0
    assert other_log_prob(log_probs, y).item() == pytest.approx(math.log(2) - 100, rel=1e-6)


def test_entropy_of_uniform_and_of_certain() -> None:
    assert entropy(torch.full((1, K), -math.log(K))).item() == pytest.approx(math.log(K))
    assert entropy(torch.tensor([[0.0, -200.0]])).item() == pytest.approx(0, abs=1e-12)


def test_ramps_are_linear_between_points_and_constant_beyond() -> None:
    ramp = ((300.0, 0.05), (500.0, -0.05))
    assert [at(ramp, t) for t in (0, 300, 400, 500, 999)] == pytest.approx([0.05, 0.05, 0.0, -0.05, -0.05])


def test_a_table_becomes_its_term() -> None:
    table = {"term": "predicted-real-image", "gamma": [[300, 0.05], [500, -0.05]], "window": [0, 900]}
    term = parse_term(table, "guidance[0]")
    assert term == PredictedRealImage(gamma=((300.0, 0.05), (500.0, -0.05)), window=(0.0, 900.0))
    assert term.name == "predicted-real-image"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"term": "magic"}, r"g\.term: 'magic' is not one of classifier, low-confidence, predicted-real-image"),
        ({"term": "classifier", "sclae": 1}, r"g\.sclae: 1 is not a key of classifier"),
        ({"term": "classifier", "scale": "big"}, r"g\.scale: 'big' is not a number"),
        ({"term": "classifier", "scale": True}, r"g\.scale: True is not a number"),
        ({"term": "classifier", "scale": [[5, 1], [5, 2]]}, r"ascending time"),
        ({"term": "classifier", "entropy_scaling": 1}, r"g\.entropy_scaling: 1 is not true or false"),
        ({"term": "classifier", "max_scale": 0.5}, r"g\.max_scale: 0\.5 is not a number of at least 1"),
        ({"term": "low-confidence", "tau": 1.5}, r"g\.tau: 1\.5 is not from 0 to 1"),
        ({"term": "low-confidence", "window": [500, 300]}, r"g\.window: \[500\.0, 300\.0\] is not \[low, high\]"),
    ],
)
def test_bad_tables_name_key_value_and_what_is_allowed(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_term(table, "g")
