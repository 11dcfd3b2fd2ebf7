"""The audit of a small committed run, end to end, against what is known of its images."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import wasserstein_distance
from small_run import MANIFEST, quiet

from rarefy.audit.audit import AuditOptions, run_audit
from rarefy.audit.features.extractors import extract_outputs, load_extractor
from rarefy.audit.inputs.dataset import read_run
from rarefy.audit.inputs.reference import load_reference, match_counts, rows_within
from rarefy.audit.metrics.assembly import set_estimates, set_metrics
from rarefy.audit.metrics.kinds import metric_name
from rarefy.audit.metrics.neighbors import Labelled, build_manifold
from rarefy.audit.metrics.summary import histogram, wasserstein_1
from rarefy.audit.metrics.tail import find_tail
from rarefy.audit.rarity.table import read_part
from rarefy.audit.schema import METRICS_PATH, SAMPLES_PATH, read_result
from rarefy.errors import DataError, OutputError, RarefyError, ShardError
from rarefy.generate.score import score_images
from rarefy.manifest import Manifest, parse_manifest
from rarefy.models.adm import Classifier, UNet
from rarefy.models.folder import find_model
from rarefy.plan import shard_names
from rarefy.shards.store import Store
from rarefy.shards.writer import encode_png

CommitRun = Callable[[Store, str], Manifest]
Blob = Callable[[int, int], tuple[NDArray[np.uint8], int, float]]
CommitImages = Callable[[Store, str, Blob], Manifest]


def test_metrics_are_those_of_the_features(tmp_path: Path, real_folder: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST)
    told = list[tuple[str, int, int]]()
    result = run_audit(store, AuditOptions(reference=str(real_folder)), lambda *stage: told.append(stage))
    counts = [done for stage, done, _ in told if stage == "comparing"]
    assert counts == sorted(counts) and counts[-1] == {total for stage, _, total in told if stage == "comparing"}.pop()
    assert all(0 <= done <= total for _, done, total in told)
    assert json.loads(store.read_bytes(METRICS_PATH)) == result
    assert read_result(store).to_json() == result

    run = read_run(store, 10_000)
    reference = load_reference(run.manifest.preset, str(real_folder))
    assert reference is not None
    reference = reference.of_classes(run.manifest.counts)
    extractor = load_extractor()
    real = Labelled(build_manifold(extract_outputs(reference.real.images, extractor), 3), reference.real.labels)
    # The reference holds out ten images of class 0, the run has twelve: ten are measured, so that the counts are equal.
    run = run.keep(rows_within(run.measured.class_id, {0: 10, 1: 10, 4: 10}))
    generated = extract_outputs(run.images, extractor)
    of_baseline = match_counts(reference.held_out, {0: 10, 1: 8, 4: 4})
    held_out = extract_outputs(of_baseline.images, extractor)
    tail = find_tail("avgknn", real, None, reference.real.keys)
    expected, baseline = (
        set_estimates(Labelled(build_manifold(features, 3), labels), real, tail).values
        for features, labels in ((generated, run.measured.class_id), (held_out, of_baseline.labels))
    )
    for kind, value in expected.items():
        name = metric_name(kind, extractor.name)
        entry = result["metrics"][name]
        assert entry["value"] == pytest.approx(value, rel=1e-4, abs=1e-4), name
        assert entry["floor"] == pytest.approx(baseline[kind], rel=1e-4, abs=1e-4), name
        assert (entry["extractor"], entry["layer"]) == ("efficientnet-lite0", "head_pooled")
        assert (entry["generated_count"], entry["real_count"], entry["floor_count"]) == (22, 30, 22)
        assert entry["k"] == (None if name.startswith(("fid", "kid", "nearest", "lof")) else 3)
        for value_name in ("", "floor_"):
            low, high = entry[f"{value_name}interval"] or (-np.inf, np.inf)
            assert low <= high
    assert result["metrics"]["lof"]["sample_count"] == 22
    for kind, value in dataclasses.asdict(set_metrics(generated, real.manifold, tail.members)).items():
        assert value == pytest.approx(expected[kind]), kind
    assert len(result["tail"].pop("sha256")) == 64
    assert result["tail"] == {"rule": "avgknn", "share": 0.2, "count": 6}
    drawn = pq.read_table(tmp_path / "out" / "audit" / "bootstrap.parquet").to_pandas().groupby("metric")["value"]
    assert set(drawn.count()) == {200}
    for name, entry in result["metrics"].items():
        if entry["interval"]:
            low, high = entry["interval"]
            assert low <= entry["value"] <= high, name
            assert drawn.get_group(name).mean() == pytest.approx(entry["value"], abs=0.2 * (high - low)), name
    check_rarity_of_every_image(store, run.manifest)
    check_rarity_of_classes(store)


def check_rarity_of_every_image(store: Store, manifest: Manifest) -> None:
    """OUT/rarity has all 24 images, and of the 22 measured ones what samples.parquet has."""
    rows = [row for name in shard_names(manifest) for row in read_part(store, name).table.to_pylist()]
    assert len(rows) == manifest.total
    every = {row["key"]: row for row in rows}
    samples = pq.read_table(io.BytesIO(store.read_bytes(SAMPLES_PATH))).to_pylist()
    assert len(samples) == 22
    names = {"rarity": "rarity", "knn_distance": "avgknn", "nearest_distance": "nearest_distance"}
    for sample in samples:
        own = every[sample["key"]]
        assert {name: sample[name] for name in names} == {name: own[other] for name, other in names.items()}
        assert (sample["real_balls"] > 0) == own["inside"] and sample["nearest_real"] == own["nearest_real"]


def check_rarity_of_classes(store: Store) -> None:
    """The class table says of each class what samples.parquet and the whole set's metrics say."""
    result = read_result(store)
    samples = pq.read_table(io.BytesIO(store.read_bytes(SAMPLES_PATH))).to_pandas()
    floor = 0.0
    for row in result.per_class:
        own = samples[samples["class_id"] == row.class_id]
        inside = own[own["real_balls"] > 0]
        assert row.rarity == (pytest.approx(inside["rarity"].mean()) if len(inside) else None)
        assert row.precision_floor is not None
        floor += row.precision_floor * len(own) / len(samples)
    assert result.metrics["precision"].floor == pytest.approx(floor)


def test_gates_copies_map_and_classes(
    tmp_path: Path, real_folder: Path, blob: Blob, commit_images: CommitImages
) -> None:
    shown = load_reference(find_model("fashion-mnist-28"), str(real_folder))
    assert shown is not None
    place = np.flatnonzero(shown.real.labels == 1)[3]
    copied, copied_key = shown.real.images[place], shown.real.keys[place]
    assert np.array_equal(np.asarray(Image.open(real_folder / copied_key)), copied[0])

    def source(class_id: int, ordinal: int) -> tuple[NDArray[np.uint8], int, float]:
        """Trousers 2 and 3 are one image, trouser 5 is a real one, coat 2 one that was held out."""
        if (class_id, ordinal) == (4, 2):
            return kept_back, 4, 0.9
        image, predicted, confidence = blob(class_id, 2 if (class_id, ordinal) == (1, 3) else ordinal)
        return (copied, 1, 0.9) if (class_id, ordinal) == (1, 5) else (image, predicted, confidence)

    place = np.flatnonzero(shown.held_out.labels == 4)[-1]
    kept_back, kept_back_key = shown.held_out.images[place], shown.held_out.keys[place]
    store = Store(str(tmp_path / "out"))
    gates = "[gates]\nprecision = { min = 0.0 }\ncopies = { max = 0.0 }\nrecall.per_class = { min = 0.0 }\n"
    accept = "[accept]\nmax_candidates = 2\n"
    commit_images(store, MANIFEST + accept + gates, source)
    result = run_audit(store, AuditOptions(reference=str(real_folder)), quiet)
    told = {(check["metric"], check["scope"]): check["passed"] for check in result["gates"] if not check["default"]}
    assert told == {
        ("precision", "all"): True,
        ("copies", "all"): False,
        ("recall", "t-shirt/top"): True,
        ("recall", "trouser"): True,
        ("recall", "coat"): True,
    }
    assert (result["verdict"], result["partial"], result["problems"]) == ("failed", False, [])

    keys = pq.read_table(tmp_path / "out" / "audit" / "samples.parquet").to_pylist()
    trousers = [row for row in keys if row["class_id"] == 1]
    worst = {(row["kind"], row["key"]): row for row in result["copies"] if row["ratio"] < 1e-3}
    exact = next(row for (kind, _), row in worst.items() if kind == "exact")
    assert {exact["key"], exact["other"]} == {trousers[2]["key"], trousers[3]["key"]}
    of_real = worst["reference", trousers[5]["key"]]
    assert of_real["other"] == copied_key
    assert trousers[5]["nearest_real"] == copied_key
    assert trousers[5]["copy_ratio"] == of_real["ratio"]
    coats = [row for row in keys if row["class_id"] == 4]
    assert worst["held-out", coats[2]["key"]]["other"] == kept_back_key
    assert result["metrics"]["copies"]["value"] >= 2 / 22
    pictures = pq.read_table(tmp_path / "out" / "audit" / "copies.parquet").to_pylist()
    assert len(pictures) == len(result["copies"])
    assert next(row for row in pictures if row["key"] == of_real["key"])["png"] == encode_png(copied)
    assert all(row["png"] == row["other_png"] for row in pictures if row["kind"] == "exact")
    assert result["metrics"]["duplicates"]["value"] >= 2 / 22

    assert [len(result["map"][side]) for side in ("generated", "real")] == [22, 30]
    assert {point[3] for point in result["map"]["generated"]} == {row["key"] for row in keys}
    for row in result["per_class"]:
        assert row["acceptance_rate"] == 1
        assert 0 <= row["coverage"] <= 1
        assert 0 <= row["coverage_floor"] <= 1
        own = [each for each in keys if each["class_id"] == row["class_id"]]
        inside = [each["rarity"] for each in own if each["real_balls"] > 0]
        assert row["rarity"] == (pytest.approx(np.mean(inside)) if inside else None)
        assert row["confidence_w1"] >= abs(row["confidence"] - row["reference_confidence"]) - 1e-9
    for row in pq.read_table(tmp_path / "out" / "audit" / "strips.parquet").to_pylist():
        assert (row["nearest_key"] is None) == (row["strip"] == "real")
        assert (row["nearest_png"] is None) == (row["strip"] not in ("rarest", "outside"))


def test_counts_classes_and_samples(tmp_path: Path, real_folder: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST)
    result = run_audit(store, AuditOptions(reference=str(real_folder)), quiet)
    assert [(row["class_id"], row["class_name"], row["planned"], row["count"]) for row in result["per_class"]] == [
        (0, "t-shirt/top", 12, 12),
        (1, "trouser", 8, 8),
        (4, "coat", 4, 4),
    ]
    assert result["metrics"]["on_class_guiding"]["value"] == pytest.approx(0.75)
    assert result["per_class"][1]["confidence"] == pytest.approx(0.2 + 0.7 * 0.75)
    assert sum(result["histograms"]["confidence"]["generated"]) == pytest.approx(1)
    assert result["provenance"]["manifest_digest"] == parse_manifest(MANIFEST, "x").digest
    assert result["provenance"]["sealed"] is False
    table = pq.read_table(tmp_path / "out" / "audit" / "samples.parquet")
    assert table.num_rows == 22
    rows = table.to_pylist()
    assert all((row["rarity"] is None) == (row["real_balls"] == 0) for row in rows)
    assert all(0 <= row["nearest_distance"] <= row["knn_distance"] for row in rows)
    inside = np.mean([row["real_balls"] > 0 for row in rows])
    assert result["metrics"]["precision"]["value"] == pytest.approx(float(inside))
    by_key = {row["key"]: row for row in rows}
    shown = pq.read_table(tmp_path / "out" / "audit" / "strips.parquet").to_pylist()
    for row in (row for row in shown if row["strip"] != "real"):
        own = [other for other in rows if other["class_id"] == row["class_id"]]
        inside = [other["rarity"] for other in own if other["real_balls"]]
        outside = [other["nearest_distance"] for other in own if not other["real_balls"]]
        of_row = by_key[row["key"]]
        if row["strip"] == "rarest":
            assert row["rarity"] == sorted(inside, reverse=True)[row["place"]]
        elif row["strip"] == "outside":
            assert row["rarity"] is None
            assert row["nearest_distance"] == sorted(outside, reverse=True)[row["place"]]
        elif row["strip"] == "off class":
            assert row["predicted_id"] != row["class_id"] == of_row["class_id"]
    counts = {strip: sum(row["strip"] == strip for row in shown) for strip in ("sample", "off class", "real")}
    off = sum(row["predicted_id"] != row["class_id"] for row in rows)
    assert counts["sample"] == 3 * 8 - sum(max(0, 8 - count) for count in (12, 8, 4))
    assert counts["off class"] == off
    assert counts["real"] > 0


def test_reference_is_scored_by_the_runs_own_classifier(
    tmp_path: Path, real_folder: Path, commit_run: CommitRun
) -> None:
    torch.manual_seed(0)
    preset = find_model("fashion-mnist-28")
    classifier = Classifier(preset.classifier).eval()
    for parameter in classifier.parameters():  # the output layer starts at zero, which would make every score equal
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(UNet(preset.unet).state_dict(), tmp_path / "unet.pt")
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    paths = f'checkpoint = "{tmp_path}/unet.pt"\nclassifier = "{tmp_path}/classifier.pt"\npreset'
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST.replace("preset", paths))
    result = run_audit(store, AuditOptions(reference=str(real_folder)), quiet)

    reference = load_reference(preset, str(real_folder))
    assert reference is not None
    reference = reference.of_classes((0, 1, 4))  # those of the run
    images, labels = (torch.from_numpy(array) for array in (reference.real.images, reference.real.labels))
    scores = score_images(classifier, images, labels)
    floor = (scores.predicted_id == labels).double().mean().item()
    assert float(scores.confidence.std()) > 0
    assert result["metrics"]["on_class_guiding"]["floor"] == pytest.approx(floor)
    for name in ("confidence", "entropy"):
        mean = getattr(scores, name).double().mean().item()
        assert result["histograms"][name]["reference_mean"] == pytest.approx(mean, abs=1e-4)
        row = result["per_class"][2]
        expected = getattr(scores, name)[labels == 4].double().mean().item()
        assert row[f"reference_{name}"] == pytest.approx(expected, abs=1e-4)


def test_without_a_reference_the_run_is_still_described(tmp_path: Path, commit_run: CommitRun) -> None:
    text = MANIFEST.replace("fashion-mnist-28", "adm-imagenet-64").replace(
        "preset", 'checkpoint = "none.pt"\nclassifier = "none.pt"\npreset'
    )
    store = Store(str(tmp_path / "out"))
    commit_run(store, text)
    result = run_audit(store, AuditOptions(), quiet)
    assert set(result["metrics"]) == {"on_class_rate"}
    assert result["metrics"]["on_class_rate"] | {"value": 0.75, "floor": None} == result["metrics"]["on_class_rate"]
    assert result["provenance"]["reference"] is None
    assert (result["tail"], result["map"], result["copies"], result["verdict"]) == (None, None, [], "no gates")
    assert result["histograms"]["confidence"]["reference"] is None
    assert list(result["per_class"][0])[-3:] == ["acceptance_rate", "confidence_w1", "entropy_w1"]
    assert list(result["metrics"]["on_class_rate"])[-1] == "floor_count"
    table = pq.read_table(tmp_path / "out" / "audit" / "samples.parquet")
    assert table["rarity"].null_count == 24


def test_a_second_audit_takes_the_reference_from_the_cache(
    tmp_path: Path, real_folder: Path, commit_run: CommitRun
) -> None:
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST)
    stages: list[set[str]] = []
    results = []
    for _ in range(2):
        seen: set[str] = set()
        options = AuditOptions(reference=str(real_folder))
        results.append(run_audit(store, options, lambda stage, done, total, seen=seen: seen.add(stage)))
        stages.append(seen)
    assert {"features of the reference", "features of the held-out images"} <= stages[0]
    assert not {"features of the reference", "features of the held-out images"} & stages[1]
    assert results[0]["metrics"] == results[1]["metrics"]


def test_limit_measures_whole_shards_spread_over_the_run(tmp_path: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST.replace("shard_size = 9", "shard_size = 4"))
    run = read_run(store, 10)
    assert (len(run.rows), len(run.measured), len(run.images)) == (24, 10, 10)
    assert [key[:6] for key in run.measured.key] == ["000000"] * 4 + ["000002"] * 4 + ["000005"] * 2


def test_nothing_to_audit(tmp_path: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    with pytest.raises(OutputError, match=r"manifest\.toml"):
        run_audit(store, AuditOptions(), quiet)
    commit_run(store, MANIFEST)
    for name in store.list("state"):
        if name != "run.json":
            store.delete(f"state/{name}")
    with pytest.raises(ShardError, match="no committed shard"):
        run_audit(store, AuditOptions(), quiet)


def test_a_reference_that_cannot_be_used(tmp_path: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST)
    with pytest.raises(DataError, match="data: "):
        run_audit(store, AuditOptions(reference=str(tmp_path / "absent")), quiet)
    with pytest.raises(RarefyError, match="limit: 0 is not at least 1"):
        run_audit(store, AuditOptions(limit=0), quiet)
    with pytest.raises(RarefyError, match="device"):
        run_audit(store, AuditOptions(device="nowhere"), quiet)
    assert store.list("audit") == []


def test_halves_share_no_image_and_hold_every_class(real_folder: Path) -> None:
    found = load_reference(find_model("fashion-mnist-28"), str(real_folder))
    assert found is not None
    for half in (found.real, found.held_out):
        assert np.bincount(half.labels).tolist() == [10] * 10
    pixels = [{image.tobytes() for image in half.images} for half in (found.real, found.held_out)]
    assert pixels[0].isdisjoint(pixels[1])


def test_histogram_by_hand() -> None:
    table = histogram("nats", np.array([0.0, 0.5, 1.0, np.nan]), np.array([0.02]), 1.0)
    assert len(table.edges) == 26
    assert [i for i, share in enumerate(table.generated or []) if share] == [0, 12, 24]
    assert table.generated_mean == pytest.approx(0.5)
    assert table.reference == [1.0] + [0.0] * 24
    empty = histogram("x", np.array([np.nan]), None)
    assert (empty.generated, empty.generated_mean, empty.reference, empty.reference_mean) == (None,) * 4


def test_wasserstein_agrees_with_scipy_and_by_hand() -> None:
    assert wasserstein_1(np.array([0.0, 1.0]), np.array([3.0])) == pytest.approx(2.5)
    assert wasserstein_1(np.array([]), np.array([3.0])) is None
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=30), generator.normal(1, 2, size=41)
    assert wasserstein_1(first, second) == pytest.approx(wasserstein_distance(first, second))
