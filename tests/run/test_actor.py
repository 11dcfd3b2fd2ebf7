"""One actor without Ray: bytes, filter, counts."""

from __future__ import annotations

import hashlib
import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rarefy.diffusion.sampler import sample, to_uint8
from rarefy.errors import CheckpointError, DeviceError, ExhaustedError, ManifestError, NonFiniteError
from rarefy.execution import load_prepared
from rarefy.generate.actor import ShardGenerator, Snapshot
from rarefy.generate.score import CandidateLimit
from rarefy.manifest import Manifest, load_manifest
from rarefy.models.folder import find_model
from rarefy.models.load import Models
from rarefy.plan import sample_seed
from rarefy.scratch import LOCK, PREFIX
from rarefy.shards.metadata import SampleRecord, read_records
from rarefy.shards.reader import read_samples
from rarefy.shards.store import Store

CLASSIFIER_GUIDANCE = '[[guidance]]\nterm = "classifier"\nscale = 1.0'


def shards(out: Path) -> list[str]:
    return sorted(path.stem for path in (out / "shards").glob("*.tar"))


def rows(out: Path) -> list[SampleRecord]:
    return [record for name in shards(out) for record in read_records(Store(str(out)), name)]


def models_of(manifest: Manifest) -> Models:
    spec, cpu = manifest.model, torch.device("cpu")
    return load_prepared(manifest.preset, spec.checkpoint, spec.classifier, (None, None), cpu, manifest.precision)


def test_bytes_do_not_depend_on_threads_or_on_two_shards_at_once(runs: Any, tmp_path: Path) -> None:
    path = runs.manifest(CLASSIFIER_GUIDANCE, steps=4)
    alone = runs.undisturbed(path, tmp_path / "alone")
    generator = ShardGenerator(load_manifest(path), str(tmp_path / "together"), "cpu", 3)
    generator.load()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda k: generator.generate(k, f"attempt-{k}"), reversed(range(10))))
    assert runs.tars(tmp_path / "together") == alone


def test_each_image_can_be_generated_again_from_its_row(runs: Any, tmp_path: Path) -> None:
    path = runs.manifest(CLASSIFIER_GUIDANCE, steps=4)
    runs.undisturbed(path, tmp_path / "out")
    manifest = load_manifest(path)
    models = models_of(manifest)
    chain = manifest.settings.chain(manifest.preset, manifest.terms)
    records = rows(tmp_path / "out")
    samples = [s for name in shards(tmp_path / "out") for s in read_samples(Store(str(tmp_path / "out")), name)]
    for record, read in zip(records[::4], samples[::4], strict=True):
        for state in sample(models, torch.tensor([record.class_id]), [record.seed], chain):
            x = state.x
        # Another batch size may round differently, by one grey level.
        assert np.abs(to_uint8(x)[0].numpy().astype(int) - read.image.astype(int)).max() <= 1


def test_with_quantiles_an_image_depends_on_its_rank_in_its_class(runs: Any, tmp_path: Path) -> None:
    term = '[[guidance]]\nterm = "low-confidence"\nscale = 8.0\ntau_quantiles = [0.0, 0.0, 1.0]'
    path = runs.manifest(term, classes='counts = { "bag" = 4 }', steps=4)
    runs.undisturbed(path, tmp_path / "out")
    manifest = load_manifest(path)
    models, chain = models_of(manifest), manifest.settings.chain(manifest.preset, manifest.terms)
    store = Store(str(tmp_path / "out"))
    images = [read.image.astype(int) for k in range(2) for read in read_samples(store, f"rare-{k:06d}")]
    y, seeds = torch.full((4,), 8), [sample_seed(0, 8, j, 0) for j in range(4)]
    expected = []
    for ranks in ([0.0, 0.5, 0.25, 0.75], [0.0, 0.0, 0.0, 0.0]):
        *_, last = sample(models, y, seeds, chain, torch.tensor(ranks))
        expected.append(to_uint8(last.x).numpy().astype(int))
    differences = [[np.abs(a - b).max() for a, b in zip(images, other, strict=True)] for other in expected]
    assert max(differences[0]) <= 1  # another batch size may round differently, by one grey level
    assert differences[1][3] > 5, "the rank of the last image has no effect"


def test_rows_describe_the_images(runs: Any, tmp_path: Path) -> None:
    path = runs.manifest(CLASSIFIER_GUIDANCE, steps=4)
    runs.undisturbed(path, tmp_path / "out")
    records = rows(tmp_path / "out")
    ordinals = sorted((record.class_id, record.seed) for record in records)
    assert ordinals == sorted((c, sample_seed(0, c, j, 0)) for c in range(10) for j in range(2))
    assert [record.key for record in records] == [f"{k:06d}{i:05d}" for k in range(10) for i in range(2)]
    one = records[7]
    digest = load_manifest(path).digest
    assert (one.candidate, one.guidance, one.steps, one.accepted, one.manifest_digest) == (
        0, "classifier", 4, True, digest,
    )  # fmt: skip
    files = [find_model("fashion-mnist-28").file(role).read_bytes() for role in ("unet", "classifier")]
    hashes = [hashlib.sha256(data).hexdigest() for data in files]
    assert [one.checkpoint_sha256, one.classifier_sha256] == hashes


def test_a_rejected_draw_is_replaced_by_the_next_candidate(runs: Any, tmp_path: Path) -> None:
    classes = 'counts = { "pullover" = 3, "coat" = 3, "shirt" = 3 }'  # often confused: few draws are needed
    runs.undisturbed(runs.manifest(classes=classes, steps=4), tmp_path / "all")
    free = rows(tmp_path / "all")
    bound = float(np.median([record.confidence for record in free]))
    accept = f"[accept]\nconfidence = {{ max = {bound!r} }}\nmax_candidates = 200"
    path = runs.manifest(accept, classes=classes, steps=4)
    runs.undisturbed(path, tmp_path / "filtered")
    kept = rows(tmp_path / "filtered")
    assert [record.class_id for record in kept] == [record.class_id for record in free]
    assert all(record.accepted and record.confidence <= bound for record in kept)
    for before, after in zip(free, kept, strict=True):
        passed = before.confidence <= bound
        assert (after.candidate == 0) == passed
        assert (after.image_sha256 == before.image_sha256) == passed
    assert any(record.candidate > 0 for record in kept)


def test_exhausted_slots_are_an_error_that_names_class_rate_and_the_way_on(runs: Any, tmp_path: Path) -> None:
    path = runs.manifest(
        "[accept]\nconfidence = { min = 1.0 }\nmax_candidates = 2", classes='counts = { "bag" = 3 }', steps=4
    )
    message = (
        r"2 slots of class 8 \(bag\).*2 candidates: 0 of 4 draws passed \(0\.0%\); "
        "repeat the command with --max-candidates 8, or with --keep-exhausted"
    )
    with pytest.raises(ExhaustedError, match=message):
        runs.undisturbed(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_candidates_fill_exhausted_slots_and_change_no_other_image(runs: Any, tmp_path: Path) -> None:
    def generate(accept: str, name: str, limit: CandidateLimit) -> list[SampleRecord]:
        path = runs.manifest(f"[accept]\n{accept}", classes='counts = { "shirt" = 6 }', steps=2)
        generator = ShardGenerator(load_manifest(path), str(tmp_path / name), "cpu", 1, candidates=limit)
        generator.load()
        for shard in range(3):
            generator.generate(shard, "only")
        return rows(tmp_path / name)

    free = generate("confidence = { max = 1.0 }", "free", CandidateLimit())
    bound = f"confidence = {{ max = {float(np.median([r.confidence for r in free if r.confidence]))!r} }}"
    patient = generate(f"{bound}\nmax_candidates = 500", "patient", CandidateLimit())
    allowed = generate(f"{bound}\nmax_candidates = 1", "allowed", CandidateLimit(500))
    assert [(r.candidate, r.image_sha256) for r in allowed] == [(r.candidate, r.image_sha256) for r in patient]
    assert any(r.candidate > 0 for r in allowed)
    kept = generate(f"{bound}\nmax_candidates = 1", "kept", CandidateLimit(2, keep=True))
    assert {(r.accepted, r.candidate) for r in kept} >= {(True, 0), (False, 1)}
    for own, other in zip(kept, patient, strict=True):
        assert own.accepted == (other.candidate < 2)
        assert not own.accepted or own.image_sha256 == other.image_sha256


@pytest.mark.parametrize(
    ("accept", "limit", "message"),
    [
        ("", CandidateLimit(9), r"--max-candidates: 9 .*has no \[accept\]"),
        ("", CandidateLimit(keep=True), r"--keep-exhausted: True .*has no \[accept\]"),
        ("[accept]\nmax_candidates = 9", CandidateLimit(9), "--max-candidates: 9 is not more than accept.max_cand"),
        ("[accept]\nmax_candidates = 9", CandidateLimit(2**30), "at most 1000000"),
        ('[accept]\nexhausted = "keep"', CandidateLimit(99), "--max-candidates: 99 .*accept.exhausted = 'keep'"),
    ],
)
def test_a_limit_without_effect_is_refused(
    accept: str, limit: CandidateLimit, message: str, runs: Any, tmp_path: Path
) -> None:
    manifest = load_manifest(runs.manifest(accept))
    with pytest.raises(ManifestError, match=message):
        ShardGenerator(manifest, str(tmp_path / "out"), "cpu", 1, candidates=limit).load()


def test_exhausted_slots_are_kept_and_flagged(runs: Any, tmp_path: Path) -> None:
    path = runs.manifest('[accept]\nconfidence = { min = 1.0 }\nmax_candidates = 2\nexhausted = "keep"', steps=4)
    runs.undisturbed(path, tmp_path / "out")
    assert {(record.accepted, record.candidate) for record in rows(tmp_path / "out")} == {(False, 1)}


def test_progress_counts_every_draw_and_ends_with_nothing_in_flight(runs: Any, tmp_path: Path) -> None:
    generator = ShardGenerator(load_manifest(runs.manifest(steps=4)), str(tmp_path / "out"), "cpu", 1)
    assert generator.progress() == Snapshot()
    generator.load()
    marker = generator.generate(0, "first")
    snapshot, records = generator.progress(), read_records(Store(str(tmp_path / "out")), marker.name)
    assert (snapshot.in_flight, snapshot.scored) == ({}, 2)
    assert snapshot.advances == 1 + 4 + 1 + 2 + 1, "start, steps, scores, images and commit"
    assert snapshot.confidence_sum == pytest.approx(sum(record.confidence for record in records), rel=1e-5)
    assert snapshot.entropy_sum == pytest.approx(sum(record.entropy for record in records), rel=1e-5)
    assert marker.attempt == "first"
    assert marker.seconds > 0


def test_an_image_that_is_not_finite_is_never_written(runs: Any, tmp_path: Path) -> None:
    """An infinite eps alone would be clipped to a black image."""
    generator = ShardGenerator(load_manifest(runs.manifest(steps=4)), str(tmp_path / "out"), "cpu", 1)
    generator.load()
    bias = dict(generator._models.unet.named_parameters())["out.2.bias"]
    bias.data[0] = math.inf
    seed = sample_seed(0, 0, 0, 0)
    with pytest.raises(NonFiniteError, match=rf"class 0 with seed {seed} .* from step 1 of 4 on"):
        generator.generate(0, "first")
    assert not (tmp_path / "out").exists()
    bias.data[0] = 0.0
    assert generator.generate(0, "second").attempt == "second"


def test_scores_that_are_not_finite_are_an_error_and_not_a_rejected_draw(runs: Any, tmp_path: Path) -> None:
    path = runs.manifest("[accept]\nconfidence = { min = 0.5 }\nmax_candidates = 2", steps=4)
    generator = ShardGenerator(load_manifest(path), str(tmp_path / "out"), "cpu", 1)
    generator.load()
    assert generator._models.classifier is not None
    next(generator._models.classifier.parameters()).data[0] = math.nan
    seed = sample_seed(0, 0, 0, 0)
    with pytest.raises(NonFiniteError, match=rf"class 0 with seed {seed} has scores that are not finite"):
        generator.generate(0, "first")
    assert not (tmp_path / "out").exists()


def test_a_shard_that_another_attempt_committed_is_not_sampled(runs: Any, tmp_path: Path) -> None:
    generator = ShardGenerator(load_manifest(runs.manifest(steps=4)), str(tmp_path / "out"), "cpu", 1)
    generator.load()
    first = generator.generate(3, "first")
    before = generator.progress()
    assert generator.generate(3, "second") == first
    assert generator.progress() == before
    marker = tmp_path / "out" / "state" / f"{first.name}.json"
    marker.write_text(marker.read_text()[:-30])
    assert generator.generate(3, "third").attempt == "third", "a damaged marker is no commit"


def test_loading_removes_what_killed_actors_have_left(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{PREFIX}left"
    left.mkdir()
    (left / LOCK).touch()
    ShardGenerator(load_manifest(runs.manifest()), str(tmp_path / "out"), "cpu", 1).load()
    assert not left.exists()


def test_a_wrong_hash_is_refused_before_anything_is_written(runs: Any, tmp_path: Path) -> None:
    path = runs.manifest()
    path.write_text(path.read_text().replace("[sampler]", f'checkpoint_sha256 = "{"0" * 64}"\n[sampler]'))
    with pytest.raises(CheckpointError, match="sha256"):
        runs.undisturbed(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_networks_that_cannot_be_compiled_here_are_refused_while_loading(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    generator = ShardGenerator(load_manifest(runs.manifest()), str(tmp_path / "out"), "cpu", 1, "full")
    with pytest.raises(DeviceError, match="compile: 'full'"):
        generator.load()
