"""The pages of an audited run: report.html and gallery.html."""

from __future__ import annotations

from collections.abc import Callable

from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.schema import GALLERY_PATH, METRICS_PATH
from rarefy.errors import RarefyError, StorageError
from rarefy.shards.store import Store
from rarefy.view.gallery import make_gallery


def write_pages(store: Store, notice: Callable[[str], None]) -> dict[str, str]:
    """Write the pages; returns their paths under OUT: ``report``, and ``gallery`` if there is one.

    If the shards are too damaged for a gallery, a notice says so. Raises what ``write_report`` raises.
    """
    from rarefy.audit.page.report import write_report

    if not store.exists(METRICS_PATH):
        read_manifest(store)  # what is no run is said once, not for each page
    page = None
    try:
        page = make_gallery(store).page
    except StorageError:
        raise
    except RarefyError as error:
        notice(f"{GALLERY_PATH} is not written: {error}")
    pages = {"report": write_report(store, page is not None)}
    if page is None:
        store.delete(GALLERY_PATH)
        return pages
    store.write_bytes(GALLERY_PATH, page)
    return pages | {"gallery": GALLERY_PATH}
