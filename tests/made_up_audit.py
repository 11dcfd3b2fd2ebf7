"""A hand-made audit in format v3: what the pages and the verdict read, without an audit's minutes."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rarefy.audit.schema import FORMAT
from rarefy.gates import DEFAULT_GATES, Reading, check_gates
from rarefy.shards.store import Store

SCRIPT = "<script>alert(1)</script>"
NAMES = {0: SCRIPT, 1: "coat & boot"}
Result = dict[str, Any]


def write_rows(store: Store, rel: str, rows: list[Result]) -> None:
    with store.staged(rel) as path:
        pq.write_table(pa.Table.from_pylist(rows), path)


def make_png(shade: int) -> bytes:
    """One 8x8 grey image a shade, so that a test can tell which is shown."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), shade, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def entry(value: float, floor: float | None, better: str = "higher") -> Result:
    return {
        "value": value,
        "interval": [value - 0.02, value + 0.02],
        "interval_over": "generated rows",
        "floor": floor,
        "floor_interval": None if floor is None else [floor - 0.01, floor + 0.01],
        "better": better,
        "extractor": "efficientnet-lite0",
        "layer": "head_pooled",
        "k": 3,
        "generated_count": 20,
        "real_count": 100,
        "floor_count": 20,
    }


def make_result() -> Result:
    metrics = {
        "fid_efficientnet_lite0": entry(400.0, 100.0, "lower") | {"k": None},
        "kid_efficientnet_lite0": entry(1.2, -0.03, "lower") | {"k": None, "std": 0.08, "floor_std": 0.01},
        "precision": entry(0.7, 0.8),
        "recall": entry(0.6, 0.8),
        "tail_recall": entry(0.3, 0.5),
        "tail_coverage": entry(0.2, 0.4),
        "coverage": entry(0.1, 0.2),
        "density": entry(0.6, 1.0),
        "rarity": entry(18.0, 15.0),
        "outside": entry(0.3, 0.2, "lower"),
        "avg_knn": entry(21.0, 20.0, "neither"),
        "nearest": entry(14.0, 13.0, "neither"),
        "lof": entry(1.3, 1.1, "lower") | {"sample_count": 15},
        "duplicates": entry(0.05, 0.0, "lower") | {"interval": None, "floor_interval": None},
        "copies": entry(0.1, 0.0, "lower"),
        "on_class_rate": entry(0.85, 0.9) | {"k": None, "extractor": "guiding classifier", "layer": "softmax at t = 0"},
    }
    return {
        "format": FORMAT,
        "metrics": metrics,
        "tail": {"rule": "avgknn", "share": 0.2, "count": 20, "sha256": "b" * 64},
        "histograms": {
            "confidence": histogram("probability", 1.0),
            "entropy": histogram("nats", 2.0),
            "rarity": histogram("feature distance", 40.0),
        },
        "per_class": [class_row(class_id, name) for class_id, name in NAMES.items()],
        "copies": [
            {key: value for key, value in row.items() if "png" not in key} | {"class_id": place % 2}
            for place, row in enumerate(copy_rows())
        ],
        "gates": [
            {"metric": "recall", "scope": "all", "bound": "min", "limit": 0.45, "value": 0.6, "passed": True},
            {"metric": "coverage", "scope": SCRIPT, "bound": "min", "limit": 0.6, "value": 0.1, "passed": False},
            *default_checks(metrics),
        ],
        "verdict": "failed",
        "map": {
            "method": "pca",
            "explained": [0.31, 0.12],
            "generated": [[0.1 * i, -0.2 * i, i % 2, f"{i:011d}"] for i in range(20)],
            "real": [[0.1 * i, 0.3 * i, i % 2] for i in range(30)],
        },
        "problems": [{"where": "rare-000001.tar", "what": "truncated after 3 images"}],
        "partial": True,
        "provenance": provenance(),
    }


def default_checks(metrics: dict[str, Result]) -> list[Result]:
    """The default gates that recall's own gate leaves."""
    readings = {name: Reading(row["value"], row["interval"], row["floor"]) for name, row in metrics.items()}
    gates = [gate for gate in DEFAULT_GATES if gate.metric != "recall"]
    return [dataclasses.asdict(check) for check in check_gates(gates, readings, [])]


def provenance() -> Result:
    return {
        "run": f"run {SCRIPT}",
        "manifest_digest": "d" * 64,
        "preset": "fashion-mnist-28",
        "sealed": True,
        "planned": 20,
        "committed": 20,
        "measured": 20,
        "not_accepted": 0,
        "precision": "exact",
        "fast_errors": None,
        "checkpoint_sha256": "0" * 64,
        "classifier_sha256": "1" * 64,
        "guidance": ["low-confidence"],
        "sampler": "ancestral, 50 steps",
        "extractor": "efficientnet-lite0",
        "extractor_layer": "head_pooled",
        "extractor_sha256": "e" * 64,
        "preprocessing": "64 px, bilinear",
        "k": 3,
        "reference": '"><img onerror=alert(1)>',
        "reference_count": 100,
        "reference_resized": 7,
        "reference_sha256": "a" * 64,
        "device": "cpu",
        "manifest": f"name = '{SCRIPT}'\n# " + "a long line " * 30,
        "versions": {"torch": "2.13.0"},
        "created_at": "2026-11-22T00:00:00+00:00",
        "duration_s": 1.5,
    }


def histogram(unit: str, upper: float) -> Result:
    shares = np.arange(1, 26) / np.arange(1, 26).sum()
    return {
        "unit": unit,
        "edges": np.linspace(0, upper, 26).tolist(),
        "generated": shares.tolist(),
        "reference": shares[::-1].tolist(),
        "generated_mean": upper * 0.6,
        "reference_mean": upper * 0.4,
    }


def class_row(class_id: int, name: str) -> Result:
    return {
        "class_id": class_id,
        "class_name": name,
        "planned": 10,
        "count": 10,
        "on_class_rate": 0.9 - 0.1 * class_id,
        "on_class_rate_interval": None,
        "confidence": 0.7,
        "entropy": 0.5,
        "reference_on_class_rate": 0.9,
        "reference_confidence": 0.8,
        "reference_entropy": 0.4,
        "confidence_w1": 0.1,
        "entropy_w1": 0.2,
        "precision": 0.7,
        "recall": 0.6 - 0.2 * class_id,
        "recall_interval": [0.5 - 0.2 * class_id, 0.7 - 0.2 * class_id],
        "recall_floor": 0.8,
        "coverage": 0.1,
        "coverage_floor": None if class_id else 0.2,
        "acceptance_rate": None,
    }


def strip_rows(classes: dict[int, str] = NAMES) -> list[Result]:
    """Per class two images at random, two rarest, one outside, one off class, two real ones; each of another shade."""
    rows = []
    for class_id in classes:
        shades = iter(range(20 * class_id % 250, 20 * class_id % 250 + 9))
        for strip, count in {"sample": 2, "rarest": 2, "outside": 1, "off class": 1, "real": 2}.items():
            for place in range(count):
                rows.append(strip_row(strip, class_id, place, next(shades)))
    return rows


def strip_row(strip: str, class_id: int, place: int, shade: int) -> Result:
    real, near = strip == "real", strip in ("rarest", "outside")
    return {
        "strip": strip,
        "class_id": class_id,
        "place": place,
        "key": f"{class_id:06d}{place:05d}",
        "rarity": None if strip == "outside" else 20.0 - place,
        "confidence": None if real else 0.5,
        "predicted_id": None if real else 1 - class_id if strip == "off class" else class_id,
        "png": make_png(shade),
        "nearest_key": None if real else "7",
        "nearest_distance": None if real else 3.5,
        "nearest_png": make_png(100 + shade) if near else None,
    }


def copy_rows() -> list[Result]:
    kinds = {"reference": "17", "exact": "00000000002", "near": "00000000003"}
    return [
        {
            "key": "00000000001",
            "other": other,
            "kind": kind,
            "distance": 0.5 * place,
            "ratio": 0.1 if kind == "reference" else None,
            "png": make_png(200 + place),
            "other_png": make_png(220 + place),
        }
        for place, (kind, other) in enumerate(kinds.items())
    ]
