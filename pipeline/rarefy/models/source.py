"""A run's model: where its folder is, which weights files count, and the hashes that they must have."""

from __future__ import annotations

import functools
import hashlib
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from rarefy.errors import CheckpointError, ManifestError, bad
from rarefy.fields import Table, find_path, get_path, get_sha256, get_text, known_keys
from rarefy.models.config import NetworkConfig
from rarefy.models.file_hash import file_sha256
from rarefy.models.folder import CONFIG, OWN_CODE, WEIGHTS, ModelFolder, find_model, read_model_folder
from rarefy.models.remote import download, is_remote

WAYS = ("path", "name", "preset")
FILE_KEYS = ("checkpoint", "checkpoint_sha256", "classifier", "classifier_sha256")


@dataclass(frozen=True)
class ModelSpec:
    """The model of a run.

    source: the model folder's absolute path or URL, None for a model that ships with rarefy; checkpoint, classifier:
    absolute paths of weights files outside of the folder; *_sha256: the hashes that files must have, None for any.
    reference_sha256: of the folder's real images, known for a run that has begun.
    """

    folder: ModelFolder
    source: str | None = None
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    classifier: str | None = None
    classifier_sha256: str | None = None
    reference_sha256: str | None = None

    def weights(self, role: str) -> Path | None:
        """The weights file of ``unet`` or ``classifier``; None if neither the manifest nor the folder names one."""
        given = self.checkpoint if role == "unet" else self.classifier
        if given is not None:
            return Path(given)
        return self.folder.file(role) if role in self.folder.files else None

    @property
    def trained(self) -> bool:
        """Whether the weights files of all networks are on this machine."""
        return all((path := self.weights(role)) is not None and path.is_file() for role in self.folder.networks)


def read_model_table(table: Table, base: Path, of_run: ModelSpec | None = None) -> ModelSpec:
    """A manifest's [model]: a name (``preset`` is the old spelling of ``name``), or the folder at a path or URL.

    base: where relative paths start; of_run: of a run that has begun, used instead of ``path``. Raises ManifestError.
    """
    known_keys(table, "model", (*WAYS, *FILE_KEYS))
    ways = [key for key in WAYS if key in table]
    if len(ways) != 1:
        raise ManifestError(bad("model", ways, f"exactly one of {', '.join(WAYS)}"))
    way = ways[0]
    written = get_text(table, f"model.{way}")
    if way == "path":
        for key in FILE_KEYS:
            if key in table:
                raise ManifestError(
                    bad(f"model.{key}", table[key], "allowed with model.path, whose folder has the weights")
                )
        return of_run or find_source(written, base)
    return ModelSpec(
        folder=find_model(written, f"model.{way}"),
        checkpoint=get_path(table, "model.checkpoint", base),
        checkpoint_sha256=get_sha256(table, "model.checkpoint_sha256"),
        classifier=get_path(table, "model.classifier", base),
        classifier_sha256=get_sha256(table, "model.classifier_sha256"),
    )


def find_source(written: str, base: Path) -> ModelSpec:
    """The model folder at a local path (relative to ``base``) or URL, with the hashes of its weights.

    Raises ManifestError if it is no model folder. Weights that are missing have no hash: the model is not trained yet.
    """
    source = local_path(written, base) if not is_remote(written) else written
    return _described(*local_folder(source))


def local_path(written: str, base: Path) -> str:
    """A path as written in a manifest, made absolute."""
    return str(find_path(written.removeprefix("file://"), "model", base))


def local_folder(source: str) -> tuple[ModelFolder, str]:
    """The model folder at an absolute path or URL, on this machine, and its source with the revision resolved.

    Raises ManifestError.
    """
    if not is_remote(source):
        return read_model_folder(Path(source)), source
    path, pinned = download(source)
    folder = read_model_folder(path)
    for role in WEIGHTS:
        _check_kind(getattr(folder, role), role, source)
    if missing := [name for name in folder.files.values() if not (path / name).exists()]:
        raise ManifestError(f"{source}/{CONFIG}: files: {missing[0]!r} is missing there")
    return folder, pinned


def _check_kind(network: object, role: str, source: str) -> None:
    """A download must not choose what code runs here."""
    if network is not None and OWN_CODE in (kind := getattr(network, "kind", NetworkConfig.kind)):
        allowed = "allowed in a downloaded folder, because it runs code: copy the folder here and give its local path"
        raise ManifestError(f"{source}/{CONFIG}: {bad(f'{role}.kind', kind, allowed)}")


def _described(folder: ModelFolder, source: str) -> ModelSpec:
    spec = ModelSpec(folder, source)
    hashes = {role: _sha256_of(spec.weights(role)) for role in folder.networks}
    return replace(spec, checkpoint_sha256=hashes["unet"], classifier_sha256=hashes.get("classifier"))


def on_this_machine(spec: ModelSpec) -> ModelSpec:
    """The same model with its folder on this machine: an actor may run on another machine than the driver.

    Raises ManifestError if the folder cannot be downloaded.
    """
    if spec.source is None:
        return replace(spec, folder=find_model(spec.folder.name))
    path = download(spec.source)[0] if is_remote(spec.source) else Path(spec.source)
    return replace(spec, folder=replace(spec.folder, path=path))


def check_trained(spec: ModelSpec) -> None:
    """Raise CheckpointError if a weights file of a model folder is missing."""
    if spec.source is None or spec.trained:
        return
    if not spec.folder.path.is_dir():
        gone = f"there: it has been moved or deleted, or cannot be seen from {platform.node()}"
        raise CheckpointError(bad("model.path", spec.source, gone))
    missing = [role for role in spec.folder.networks if not ((path := spec.weights(role)) and path.is_file())]
    names = ", ".join(spec.folder.files.get(role, f"{role}.safetensors") for role in missing)
    raise CheckpointError(f"model.path: {spec.source!r} is not trained yet: it lacks {names}; run rarefy train")


def tree_sha256(path: Path) -> str | None:
    """sha256 of a file, or of a folder's files with their names; None if there is no such path."""
    if path.is_dir():
        lines = [f"{file_sha256(file)} {file.relative_to(path)}" for file in sorted(path.rglob("*")) if file.is_file()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return _sha256_of(path)


def _sha256_of(path: Path | None) -> str | None:
    if path is None or not path.is_file():
        return None
    stat = path.stat()
    return _cached_sha256(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=64)
def _cached_sha256(path: Path, mtime_ns: int, size_bytes: int) -> str:
    """A large file is hashed once per process, as long as it does not change."""
    return file_sha256(path)
