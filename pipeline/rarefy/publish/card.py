"""Checks the metadata at the top of README.md as the Hub does, before anything is sent."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rarefy.errors import OutputError, bad
from rarefy.publish.needs import hub_library

UNKNOWN_LICENCE = "the card names no licence, so nobody knows what the files may be used for"
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B",
         "10B<n<100B", "100B<n<1T", "n>1T")  # fmt: skip
TEXTS = ("pretty_name", "model_name", "library_name", "pipeline_tag", "license_name", "license_link")
LISTS = ("tags", "task_categories", "size_categories", "license")


def check_card(text: str, kind: Literal["dataset", "model"], paths: Sequence[str]) -> str | None:
    """The licence that a card names, None for none or ``unknown``.

    paths: the files that are sent with it. Raises OutputError, with the key, for metadata that the Hub would refuse or
    that names files which are not there.
    """
    data = _metadata(text, kind)
    for key in TEXTS:
        if key in data and not isinstance(data[key], str):
            raise OutputError(f"README.md: {bad(key, data[key], 'text')}")
    for key in LISTS:
        if key in data and not all(isinstance(value, str) for value in _listed(data[key])):
            raise OutputError(f"README.md: {bad(key, data[key], 'text or a list of texts')}")
    for size in _listed(data.get("size_categories", [])):
        if size not in SIZES:
            raise OutputError(f"README.md: {bad('size_categories', size, 'one of ' + ', '.join(SIZES))}")
    _check_configs(data.get("configs", []), paths)
    if "other" in _listed(data.get("license", [])) and "license_name" not in data:
        raise OutputError("README.md: license: 'other' is not allowed without license_name")
    licences = [str(licence) for licence in _listed(data.get("license", [])) if licence != "unknown"]
    return ", ".join(licences) or None


def _metadata(text: str, kind: str) -> Mapping[str, Any]:
    """The front matter, read by the Hub's own library; it also checks a model's results (``model-index``)."""
    hub = hub_library()
    import yaml  # comes with that library

    card_class = hub.DatasetCard if kind == "dataset" else hub.ModelCard
    try:
        data: dict[str, Any] = card_class(text).data.to_dict()
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputError(f"README.md: its metadata cannot be read ({' '.join(str(error).split())[:300]})") from None
    if not data:
        raise OutputError("README.md: it has no metadata at its top, between two lines of ---")
    return data


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _check_configs(configs: object, paths: Sequence[str]) -> None:
    """Every pattern of ``configs`` must match a file, or ``load_dataset`` finds nothing."""
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise OutputError(f"README.md: {bad('configs', configs, 'a list of tables')}")
    for config in configs:
        for entry in _listed(config.get("data_files", [])):
            patterns = _listed(entry.get("path", [])) if isinstance(entry, dict) else [entry]
            for pattern in patterns:
                if not any(fnmatch.fnmatchcase(path, str(pattern)) for path in paths):
                    raise OutputError(f"README.md: {bad('configs.data_files', pattern, 'the path of any file sent')}")
