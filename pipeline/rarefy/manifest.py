"""The manifest: a TOML file that describes a run completely, read into typed dataclasses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rarefy.diffusion.settings import RESPACINGS, SamplerSettings
from rarefy.digest import digest_of, opaque
from rarefy.errors import ManifestError, bad, near_name, near_path
from rarefy.fields import (
    Table,
    check_integer,
    get_choice,
    get_flag,
    get_integer,
    get_match,
    get_number,
    get_table,
    get_text,
    known_keys,
    parse_toml,
)
from rarefy.fill import COUNTED_BY, Fill, Filled, count_real, missing, resolve_fill
from rarefy.gates import Gate, check_measurable, parse_gates
from rarefy.guidance.base import Term
from rarefy.guidance.opaque import OpaqueTerm, parse_unread
from rarefy.guidance.registry import parse_term
from rarefy.models.folder import CONFIG, ModelFolder, allow_kinds
from rarefy.models.run_model import RunModel, read_run_model, write_run_model
from rarefy.models.source import ModelSpec, read_model_table
from rarefy.selection import Select, parse_select
from rarefy.shards.claim import MANIFEST_FILE, MODEL_FILE, RUN_FILE
from rarefy.shipped import find_manifest, shipped_hint

MAX_SHARD_SIZE = 100_000  # a key has five digits for the sample's index in its shard
MAX_SHARDS = 1_000_000  # and six for the shard
DEFAULT_METHOD = "dpm-solver++"  # with 50 steps and eta = 1 it matches 250 ancestral steps (docs/METHODS.md)
_NAME = "lower-case letters, digits and hyphens"


@dataclass(frozen=True)
class Bounds:
    """A closed interval for a score."""

    min: float = -math.inf
    max: float = math.inf

    def hold(self, value: float) -> bool:
        return self.min <= value <= self.max


@dataclass(frozen=True)
class Accept:
    """The filter for scored images. confidence: p(y) at t = 0; entropy: in nats; exhausted: "error" or "keep"."""

    confidence: Bounds = Bounds()
    entropy: Bounds = Bounds()
    on_class: bool = False
    max_candidates: int = 8
    exhausted: str = "error"


@dataclass(frozen=True)
class Manifest:
    """A validated manifest.

    counts: images of the data set per class id, in ascending order, without zero counts; select: how they are chosen
    from a larger pool, None if every sampled image is kept; digest: sha256 of everything that changes an
    image or a file (gates do not); text: the TOML source, verbatim except that [classes] fill became counts; real: real
    images per class id, if [classes] fill counted them.
    """

    name: str
    seed: int
    model: ModelSpec
    settings: SamplerSettings
    precision: str
    batch: int
    terms: tuple[Term, ...]
    counts: dict[int, int]
    accept: Accept | None
    shard_size: int
    prefix: str
    digest: str
    text: str
    gates: tuple[Gate, ...] = ()
    real: Mapping[int, int] = dataclasses.field(default_factory=dict)
    select: Select | None = None

    @property
    def preset(self) -> ModelFolder:
        """The model's folder."""
        return self.model.folder

    @property
    def total(self) -> int:
        """Number of images in the data set."""
        return sum(self.counts.values())

    @property
    def pool(self) -> Mapping[int, int]:
        """Images to sample per class id: ``counts``, or several times as many from which [select] chooses."""
        times = 1 if self.select is None else self.select.times
        return {class_id: times * count for class_id, count in self.counts.items()}


def load_manifest(path: str | Path, fill: Fill | None = None, allow_plugins: bool = False) -> Manifest:
    """Read and validate a manifest: a file, or the name of one that ships with rarefy, such as ``demo``.

    fill: replaces its [classes], for a plan.

    allow_plugins: whether to import the code that the manifest or its model names by an import path; without it only
    what an installed package lists is imported. A run's own copy, OUT/manifest.toml, gets its model from the
    ``model.json`` next to it. Raises ManifestError (unreadable, not TOML, unknown key, bad value, a plug-in that is not
    allowed), and DataError for images that fill cannot count.
    """
    path = find_manifest(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a null byte
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        hint = near_path(path) or shipped_hint(path) if isinstance(error, FileNotFoundError) else ""
        raise ManifestError(bad("manifest", str(path), f"a readable TOML file: {reason}{hint}")) from None
    stored, claimed = path.parent / MODEL_FILE, path.parent / RUN_FILE
    of_run = path.name == MANIFEST_FILE and stored.is_file() and claimed.is_file()
    model = read_run_model(stored.read_bytes(), str(stored)).model if of_run else None
    return parse_manifest(text, str(path), model, fill, allow_plugins)


def parse_manifest(
    text: str, source: str, model: ModelSpec | None = None, fill: Fill | None = None, allow_plugins: bool = False
) -> Manifest:
    """Validate manifest text. source: its path, for error messages; relative paths in it start at its folder.

    model: of a run that has begun, from its ``model.json``; it replaces the folder at ``model.path``; fill: replaces
    [classes]; allow_plugins: see ``load_manifest``.
    """
    root = _read_toml(text, source)
    found = read_model_table(get_table(root, "model"), Path(source).parent, model)
    found = dataclasses.replace(found, folder=allow_kinds(found.folder, allow_plugins))
    classes = _classes(text, get_table(root, "classes"), found.folder, Path(source).parent, fill)
    terms = [parse_term(table, field, allow_plugins) for field, table in _term_tables(root)]
    manifest = _build(root, found, classes, tuple(terms))
    _check_chain(manifest)
    return manifest


def parse_unread_manifest(text: str, source: str, run: RunModel) -> Manifest:
    """Validate the manifest of a run that is only read, without importing any code that the run names.

    run: what its ``model.json`` says. Terms of plug-ins become OpaqueTerm, and networks of your own are not built. The
    digest is the same. Raises ManifestError.
    """
    root = _read_toml(text, source)
    table, classes, kept = get_table(root, "model"), get_table(root, "classes"), list(run.plugins)
    if "path" in table and run.model is None:
        raise ManifestError(f"{source}: model.path: this run's {MODEL_FILE} does not describe the model")
    if "fill" in classes:
        raise ManifestError(bad(f"{source}: classes", "fill", "a key of a run's own copy, which has counts instead"))
    model, terms = read_model_table(table, Path(source).parent, run.model), []
    for field, each in _term_tables(root):
        terms.append(parse_unread(each, field, kept))
        if isinstance(terms[-1], OpaqueTerm):
            kept.pop(0)
    return _build(root, model, Filled(classes, {}, text), tuple(terms))


def model_file(manifest: Manifest) -> bytes | None:
    """Content of the run's ``model.json``; None if the manifest says it all."""
    return write_run_model(manifest.model, [kept for term in manifest.terms if (kept := opaque(term)) is not None])


def _read_toml(text: str, source: str) -> Table:
    try:
        root = parse_toml(text)
    except ManifestError as error:
        raise ManifestError(f"{source}: {error}") from None
    known_keys(
        root, "", ("name", "seed", "model", "sampler", "guidance", "classes", "accept", "select", "output", "gates")
    )
    return root


def _build(root: Table, model: ModelSpec, classes: Filled, terms: tuple[Term, ...]) -> Manifest:
    """The manifest of the file's tables, its model, its [classes] and its terms."""
    preset = model.folder
    sampler, output = get_table(root, "sampler"), get_table(root, "output")
    known_keys(sampler, "sampler", ("method", "steps", "eta", "classifier_every", "start", "precision", "batch"))
    known_keys(output, "output", ("shard_size", "prefix"))
    manifest = Manifest(
        name=get_match(root, "name", "[a-z0-9-]+", _NAME),
        seed=get_integer(root, "seed", 0, 2**63 - 1, 0),
        model=model,
        settings=_settings(sampler, preset),
        precision=get_choice(sampler, "sampler.precision", ("exact", "fast"), "exact"),
        batch=get_integer(sampler, "sampler.batch", 1, 65_536, 64),
        terms=terms,
        counts=_counts(classes.classes, preset),
        accept=_accept(get_table(root, "accept")) if "accept" in root else None,
        shard_size=get_integer(output, "output.shard_size", 1, MAX_SHARD_SIZE, 500),
        prefix=get_match(output, "output.prefix", "[a-z0-9-]+", _NAME, "rare"),
        digest="",
        text=classes.text,
        gates=parse_gates(get_table(root, "gates")),
        real=classes.real,
        select=parse_select(get_table(root, "select"), preset) if "select" in root else None,
    )
    if preset.classifier is None:
        _check_without_classifier(manifest)
    if (total := sum(manifest.pool.values())) > MAX_SHARDS * manifest.shard_size:
        raise ManifestError(bad("classes", total, f"at most {MAX_SHARDS} shards of output.shard_size images"))
    hashed = {each.name: getattr(manifest, each.name) for each in dataclasses.fields(Manifest)}
    if manifest.select is None:
        del hashed["select"]  # manifests of earlier versions keep their digests
    return dataclasses.replace(manifest, digest=digest_of(hashed, get_table(root, "model")))


def _check_chain(manifest: Manifest) -> None:
    """Raise ManifestError for a chain that is impossible, naming the file if it is the model's ``config.json``.

    A run that is only read was checked when it began; without this, reading it needs no torch.
    """
    model = manifest.model
    try:
        SamplerSettings(steps="").chain(model.folder)
    except ManifestError as error:
        raise ManifestError(f"{model.source or model.folder.path}/{CONFIG}: {error}") from None
    manifest.settings.chain(model.folder)  # too many steps, an unknown method, an eta that the method does not support


def _check_without_classifier(manifest: Manifest) -> None:
    """Raise ManifestError for whatever needs a classifier."""
    hint = "possible with a model that has no classifier (rarefy train classifier adds one)"
    for index, term in enumerate(manifest.terms):
        if term.needs_classifier:
            raise ManifestError(bad(f"guidance[{index}].term", term.name, hint))
    if manifest.settings.classifier_every > 1:
        raise ManifestError(bad("sampler.classifier_every", manifest.settings.classifier_every, hint))
    if manifest.accept is not None:
        raise ManifestError(bad("accept", "[accept]", hint))
    check_measurable(manifest.gates)


def _settings(table: Table, preset: ModelFolder) -> SamplerSettings:
    method = get_text(table, "sampler.method", DEFAULT_METHOD)
    steps = table.get("steps", 250 if method == "ancestral" else 50)
    if isinstance(steps, bool) or not isinstance(steps, int | str):
        raise ManifestError(bad("sampler.steps", steps, RESPACINGS))
    if isinstance(steps, int) and method != "ancestral":
        steps = f"logsnr{check_integer(steps, 'sampler.steps', 1, preset.diffusion_steps)}"
    return SamplerSettings(
        method=method,
        steps=str(steps),
        eta=get_number(table, "sampler.eta", 0.0, 1.0, 1.0 if method == "dpm-solver++" else 0.0),
        classifier_every=get_integer(table, "sampler.classifier_every", 1, preset.diffusion_steps, 1),
        start=get_integer(table, "sampler.start", 1, preset.diffusion_steps - 1) if "start" in table else None,
    )


def _term_tables(root: Table) -> list[tuple[str, Table]]:
    """The [[guidance]] tables with their names for error messages."""
    tables = root.get("guidance", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ManifestError(bad("guidance", tables, "a list of tables: write [[guidance]] before each term"))
    return [(f"guidance[{index}]", table) for index, table in enumerate(tables)]


def _classes(text: str, table: Table, preset: ModelFolder, folder: Path, fill: Fill | None) -> Filled:
    """The [classes] table, in which ``fill`` became ``counts``; ``fill`` from the command line replaces the table."""
    if fill is None:
        return resolve_fill(text, table, preset, folder)
    real = count_real(fill.data, preset)
    return Filled({"counts": missing(fill, real, preset)}, real, text)


def _counts(table: Table, preset: ModelFolder) -> dict[int, int]:
    """Images per class id, from per_class, total or counts."""
    known_keys(table, "classes", (*COUNTED_BY, "ids"))
    ways = [key for key in COUNTED_BY if key in table]
    if len(ways) != 1:
        raise ManifestError(bad("classes", ways, f"exactly one of {', '.join(COUNTED_BY)}"))
    if ways == ["counts"]:
        counts = get_table(table, "classes.counts")
        if "ids" in table:
            raise ManifestError(bad("classes.ids", table["ids"], "allowed with classes.counts, which has the ids"))
        ids = [_class_id(key, "classes.counts", preset) for key in counts]
        numbers = [check_integer(value, f"classes.counts.{key}", 0, 10**12) for key, value in counts.items()]
    else:
        chosen = table.get("ids", list(range(preset.classifier_classes)))
        if not isinstance(chosen, list) or not chosen:
            raise ManifestError(bad("classes.ids", chosen, "a list of class ids or names"))
        ids = [_class_id(key, "classes.ids", preset) for key in chosen]
        number = get_integer(table, f"classes.{ways[0]}", 0, 10**12)
        each, rest = (number, 0) if ways == ["per_class"] else divmod(number, len(ids))
        numbers = [each + (place < rest) for place in range(len(ids))]
    if len(set(ids)) < len(ids):
        repeated = next(class_id for class_id in ids if ids.count(class_id) > 1)
        raise ManifestError(bad("classes", repeated, "named once: each class may appear only once"))
    if not sum(numbers):
        raise ManifestError(bad(f"classes.{ways[0]}", table[ways[0]], "at least one image in total"))
    return {class_id: number for class_id, number in sorted(zip(ids, numbers, strict=True)) if number}


def _class_id(key: object, field: str, preset: ModelFolder) -> int:
    """The id of a class, given as an integer, as digits or by one of the model's class names."""
    if isinstance(key, str) and key in preset.labels:
        return preset.labels.index(key)
    number = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else key
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < preset.classifier_classes:
        near = near_name(key, preset.labels)
        nearest = f" (nearest: {near})" if near else ""
        allowed = f"a class of {preset.name}: 0 to {preset.classifier_classes - 1} or a class name{nearest}"
        raise ManifestError(bad(field, key, allowed))
    return number


def _accept(table: Table) -> Accept:
    known_keys(table, "accept", [field.name for field in dataclasses.fields(Accept)])
    return Accept(
        confidence=_bounds(get_table(table, "accept.confidence"), "accept.confidence", 1.0),
        entropy=_bounds(get_table(table, "accept.entropy"), "accept.entropy", math.inf),
        on_class=get_flag(table, "accept.on_class", False),
        max_candidates=get_integer(table, "accept.max_candidates", 1, 1_000_000, 8),
        exhausted=get_choice(table, "accept.exhausted", ("error", "keep"), "error"),
    )


def _bounds(table: Table, field: str, highest: float) -> Bounds:
    known_keys(table, field, ("min", "max"))
    low = get_number(table, f"{field}.min", 0.0, highest, 0.0) if "min" in table else -math.inf
    high = get_number(table, f"{field}.max", 0.0, highest, 0.0) if "max" in table else math.inf
    if low > high:
        raise ManifestError(bad(f"{field}.min", low, f"at most {field}.max = {high!r}"))
    return Bounds(low, high)
