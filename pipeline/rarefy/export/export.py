"""``rarefy export``: a finished data set in another format, completely or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rarefy.errors import OutputError, bad
from rarefy.export.chosen import Chosen, Image, LeftOut, choose_images
from rarefy.export.imagefolder import write_imagefolder
from rarefy.export.npz import write_npz
from rarefy.export.parquet import write_parquet
from rarefy.new_output import check_free, new_output
from rarefy.shards.store import Store

Progress = Callable[[str, int, int], None]  # stage, images done, images in all
Writer = Callable[[Chosen, Iterable[Image], Path], None]
WRITERS: dict[str, Writer] = {"imagefolder": write_imagefolder, "npz": write_npz, "parquet": write_parquet}
DEST = "dest"


@dataclass(frozen=True)
class Exported:
    """What was exported."""

    form: str
    dest: str
    images: int
    classes: int
    left_out: LeftOut

    def text(self) -> str:
        """The result in one line."""
        what = f"exported {self.images:,} images of {self.classes:,} classes to {self.dest} ({self.form})"
        return what + self.left_out.text()

    def content(self) -> dict[str, object]:
        """The result as JSON."""
        return {"format": self.form, **{name: value for name, value in asdict(self).items() if name != "form"}}


def export_run(
    store: Store, dest: str, form: str, where: str | None = None, everything: bool = False, *, progress: Progress
) -> Exported:
    """Write the accepted images of a sealed run, without those of its exclusion list, to ``dest``.

    form: a key of WRITERS; where: a condition on the rows (see rarefy.consume.rows); everything: also images that were
    not accepted or are excluded. Raises OutputError, ShardError or DataError; then there is nothing at ``dest``.
    """
    check_dest(dest, form)
    chosen = choose_images(store, where, everything)
    with new_output(dest, DEST) as path:
        WRITERS[form](chosen, _counted(chosen, progress), path)
    return Exported(form, dest, len(chosen.rows), chosen.rows["class_id"].nunique(), chosen.left_out)


def check_dest(dest: str, form: str) -> None:
    """Raise OutputError if ``dest`` is not free or not a name for this format."""
    if "://" in dest:
        raise OutputError(bad(DEST, dest, "a local path; export to one and copy it with your storage's own tool"))
    if form == "npz" and not dest.endswith(".npz"):
        raise OutputError(bad(DEST, dest, "a file's name that ends in .npz"))
    if form == "npz" and Path(dest).exists():
        raise OutputError(bad(DEST, dest, "free: something is there already; choose another file"))
    check_free(dest, DEST)


def _counted(chosen: Chosen, progress: Progress) -> Iterator[Image]:
    for done, image in enumerate(chosen.images()):
        progress("images", done, len(chosen.rows))
        yield image
    progress("images", len(chosen.rows), len(chosen.rows))
