"""Makes the selected set: rarity of the pool, choice, shards, seal. Finished parts are kept, as in every stage."""

from __future__ import annotations

import functools
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace

from rarefy.audit.features.extractors import kept_outputs, load_extractor
from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.inputs.model import find_run_model
from rarefy.audit.inputs.reference import load_reference
from rarefy.audit.metrics.assembly import DEFAULT_K
from rarefy.audit.metrics.neighbors import Manifold, build_manifold
from rarefy.audit.rarity.compute import Means, Progress, RealSide, write_rarity
from rarefy.errors import ExhaustedError, OutputError, ShardError, bad, first_names
from rarefy.images import LabelledImages
from rarefy.manifest import Manifest
from rarefy.plan import RECORD, data_store, shard_names
from rarefy.select.choice import Choice, choose, class_names
from rarefy.select.spec import SelectedSpecs, selected_spec
from rarefy.selection import KEEP
from rarefy.shards.card import CardInfo
from rarefy.shards.index import SUCCESS, is_sealed
from rarefy.shards.listing import iter_committed
from rarefy.shards.marker import read_committed
from rarefy.shards.metadata import read_records, tar_path
from rarefy.shards.reader import iter_tar
from rarefy.shards.seal import Sealed, seal_set
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_samples

REPAIRS = 2  # damage that comes back is not the shards'
STAGE = "selecting"


@dataclass(frozen=True)
class SelectOptions:
    """Where to compute rarity; none of it changes the choice but by rounding. model: where the model's folder is now.

    keep_exhausted: fill up classes that have too few acceptable images, also if the manifest says ``error``.
    """

    device: str = "cpu"
    ray_address: str | None = None
    model: str | None = None
    keep_exhausted: bool = False


@dataclass(frozen=True)
class Selected:
    """The result. pool: sampled images; filled: kept images that are not acceptable to [select], by class name."""

    sealed: Sealed
    pool: int
    filled: dict[str, int]

    def text(self) -> str:
        """The result in one line."""
        line = f"selected {self.sealed.samples:,} of {self.pool:,} images"
        if self.filled:
            names = first_names([f"{name} {count:,}" for name, count in self.filled.items()])
            line += f", {sum(self.filled.values()):,} of them not acceptable to [select]: {names}"
        return line


def select_run(store: Store, card: CardInfo, options: SelectOptions, progress: Progress) -> Selected:
    """Choose the data set of a sealed run with [select], write it to OUT/selected and seal it there.

    What is there already and follows from the pool stays; everything else is replaced. Raises OutputError for a run
    that is not sealed, ExhaustedError for classes with too few acceptable images, and ShardError.
    """
    manifest = read_manifest(store)
    assert manifest.select is not None
    if not is_sealed(store):
        raise OutputError(bad("out", store.root, "sealed; run seal first"))
    store.check_writable()
    if manifest.select.needs_real_images:
        measure_pool(store, manifest, options, progress)
    choice = choose(store, manifest)
    allowed = options.keep_exhausted or manifest.select.exhausted == KEEP or _is_made(store, manifest, choice)
    if choice.lacking and not allowed:
        raise ExhaustedError(_exhausted(manifest, choice))
    filled = {manifest.preset.class_name(each.class_id): each.filled for each in choice.lacking}
    if choice.filled:
        not_such = f"{choice.filled:,} of them are not such images: they fill up classes that have too few"
        card = replace(card, selection=f"{card.selection}; {not_such}")
    return Selected(_write(store, manifest, choice, card, progress), sum(manifest.pool.values()), filled)


def _is_made(store: Store, manifest: Manifest, choice: Choice) -> bool:
    """Whether the data set of this choice is sealed already."""
    selected = data_store(store, manifest)
    return is_sealed(selected) and selected.read_or_none(RECORD) == choice.record(manifest)


def measure_pool(store: Store, manifest: Manifest, options: SelectOptions, progress: Progress) -> None:
    """Measure the rarity of the pool against the model's own real images of the run's classes.

    Raises ShardError if a shard is damaged.
    """
    model = find_run_model(manifest.model, options.model, needed=True)
    reference = load_reference(model.folder, None)
    if reference is None:
        raise OutputError(bad("out", store.root, "a run of a model folder with real images, which [select] needs"))
    means = Means(load_extractor(), DEFAULT_K, options.device, options.ray_address)
    markers = iter_committed(store, shard_names(manifest), manifest.digest)
    real = real_side(reference.of_classes(manifest.counts).real, means)
    problems = write_rarity(store, markers, sum(manifest.pool.values()), real, means, progress)
    if problems:
        names = first_names([f"{problem.where} ({problem.what})" for problem in problems])
        raise ShardError(f"rarity: {len(problems)} shards cannot be read: {names}; run seal --repair, then generate")


def real_side(images: LabelledImages, means: Means) -> RealSide:
    """The real images, with their neighbours searched when they are needed."""

    @functools.cache
    def manifold() -> Manifold:
        outputs = kept_outputs(images.images, means.extractor, means.device)
        return build_manifold(outputs[:, : means.extractor.dim], means.k, means.device)

    return RealSide(images, images.sha256(), manifold)


def _write(store: Store, manifest: Manifest, choice: Choice, card: CardInfo, progress: Progress) -> Sealed:
    """Commit what is missing and seal. Shards that do not follow from the choice are withdrawn and made again."""
    selected, specs = data_store(store, manifest), SelectedSpecs(store, manifest, choice)
    spec = selected_spec(manifest, specs)
    record = choice.record(manifest)
    if selected.read_or_none(RECORD) != record:
        selected.delete(SUCCESS)  # it is of another choice
        selected.write_bytes(RECORD, record)
    for _ in range(REPAIRS):
        _commit(store, manifest, specs, progress)
        with suppress(ShardError):
            return seal_set(selected, spec, card, repair=True)
    _commit(store, manifest, specs, progress)
    return seal_set(selected, spec, card, repair=True)


def _commit(store: Store, manifest: Manifest, specs: SelectedSpecs, progress: Progress) -> None:
    """Write the selected shards that are not committed yet."""
    selected, attempt = data_store(store, manifest), uuid.uuid4().hex
    for number in range(len(specs)):
        progress(STAGE, number, len(specs))
        name = specs.pool_name(number)
        if read_committed(selected, name, manifest.digest) is None:
            start = time.monotonic()
            samples = _samples(store, specs, number)
            header = ShardHeader(name, number, manifest.text, manifest.digest, attempt)
            commit_samples(selected, header, samples, time.monotonic() - start)
    progress(STAGE, len(specs), len(specs))


def _samples(store: Store, specs: SelectedSpecs, number: int) -> list[Sample]:
    """The samples of a selected shard, taken from the pool byte by byte."""
    spec = specs[number]
    found: dict[str, Sample] = {}
    for pool_shard in sorted({row.shard for row in spec.rows if row.shard is not None}):
        name, wanted = specs.pool_name(pool_shard), {row.key for row in spec.rows if row.shard == pool_shard}
        records = {record.key: record for record in read_records(store, name) if record.key in wanted}
        with store.local_copy(tar_path(name)) as path:
            found |= {key: Sample(records[key], fields["png"]) for key, fields in iter_tar(path, name) if key in wanted}
    absent = [row.key for row in spec.rows if row.key not in found]
    if absent:
        raise ShardError(f"{tar_path(specs.pool_name(int(absent[0][:6])))}: it has no sample {absent[0]}")
    return [found[row.key] for row in spec.rows]


def _exhausted(manifest: Manifest, choice: Choice) -> str:
    """The error message: the classes with too few acceptable images, and what to do."""
    assert manifest.select is not None
    names = first_names(list(class_names(manifest, choice.lacking)))
    return (
        f"select: too few images are acceptable ({manifest.select.text()}) in {len(choice.lacking)} of "
        f"{len(choice.per_class)} classes: {names}; repeat the command with --keep-exhausted to fill them up with the "
        "best of their other images, or raise select.from in a new run"
    )
