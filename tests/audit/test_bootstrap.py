"""Bootstrap intervals against closed forms, and values that must not change."""

import numpy as np
import pytest

from rarefy.audit.metrics import distances
from rarefy.audit.metrics.assembly import set_estimates
from rarefy.audit.metrics.bootstrap import (
    REPLICATES,
    Estimate,
    around,
    estimate_mean,
    estimate_means,
    fraction_interval,
    moved_also,
)
from rarefy.audit.metrics.neighbors import build_manifold


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


def test_a_share_moves_with_both_sides_and_stays_a_share() -> None:
    share = estimate_mean(np.arange(1000) % 2 == 0, "real rows")
    influences = np.random.default_rng(0).normal(size=400)
    found = moved_also(share, influences, "both")
    assert (found.value, found.over) == (0.5, "both")
    assert found.replicates is not None
    assert found.replicates.std() == pytest.approx(np.sqrt(0.25 / 1000 + influences.var() / 400), rel=0.2)
    wild = moved_also(share, 100 * influences, "both").replicates
    assert wild is not None
    assert (wild.min(), wild.max()) == (0, 1)
    assert moved_also(Estimate(1.0), influences, "both").interval is None


def test_intervals_hold_what_other_draws_give(monkeypatch: pytest.MonkeyPatch) -> None:
    # A subset for KID is the whole set of 300, so one is enough; LOF is not tested here.
    monkeypatch.setattr(distances, "KID_SUBSETS", 1)
    monkeypatch.setattr(distances, "LOF_SAMPLE", 30)
    generator = np.random.default_rng(0)
    values: dict[str, list[float]] = {"recall": [], "coverage": [], "kid": []}
    spreads: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(30):
        generated, real = (generator.normal(size=(300, 10)).astype(np.float32) for _ in range(2))
        found = set_estimates(build_manifold(generated + np.float32(0.3), 3), build_manifold(real, 3)).estimates
        for name in values:
            replicates = found[name].replicates
            assert replicates is not None
            values[name].append(found[name].value)
            spreads[name].append(float(replicates.std()))
    for name, given in values.items():
        # Those of recall and coverage are rather too wide: in a fresh draw, another row may reach the same real row.
        assert 0.8 < np.mean(spreads[name]) / np.std(given) < (1.3 if name == "kid" else 1.8), name


@pytest.mark.parametrize(("hits", "count"), [(30, 100), (0, 10), (10, 10), (3, 7)])
def test_the_interval_of_a_class_is_the_bootstrap_interval(hits: int, count: int) -> None:
    """Resampling a share is drawing from a binomial, whose quantiles need no resamples."""
    values = np.arange(count) < hits
    fraction, interval = fraction_interval(values)
    resampled = np.random.default_rng(0).choice(values, (40_000, count)).mean(axis=1)
    assert fraction == hits / count
    np.testing.assert_allclose(interval or [], np.quantile(resampled, (0.025, 0.975)), atol=1.01 / count)


def test_a_class_without_images_has_no_interval() -> None:
    assert fraction_interval(np.zeros(0, np.bool_)) == (None, None)
