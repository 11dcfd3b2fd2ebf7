"""Schedules and respacing compared with closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.diffusion.schedule import LOGSNR_START, SCHEDULES, Schedule, kept_timesteps, make_betas, make_schedule
from rarefy.errors import ManifestError

COSINE = make_schedule("cosine", 1000)
LINEAR = make_schedule("linear", 1000)


def test_linear_betas_are_the_papers() -> None:
    betas = make_betas("linear", 1000)
    assert betas[0].item() == pytest.approx(1e-4, rel=1e-12)
    assert betas[-1].item() == pytest.approx(0.02, rel=1e-12)


def test_cosine_alphas_cumprod_is_the_squared_cosine_until_betas_clip() -> None:
    bar = make_schedule("cosine", 1000).alphas_cumprod
    for k in (0, 100, 500, 900):
        expected = (
            math.cos(((k + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        )
        assert bar[k].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("respacing", ["25", "10,10,5", "logsnr25"])
def test_a_chain_from_a_later_start_has_as_many_steps(respacing: str) -> None:
    chain = make_schedule("cosine", 1000, respacing, start=950)
    assert len(chain) == 25 and int(chain.timesteps[-1]) == 950 and int(chain.timesteps[0]) == 0
    torch.testing.assert_close(chain.alphas_cumprod, COSINE.alphas_cumprod[chain.timesteps], rtol=1e-8, atol=0)


def test_a_start_leaves_so_many_steps_at_most() -> None:
    assert kept_timesteps(COSINE.alphas_cumprod, "", start=7) == list(range(8))
    with pytest.raises(ManifestError, match="steps"):
        kept_timesteps(COSINE.alphas_cumprod, "9", start=7)


@pytest.mark.parametrize(
    ("name", "respacing"), [("linear", "25"), ("cosine", "10,10,5"), ("cosine", "ddim50"), ("cosine", "logsnr15")]
)
def test_respacing_keeps_alphas_cumprod_of_the_kept_steps(name: str, respacing: str) -> None:
    full, short = make_schedule(name, 1000), make_schedule(name, 1000, respacing)
    torch.testing.assert_close(short.alphas_cumprod, full.alphas_cumprod[short.timesteps], rtol=1e-8, atol=0)


def reference_timesteps(counts: list[int], num_timesteps: int = 1000) -> list[int]:
    """guided-diffusion's rule in full: floating-point additions of the stride, each place rounded half to even."""
    steps, start = [], 0
    for index, count in enumerate(counts):
        size = num_timesteps // len(counts)
        if index < num_timesteps % len(counts):
            size += 1
        stride = (size - 1) / (count - 1) if count > 1 else 1
        place = 0.0
        for _ in range(count):
            steps.append(start + round(place))
            place += stride
        start += size
    return steps


def test_evenly_spaced_steps_are_those_of_the_reference_for_every_count() -> None:
    for count in range(1, 1001):
        steps = kept_timesteps(LINEAR.alphas_cumprod, str(count))
        assert steps == reference_timesteps([count])
        assert len(set(steps)) == count and steps[0] == 0 and (count == 1 or steps[-1] == 999)
    assert kept_timesteps(LINEAR.alphas_cumprod, "21")[10] == 499, "not 500, which 10 times the stride rounds to"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=10))
def test_sections_are_spaced_as_in_the_reference(counts: list[int]) -> None:
    assert kept_timesteps(LINEAR.alphas_cumprod, ",".join(map(str, counts))) == reference_timesteps(counts)


def test_section_counts_keep_their_share_of_each_section() -> None:
    steps = kept_timesteps(LINEAR.alphas_cumprod, "10,20,5")
    assert [sum(low <= s < high for s in steps) for low, high in ((0, 334), (334, 667), (667, 1000))] == [10, 20, 5]


@pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=["cosine", "linear"])
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 990))
def test_logsnr_keeps_any_count_of_steps_up_to_its_start(schedule: Schedule, count: int) -> None:
    steps = kept_timesteps(schedule.alphas_cumprod, f"logsnr{count}")
    lam = schedule.half_log_snr
    assert len(steps) == count and all(a < b for a, b in itertools.pairwise(steps))
    assert lam[steps[-1]] >= LOGSNR_START and (steps[-1] == 999 or lam[steps[-1] + 1] < LOGSNR_START)
    assert count == 1 or steps[0] == 0


def test_logsnr_steps_are_the_nearest_to_equally_spaced_values_of_half_log_snr() -> None:
    lam = COSINE.half_log_snr
    steps = kept_timesteps(COSINE.alphas_cumprod, "logsnr10")
    parts = torch.linspace(lam[0].item(), lam[steps[-1]].item(), 10, dtype=torch.float64)
    for step, part in zip(steps, parts.tolist(), strict=True):
        assert abs(lam[step].item() - part) == (lam - part).abs().min().item()


def test_half_log_snr_and_multistep_weights_by_hand() -> None:
    abar = torch.tensor([0.9, 0.6, 0.3, 0.1], dtype=torch.float64)
    schedule = Schedule(torch.arange(4), 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]]))
    lam = [math.log(math.sqrt(a) / math.sqrt(1 - a)) for a in abar.tolist()]
    assert schedule.half_log_snr.tolist() == pytest.approx(lam)
    expected = [0, (lam[0] - lam[1]) / (lam[1] - lam[2]) / 2, (lam[1] - lam[2]) / (lam[2] - lam[3]) / 2, 0]
    assert schedule.multistep_weight.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("count", [1, 2])
def test_a_chain_of_two_steps_or_fewer_has_no_second_order_step(count: int) -> None:
    assert make_schedule("cosine", 1000, f"logsnr{count}").multistep_weight.tolist() == [0] * count


def test_posterior_is_bayes_rule() -> None:
    """q(x_{t-1} | x_t, x_0), computed independently as the product of its two Gaussian factors."""
    s = make_schedule("linear", 50)
    bar, previous, beta = s.alphas_cumprod, s.alphas_cumprod_prev, s.betas
    precision = 1 / (1 - previous[1:]) + (1 - beta[1:]) / beta[1:]
    torch.testing.assert_close(s.posterior_variance[1:], 1 / precision)
    torch.testing.assert_close(s.posterior_mean_coef_xstart[1:], previous[1:].sqrt() / (1 - previous[1:]) / precision)
    torch.testing.assert_close(s.posterior_mean_coef_xt[1:], (1 - beta[1:]).sqrt() / beta[1:] / precision)
    assert s.posterior_variance[0] == 0 and len(bar) == len(s) == 50


@pytest.mark.parametrize(
    "respacing", ["0", "1001", "abc", "-5", "600,600", "ddim999", "10,,5", "logsnr", "logsnr0", "logsnr997"]
)
def test_impossible_respacing_is_refused_by_name(respacing: str) -> None:
    with pytest.raises(ManifestError, match=r"steps: .* is not"):
        kept_timesteps(COSINE.alphas_cumprod, respacing)


def test_a_given_range_sets_the_first_and_last_beta() -> None:
    betas = make_betas("linear", 250, (0.0015, 0.0195))
    torch.testing.assert_close(betas[[0, -1]], torch.tensor([0.0015, 0.0195], dtype=torch.float64))
    torch.testing.assert_close(betas.diff(), (betas[1] - betas[0]).expand(249))


def test_the_roots_of_scaled_linear_betas_are_linear() -> None:
    betas = make_betas("scaled_linear", 100, (0.01, 0.04))
    expected = torch.tensor([(0.1 + 0.1 * k / 99) ** 2 for k in range(100)], dtype=torch.float64)
    torch.testing.assert_close(betas, expected, rtol=1e-12, atol=0)
    default = make_betas("scaled_linear", 1000)
    torch.testing.assert_close(default[[0, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))


@pytest.mark.parametrize("beta_range", [(0.0, 0.02), (0.02, 0.01), (0.1, 1.0), (-0.1, 0.1)])
def test_an_impossible_range_is_refused(beta_range: tuple[float, float]) -> None:
    with pytest.raises(ManifestError, match=r"beta_range: .* is not \[first, last\] with 0 < first <= last < 1"):
        make_betas("linear", 1000, beta_range)
    with pytest.raises(ManifestError, match="the cosine schedule has its own betas"):
        make_betas("cosine", 1000, beta_range)


@pytest.mark.parametrize(("steps", "beta_range"), [(1000, (0.5, 0.9)), (20, None), (10, None)])
def test_a_schedule_that_leaves_nothing_of_the_image_is_refused(
    steps: int, beta_range: tuple[float, float] | None
) -> None:
    with pytest.raises(ManifestError, match="beta_range: "):
        make_betas("linear", steps, beta_range)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [40, 1000, 4000])
def test_every_number_of_a_chain_is_finite(name: str, steps: int) -> None:
    s = make_schedule(name, steps)
    numbers = (s.betas, s.posterior_log_variance, s.posterior_mean_coef_xstart, s.posterior_mean_coef_xt)
    assert all(bool(each.isfinite().all()) for each in (*numbers, s.half_log_snr, s.multistep_weight))
    assert float(s.alphas_cumprod[-1].sqrt().float()) > torch.finfo(torch.float32).tiny


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ManifestError, match="'sigmoid' is not one of linear, scaled_linear, cosine"):
        make_betas("sigmoid", 1000)


def test_a_thinned_chain_has_the_ends_of_the_whole_and_its_noise_levels() -> None:
    whole = make_schedule("cosine", 1000, "logsnr20").up_to(600)
    thin = whole.thinned(4)
    assert len(thin) == 4
    assert (thin.timesteps[0], thin.timesteps[-1]) == (whole.timesteps[0], whole.timesteps[-1])
    places = [whole.timesteps.tolist().index(t) for t in thin.timesteps.tolist()]
    torch.testing.assert_close(thin.alphas_cumprod, whole.alphas_cumprod[places])
    assert max(b - a for a, b in itertools.pairwise(places)) - min(b - a for a, b in itertools.pairwise(places)) <= 1


def test_a_chain_has_at_least_one_step() -> None:
    with pytest.raises(ManifestError, match="diffusion_steps: 0 is not at least 1"):
        make_betas("linear", 0)
