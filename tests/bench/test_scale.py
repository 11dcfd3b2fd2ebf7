"""The simulation of a large run against closed forms, and the table in docs/SCALE.md against the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import scale

DOCS = Path(__file__).parents[2] / "docs" / "SCALE.md"
IDEAL = scale.Figures(
    gpus=10, rate=2.0, spread=0.0, preemptions=0.0, start=0.0, driver=1e6, puts=3.0, gets=2.0,
    seal=100.0, check=1e9, seal_cores=1.0, read=1e9, gpu_price=3.0,
    put_price=0.005, get_price=0.0004, month_price=0.023,
)  # fmt: skip


def test_ideal_gpus_need_rounds_of_one_shard_each() -> None:
    outcome = scale.simulate(95, 100, IDEAL)
    assert outcome.hours * 3600 == pytest.approx(10 * 50, rel=1e-3)
    assert (outcome.shards, outcome.lost, outcome.retries) == (95, 0.0, 0)


def test_a_slow_driver_sets_the_pace() -> None:
    """Ten GPUs want 0.2 shards a second, and the driver handles 0.05 of them."""
    outcome = scale.simulate(200, 100, replace(IDEAL, driver=0.05))
    assert outcome.hours * 3600 == pytest.approx(200 / 0.05, rel=0.05)
    assert outcome.busy > 0.95


def test_preemptions_cost_half_a_shard_and_a_start_each() -> None:
    """With 0.5 preemptions an hour, shards of 50 s and starts of 100 s: 0.00694 a shard, which cost 25 + 100 s."""
    outcome = scale.simulate(40_000, 100, replace(IDEAL, preemptions=0.5, start=100.0))
    chance = 50 * 0.5 / 3600
    assert outcome.retries / 40_000 == pytest.approx(chance, rel=0.15)
    assert outcome.hours * 3600 == pytest.approx(4000 * (50 + chance * 125), rel=0.01)
    assert outcome.lost == pytest.approx(chance * 25 / 50, rel=0.2)


def test_requests_and_prices_by_hand() -> None:
    row = scale.estimate(100_000, 1_000, IDEAL)
    assert row.requests == 100 * (3 + 2 + 3)
    assert row.request_dollars == pytest.approx((300 * 0.005 + 500 * 0.0004) / 1000)
    assert row.gpu_dollars == pytest.approx(30 * 10 * 500 / 3600, rel=1e-3)
    assert row.seal_hours == pytest.approx(max(1.0, row.total_bytes / 1e9) / 3600)
    assert row.total_bytes == pytest.approx(100 * row.shard_bytes, rel=1e-3)
    limits = scale.limits(100_000, 1_000, IDEAL)
    assert limits["the driver's shards per second"] == pytest.approx(1e6 * 1_000 / 2)


def test_the_page_has_what_the_command_prints() -> None:
    """All lines but those of the simulation's larger runs, which take half a minute."""
    figures = scale.Figures(
        gpus=1000, **{name.lstrip("-").replace("-", "_"): value for name, value, _ in scale.OPTIONS}
    )
    row = scale.estimate(10**9, scale.SHARD_SIZES[-1], figures)
    assert scale.table([row]).splitlines()[-1] in DOCS.read_text().splitlines()
    for name, number in scale.limits(10**9, scale.RECOMMENDED, figures).items():
        assert f"- {name}: {number:,.0f}" in DOCS.read_text().splitlines()
