"""The log of a training run: its reports on stderr, ``log.jsonl``, and TensorBoard's files if they are wanted."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rarefy.live import LiveLine, Work, duration, is_terminal
from rarefy.training.loop import Report
from rarefy.training.progress import say
from rarefy.training.settings import TrainSettings

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG = "log.jsonl"


class TrainingLog:
    """The log of one part's run. tensorboard: also write TensorBoard's files, into a folder of that name."""

    def __init__(self, folder: Path, settings: TrainSettings, tensorboard: bool = False) -> None:
        self.path, self.settings = folder / LOG, settings
        self.writer = _tensorboard(folder / "tensorboard") if tensorboard else None
        self._live = LiveLine(sys.stderr) if is_terminal(sys.stderr) else None
        self._images = 0

    def report(self, report: Report) -> None:
        """Print a report and append it to the log."""
        images, total = report.step * self.settings.batch, self.settings.images
        eta = f"ETA {duration(max(total - images, 0) / report.images_per_s)}"
        self._images = images
        if self._live is not None:
            means = [figures({name: value}) for name, value in report.means.items()]
            facts = (f"{report.images_per_s:.0f} images/s", eta, *means)
            self._live.show(Work("train", images, total, "images", facts))
        else:
            say(f"{images:,}/{total:,} images, {report.images_per_s:.0f} images/s, {eta}, {figures(report.means)}")
        self._append(images, {"images_per_s": round(report.images_per_s, 1), "lr": report.lr, **report.means})

    def check(self, images: int, values: Mapping[str, float]) -> None:
        """Print what was measured on held-out images and append it to the log."""
        say(f"after {images:,} images: {figures(values)}")
        self._append(images, values)

    def close(self) -> None:
        """Close the live line, and write out what TensorBoard's writer still holds."""
        if self._live is not None:
            self._live.close(failed=self._images < self.settings.images)
        if self.writer is not None:
            self.writer.close()

    def _append(self, images: int, values: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"images": images, **values}) + "\n")
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, images)


def _tensorboard(folder: Path) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def figures(values: Mapping[str, float]) -> str:
    """Names and values in one line."""
    return " ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4f}" for name, value in values.items()
    )


def read_log(log: Path) -> list[dict[str, float]]:
    """The log's entries, without a last line that a kill cut short."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut_log(log: Path, images: int) -> None:
    """Drop the entries beyond ``images``, the checkpoint's: the resumed run writes them again."""
    kept = [json.dumps(entry) + "\n" for entry in read_log(log) if entry["images"] <= images]
    temporary = log.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(log)


def curve(log: Path, points: int = 60) -> list[dict[str, float]]:
    """At most ``points`` evenly spaced reports of the training log, rounded."""
    entries = [entry for entry in read_log(log) if "lr" in entry]
    stride = max(1, -(-len(entries) // points))
    return [{k: round(v, 5) for k, v in entry.items()} for entry in entries[stride - 1 :: stride]]


def checks(log: Path, points: int = 30) -> list[dict[str, float]]:
    """At most ``points`` of the log's measurements on held-out images, rounded."""
    entries = [entry for entry in read_log(log) if "lr" not in entry]
    stride = max(1, -(-len(entries) // points))
    return [{k: round(v, 5) for k, v in entry.items()} for entry in entries[-1::-stride][::-1]]
