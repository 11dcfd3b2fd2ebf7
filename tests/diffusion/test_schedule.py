"""Schedules and respacing against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.diffusion.schedule import kept_timesteps, make_betas, make_schedule
from pipeline.errors import ManifestError


def test_linear_betas_are_the_papers() -> None:
    betas = make_betas("linear", 1000)
    assert betas[0].item() == pytest.approx(1e-4, rel=1e-12)
    assert betas[-1].item() == pytest.approx(0.02, rel=1e-12)


def test_cosine_alphas_cumprod_is_the_squared_cosine_until_betas_clip() -> None:
    bar = make_schedule("cosine", 1000).alphas_cumprod
    for k in (0, 100, 500, 900):
        wanted = (
            math.cos(((k + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        )
        assert bar[k].item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("name", "respacing"), [("linear", "25"), ("cosine", "10,10,5"), ("cosine", "ddim50")])
def test_respacing_keeps_alphas_cumprod_of_the_kept_steps(name: str, respacing: str) -> None:
    full, short = make_schedule(name, 1000), make_schedule(name, 1000, respacing)
    torch.testing.assert_close(short.alphas_cumprod, full.alphas_cumprod[short.timesteps], rtol=1e-8, atol=0)


@given(st.integers(1, 1000))
def test_a_step_count_spans_the_chain(count: int) -> None:
    steps = kept_timesteps(1000, str(count))
    assert len(set(steps)) == count == len(steps) and steps == sorted(steps)
    assert steps[0] == 0 and (count == 1 or steps[-1] == 999)


def test_section_counts_keep_their_share_of_each_section() -> None:
    steps = kept_timesteps(1000, "10,20,5")
    assert [sum(low <= s < high for s in steps) for low, high in ((0, 334), (334, 667), (667, 1000))] == [10, 20, 5]


def test_posterior_is_bayes_rule() -> None:
    """q(x_{t-1} | x_t, x_0) from the product of its two Gaussian factors, computed apart."""
    s = make_schedule("linear", 50)
    bar, previous, beta = s.alphas_cumprod, s.alphas_cumprod_prev, s.betas
    precision = 1 / (1 - previous[1:]) + (1 - beta[1:]) / beta[1:]
    torch.testing.assert_close(s.posterior_variance[1:], 1 / precision)
    torch.testing.assert_close(s.posterior_mean_coef_xstart[1:], previous[1:].sqrt() / (1 - previous[1:]) / precision)
    torch.testing.assert_close(s.posterior_mean_coef_xt[1:], (1 - beta[1:]).sqrt() / beta[1:] / precision)
    assert s.posterior_variance[0] == 0 and len(bar) == len(s) == 50


@pytest.mark.parametrize("respacing", ["0", "1001", "abc", "-5", "600,600", "ddim999", "10,,5"])
def test_impossible_respacing_is_refused_by_name(respacing: str) -> None:
    with pytest.raises(ManifestError, match="steps"):
        kept_timesteps(1000, respacing)


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ManifestError, match="'sigmoid' is not one of linear, cosine"):
        make_betas("sigmoid", 1000)
