"""The plots of docs/PERFORMANCE.md, from figures of the commands' own form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import plots

SPLIT = {"unet": 2.0, "classifier_forward": 1.0, "classifier_backward": 1.5, "rest": 0.1}
STEP = {"model": "embedded", "batch": 64, "split": {"baseline": SPLIT, "exact": SPLIT, "fast": SPLIT}}


def bench(precision: str, speed: float) -> dict[str, Any]:
    return {
        "precision": precision,
        "batches": [{"batch": 2 * n, "images_per_second": speed * n} for n in (4, 1, 2)],
        "sizes": [{"image_size": 28 * n, "seconds_a_step": n / speed, "batch": 4} for n in (1, 2)],
        "actors": [{"actors": n, "images_per_second": speed * n} for n in (1, 2)],
    }


def test_growth_has_a_line_a_precision_through_the_points_in_order() -> None:
    by_batch, by_size, by_actors = plots.growth([bench("exact", 1.0), bench("fast", 2.0)]).axes
    assert [line.get_label() for line in by_batch.lines] == ["exact", "fast"]
    assert by_batch.lines[1].get_xydata().tolist() == [[2, 2], [4, 4], [8, 8]]  # type: ignore[union-attr]
    assert by_size.lines[1].get_xydata().tolist() == [[28, 125], [56, 250]]  # type: ignore[union-attr]
    assert by_actors.lines[0].get_xydata().tolist() == [[1, 1], [2, 2]]  # type: ignore[union-attr]


def test_a_bar_is_as_high_as_its_parts_together() -> None:
    (panel,) = plots.steps([STEP]).axes
    tops = {round(bar.get_y() + bar.get_height(), 6) for bar in panel.patches[-3:]}  # type: ignore[attr-defined]
    assert tops == {4.6}
    assert panel.get_xlabel() == "embedded, batch 64"


def test_command_writes_the_same_files_again(tmp_path: Path) -> None:
    step, growth = tmp_path / "step.jsonl", tmp_path / "fast.json"
    step.write_text(json.dumps(STEP) + "\n")
    growth.write_text(json.dumps(bench("fast", 1.0)))
    written = []
    for _ in range(2):
        assert plots.main(["--out", str(tmp_path), "--bench", str(growth), "--step", str(step)]) == 0
        written.append([(tmp_path / f"performance-{name}.svg").read_bytes() for name in ("growth", "step")])
    assert written[0] == written[1] and b"images/s" in written[0][0] and b"baseline" in written[0][1]
