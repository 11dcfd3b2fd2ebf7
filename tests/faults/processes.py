"""Processes by their place in the tree, from /proc."""

from __future__ import annotations

from pathlib import Path


def descendants(pid: int) -> dict[int, str]:
    """Command lines of the living processes under ``pid``, in the order of their ids."""
    parents, titles = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                if state != "Z":
                    parents[int(folder.name)] = int(parent)
                    titles[int(folder.name)] = (folder / "cmdline").read_text()
            except (OSError, ValueError):
                continue  # it has just ended
    below, layer = set[int](), {pid}
    while layer:
        layer = {child for child, parent in parents.items() if parent in layer} - below
        below |= layer
    return {child: titles.get(child, "") for child in sorted(below)}


def actors(pid: int) -> list[int]:
    """Living actors of a run's driver whose Ray has its processes under ``pid``."""
    return [child for child, title in descendants(pid).items() if title.startswith("ray::ShardGenerator")]
