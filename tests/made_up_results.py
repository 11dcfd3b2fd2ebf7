"""A docs/results.json of the experiment's form with made-up numbers."""

from __future__ import annotations

from typing import Any

METHODS = {  # FID, recall
    "adm": (52.0, 0.681), "adm-g": (49.5, 0.652), "eds": (48.9, 0.641), "eds-ect": (49.1, 0.645),
    "low-confidence": (53.5, 0.688), "predicted-real": (47.2, 0.655), "low-density": (46.0, 0.715),
    "entropy": (60.3, 0.69), "self-guided": (55.1, 0.683), "boost-and-skip": (71.0, 0.70),
    "uncond-adm": (66.0, 0.662), "uncond-adm-g": (61.0, 0.640), "uncond-eds": (52.5, 0.643),
    "uncond-eds-ect": (51.9, 0.646), "uncond-low-density": (57.0, 0.69),
}  # fmt: skip
FLOOR = {
    "count": 5000, "fid": 21.0, "precision": 0.83, "recall": 0.834, "density": 0.97, "coverage": 0.95,
    "tail_recall": 0.62, "tail_coverage": 0.8, "rarity": 17.25, "avg_knn": 15.11, "confidence": 0.9, "entropy": 0.21,
    "on_class": 0.92,
}  # fmt: skip
GUIDANCE = [{"term": "classifier", "scale": 2.0, "window": [300, 1000]}]


def metrics(fid: float, recall: float) -> dict[str, Any]:
    """Every metric of a row, the others following from these two."""
    return FLOOR | {"fid": fid, "recall": recall, "tail_recall": recall - 0.3, "on_class": 0.88}


def row(method: str, seed: int, fid: float, recall: float) -> dict[str, Any]:
    preset = "fashion-mnist-28" + ("-uncond" if method.startswith("uncond-") else "")
    about = {"method": method, "seed": seed, "preset": preset, "sampler": "dpm-solver++, 50 steps"}
    return {
        **about, **metrics(fid, recall), "guidance": GUIDANCE, "guide_on_class": 0.97, "images_per_s": 8.5,
        "digest": f"{method}-{seed}".zfill(30)[::-1],
    }  # fmt: skip


def rows(seeds: int = 3) -> list[dict[str, Any]]:
    """FID off its mean by -1, 0, 1 and recall by as many hundredths, which is a standard deviation of 1 and of 0.01."""
    return [
        row(method, seed, fid + offset, recall + 0.01 * offset)
        for method, (fid, recall) in METHODS.items()
        for seed, offset in enumerate((0.0,) if seeds == 1 else (-1.0, 0.0, 1.0))
    ]


def sweep() -> list[dict[str, Any]]:
    found = [
        ("tau x gamma", {"tau": tau, "gamma": gamma}, 50 - 100 * gamma + 3 * tau, 0.6 + gamma)
        for tau in (0.5, 0.7, 1.0)
        for gamma in (0.02, 0.05)
    ]
    found.append(("windows", {"window": [300, 1000]}, 44.5, 0.7125))
    return [
        {"stage": stage, "name": f"{stage} {k}", "preset": "fashion-mnist-28", "seed": 100, "guidance": GUIDANCE,
         "values": values, **metrics(fid, recall)}
        for k, (stage, values, fid, recall) in enumerate(found)
    ]  # fmt: skip


def curve(*means: float) -> dict[str, list[float]]:
    return {"mean": [*means], "low": [0.5 * value for value in means], "high": [1.5 * value for value in means]}


def traces() -> dict[str, Any]:
    entropy = {"plain": curve(0.1, 0.2, 1.0, 2.2), "ect": curve(0.2, 0.3, 1.2, 2.25)}
    gradient = {
        "adm-g": curve(0.1, 0.1, 0.5, 0.3),
        "eds": curve(0.5, 0.5, 0.6, 0.4),
        "eds-ect": curve(0.4, 0.4, 0.5, 0.3),
    }
    chain = {"t": [0, 100, 600, 990], "entropy": entropy, "gradient": gradient}
    return {
        "images": 100, "sampler": "dpm-solver++, logsnr50, eta 1", "scale": 1.0, "classes": 10,
        "noised": {"t": [0, 100, 600, 990], "entropy": entropy},
        "chains": {"conditional": chain, "unconditional": chain},
    }  # fmt: skip


def results(final: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The whole file; final: its rows, three seeds of every method where they are not given."""
    return {
        "format": "rarefy-results-v1", "command": "python jobs/reproduce.py", "date": "2026-11-24",
        "machine": {"cpu": "two cores", "torch": "2.13.0"},
        "setting": {"images": 5000, "extractor": "efficientnet-lite0", "k": 3, "tail": 0.1, "judge_accuracy": 0.92},
        "floor": FLOOR, "final": rows() if final is None else final, "sweep": sweep(),
        "traces": traces(),
    }  # fmt: skip
