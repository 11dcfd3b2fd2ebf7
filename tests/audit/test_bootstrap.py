"""Bootstrap intervals against closed forms, and what must not move."""

import numpy as np
import pytest

from pipeline.audit.bootstrap import REPLICATES, Estimate, around, estimate_mean, estimate_means


def test_the_spread_of_a_share_is_the_binomial_one() -> None:
    hits = np.arange(2000) % 4 == 0
    found = estimate_mean(hits, "rows")
    assert found.value == 0.25
    assert found.replicates is not None
    assert len(found.replicates) == REPLICATES
    # sqrt(p (1 - p) / n) = 0.0097; 200 resamples know their spread to about 5%
    assert found.replicates.std() == pytest.approx(np.sqrt(0.25 * 0.75 / 2000), rel=0.2)
    low, high = found.interval or (0.0, 0.0)
    assert low < 0.25 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.0097, rel=0.25)


def test_rows_without_a_value_take_no_part() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan])
    found = estimate_means({"some": values, "all": np.arange(4.0), "none": np.full(4, np.nan)}, "rows")
    assert [found[name].value for name in ("some", "all", "none")] == [2.0, 1.5, 0.0]
    assert found["none"].interval is None
    assert found["some"].replicates is not None
    assert set(np.round(found["some"].replicates, 6)) <= {
        0.0,
        1.0,
        1.5,
        1.666667,
        2.0,
        2.333333,
        2.5,
        3.0,
        1.333333,
        2.666667,
    }


def test_the_same_rows_give_the_same_resamples() -> None:
    first, second = estimate_mean(np.arange(50.0), "rows"), estimate_mean(np.arange(50.0), "rows")
    assert first.interval == second.interval
    together = estimate_means({"a": np.arange(50.0), "b": 2 * np.arange(50.0)}, "rows")
    np.testing.assert_allclose(2 * together["a"].replicates, together["b"].replicates)  # type: ignore[operator]


def test_constant_values_have_an_interval_of_no_width() -> None:
    assert estimate_mean(np.ones(30), "rows").interval == [1.0, 1.0]
    assert Estimate(3.0).interval is None


def test_two_sides_add_their_variances() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=1000), generator.normal(size=500) * 2
    found = around(7.0, (first, second), "both")
    assert found.value == 7
    assert found.replicates is not None
    expected = np.sqrt(first.var() / 1000 + second.var() / 500)
    assert found.replicates.std() == pytest.approx(expected, rel=0.2)
    assert found.replicates.mean() == pytest.approx(7, abs=4 * expected / np.sqrt(REPLICATES))
