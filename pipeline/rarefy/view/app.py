"""What the server of ``rarefy view`` answers, without HTTP: a path and its parameters to a response."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np

from rarefy.errors import DataError, RarefyError, bad
from rarefy.shards.reader import decode_image
from rarefy.shards.retry import one_line
from rarefy.shards.writer import encode_png
from rarefy.view.jobs import Job, Trajectories, sampler_of
from rarefy.view.marks import Marks
from rarefy.view.origin import Origin, Trajectory
from rarefy.view.page import Page, render
from rarefy.view.real_images import RealImages
from rarefy.view.run import Run
from rarefy.view.table import facts

HTML, JSON, TEXT, BYTES, PNG = "text/html", "application/json", "text/plain", "application/octet-stream", "image/png"
OK, NO_CONTENT, BAD_REQUEST, NOT_FOUND = 200, 204, 400, 404
LOCAL_POLL_MS, REMOTE_POLL_MS = 3_000, 15_000
HELP = "Dropped images stay in the shards; their keys are listed in {place}, which training and export honour."


@dataclass(frozen=True)
class ViewOptions:
    """reference, model: where the real images and the model are now; device: for trajectories."""

    reference: str | None = None
    model: str | None = None
    device: str = "cpu"
    allow_plugins: bool = False


@dataclass(frozen=True)
class Response:
    """keep: whether a browser may keep it for as long as the page is open. headers: further ones."""

    body: bytes
    kind: str
    status: int = OK
    keep: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


class App:
    """Answers for one run. Safe to use from several threads; use ``close`` at the end.

    serial: part of the addresses of pictures, so that a browser does not show those that it keeps of another run.
    """

    def __init__(self, run: Run, options: ViewOptions) -> None:
        self.run, self.marks, self.serial = run, Marks(run.store, run.data), secrets.token_hex(4)
        self._real = RealImages(run.store, run.manifest, options.reference, options.model)
        self._traces = Trajectories(
            partial(sampler_of, run.store, options.device, options.model, options.allow_plugins)
        )

    def close(self) -> None:
        """End what runs in the background and remove temporary files."""
        self._traces.close()
        self.run.images.close()

    def get(self, path: str, query: Mapping[str, str]) -> Response:
        """Answer GET. Raises RarefyError for what cannot be answered."""
        match path.strip("/").split("/"):
            case [""]:
                return Response(self._page(), HTML)
            case ["api", "table"]:
                return self._versioned(self.run.table)
            case ["api", "where"]:
                return self._versioned(partial(self.run.where, query.get("expression", "")))
            case ["api", "status"]:
                return _json({"version": self.run.refresh(), "text": self.run.state()})
            case ["api", "row"]:
                return _json(facts(self.run.rows.row(query.get("key", ""))))
            case ["api", "near"]:
                return _json(self._near(query.get("key", "")))
            case ["api", "trajectory"]:
                return _json(self._told(query.get("key", "")))
            case ["image", name] if name.endswith(".png"):
                return Response(self.run.png(name.removesuffix(".png")), PNG, keep=True)
            case ["real", name] if name.removesuffix(".png").isdecimal():
                return Response(encode_png(self._real.image(int(name.removesuffix(".png")))), PNG, keep=True)
            case ["favicon.ico"]:
                return Response(b"", PNG, NO_CONTENT)
            case ["trajectory", key, number, name]:
                return Response(self._frame(key, number, name.removesuffix(".png")), PNG, keep=True)
        return Response(b"there is no such page\n", TEXT, NOT_FOUND)

    def post(self, path: str, body: Mapping[str, object]) -> Response:
        """Answer POST. Raises RarefyError for what cannot be done."""
        match path:
            case "/api/mark":
                keys, drop = body.get("keys"), body.get("drop")
                if not isinstance(keys, list) or not isinstance(drop, bool):
                    raise DataError(bad("mark", sorted(body), "an object with keys, a list, and drop, true or false"))
                for key in keys:
                    self.run.rows.row(str(key))
                self.marks.change([str(key) for key in keys], drop)
                return _json({"version": self.run.version()})
            case "/api/trajectory":
                key = str(body.get("key"))
                self._traces.job(self._origin(key))
                return _json(self._told(key))
        return Response(b"there is no such page\n", TEXT, NOT_FOUND)

    def _page(self) -> bytes:
        run = self.run
        why_not = self.marks.why_not
        page = Page(
            name=run.manifest.name,
            state=run.state(),
            help=HELP.format(place=self.marks.place),
            notes=[why_not] if why_not else [],
        )
        poll = LOCAL_POLL_MS if run.data.is_local else REMOTE_POLL_MS
        data = {"writable": not why_not, "why_not": why_not, "poll_ms": poll, "serial": self.serial}
        return render(page, live=True, data=data)

    def _versioned(self, make: Callable[[], bytes]) -> Response:
        """A response about all rows, with the version of the rows that it is about."""
        version = self.run.refresh()
        return Response(make(), BYTES, headers={"X-Rows": version})

    def _near(self, key: str) -> dict[str, object]:
        """The nearest real images, or why there are none to show: they need not be on this machine."""
        row = self.run.rows.row(key)
        nearest, distance = row.get("nearest_real"), row.get("nearest_distance")
        image = decode_image(self.run.png(key))
        known = isinstance(nearest, str)
        try:
            found = self._real.near(image, str(nearest) if known else None, float(str(distance)) if known else None)
        except RarefyError as error:
            return {"near": [], "why_not": one_line(error)}
        return {"near": [asdict(near) for near in found], "why_not": ""}

    def _origin(self, key: str) -> Origin:
        row = self.run.rows.row(key)
        return Origin(key, int(str(row["class_id"])), int(str(row["seed"])), int(str(row["candidate"])))

    def _told(self, key: str) -> dict[str, object]:
        """What the page is told about the trajectory of an image."""
        job = self._traces.known(key)
        if job is None:
            raise DataError(f"trajectory: {key!r} has not been asked for, or is no longer kept; ask for it again")
        told: dict[str, object] = {"done": job.done, "total": job.total, "error": job.error}
        if job.finished:
            trajectory = job.result.result()
            told["steps"] = [asdict(step) for step in trajectory.steps]
            told["frames"] = [frame.number for frame in trajectory.frames]
            told["most_entropy"] = math.log(max(2, self.run.manifest.preset.classifier_classes))
            told["comparison"] = comparison(trajectory, self.run.png(key))
        return told

    def _frame(self, key: str, number: str, kind: str) -> bytes:
        job: Job | None = self._traces.known(key)
        if job is not None and job.finished:
            for frame in job.result.result().frames:
                if str(frame.number) == number and kind in ("x", "predicted"):
                    return frame.x if kind == "x" else frame.predicted
        raise DataError(f"trajectory: there is no picture {number}/{kind} of {key!r}")


def comparison(trajectory: Trajectory, stored: bytes) -> str:
    """Whether the image made again is the stored one, in a sentence."""
    if encode_png(trajectory.image) == stored:
        return "Made again: byte for byte the stored image."
    difference = np.abs(trajectory.image.astype(np.int64) - decode_image(stored))
    if not difference.any():
        return "Made again: the stored image's pixels, in a PNG file with other bytes."
    return (
        f"Made again: it differs from the stored image in {np.mean(difference > 0):.1%} of the values, by at most "
        f"{difference.max()} of 255 grey levels. It was sampled alone, not in the run's batch, and perhaps on another "
        "device, so it rounds differently."
    )


def _json(content: object) -> Response:
    return Response(json.dumps(content, allow_nan=False).encode(), JSON)


def error_response(error: RarefyError) -> Response:
    """The error's line."""
    return Response(one_line(error).encode(), TEXT, BAD_REQUEST)
