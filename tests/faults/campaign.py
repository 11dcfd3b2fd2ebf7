"""Plays faults into runs of one tiny manifest until enough have happened, and judges every run that comes out."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from faults.judge import Content, judge
from faults.kinds import LISTINGS, RESTING, RUNNING, Kind, Scene
from faults.world import NODES, Output, World
from rarefy.cli import main

POLL_S = 0.05
MAX_SESSIONS = 12  # for one output


@dataclass
class Row:
    """What one campaign came to. retries: as the drivers counted them; problems: everything else that went wrong."""

    name: str
    injected: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    outputs: int = 0
    sessions: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    equal: bool = True
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return (self.lost, self.doubled, self.wrong, self.equal, self.problems) == (0, 0, 0, True, [])


class Campaign:
    """Faults of some kinds in runs of one manifest, whose undisturbed content is ``expected``.

    gap: most shards between two faults; damages: at once, each to two shards of its own.
    """

    def __init__(self, world: World, expected: Content, rng: random.Random, gap: int, damages: int) -> None:
        self.world, self.expected, self.rng, self.gap, self.damages = world, expected, rng, gap, damages
        self.sealed: Output | None = None

    def undisturbed(self, name: str) -> Row:
        """A run without faults."""
        row = Row(name)
        with _timed(row):
            self._play("local", [], row)
        return row

    def run(self, name: str, kinds: Sequence[str], count: int, place: str) -> Row:
        """``count`` faults of the kinds in turn, while drivers run, over as many outputs (local or s3) as it takes."""
        row, todo = Row(name), [RUNNING[kinds[number % len(kinds)]] for number in range(count)]
        self.rng.shuffle(todo)
        with _timed(row):
            while todo and row.outputs < count + 2 and not row.problems:
                self._play(place, todo, row)
        if todo:
            row.problems.append(f"{len(todo)} faults could not be injected: {sorted({kind.name for kind in todo})}")
        return row

    def rest(self, name: str, kinds: Sequence[str], count: int) -> Row:
        """Damage to copies of a good output: verify names it, seal refuses it, seal --repair and generate mend it."""
        row, todo = Row(name), [kinds[number % len(kinds)] for number in range(count)]
        with _timed(row):
            if self.sealed is None:
                self._play("local", [], row)
            for start in range(0, count, self.damages):
                if self.sealed is not None and not row.problems:
                    self._damage(self.sealed, todo[start : start + self.damages], row)
        return row

    def _play(self, place: str, todo: list[Kind], row: Row) -> None:
        """Make one output, injecting faults from the end of ``todo``. Faults that did not happen go back to it."""
        scene = Scene(self.world, self.world.new_output(place), self.rng)
        self.world.storage.spoil = scene.spoil
        played: list[Kind] = []
        try:
            for _ in range(MAX_SESSIONS):
                if self._session(scene, todo, played, row):
                    break
            else:
                row.problems.append(f"{scene.output.root} is not finished after {MAX_SESSIONS} sessions")
        finally:
            self._clear(scene, todo, played)
        row.injected.update(kind.name for kind in played)
        self._finish(scene.output, row)
        if place == "local" and self.sealed is None and row.good:
            self.sealed = scene.output

    def _session(self, scene: Scene, todo: list[Kind], played: list[Kind], row: Row) -> bool:
        """One driver, or two, until they end. Returns whether the output is finished."""
        scene.sessions = [scene.start()]
        next_at = scene.output.committed() + self.rng.randint(1, self.gap)
        while scene.running:
            made = scene.output.committed()
            if todo and made >= next_at and todo[-1].inject(scene, todo[-1].name):
                played.append(todo.pop())
                next_at = made + self.rng.randint(1, self.gap)
            for session in scene.running:
                if session.overdue:
                    session.process.kill()
                    row.problems.append(f"a driver hung; {' '.join(session.output()[1].split())[-600:]}")
            time.sleep(POLL_S)
        row.sessions += len(scene.sessions)
        row.retries += sum(session.retries() for session in scene.sessions)
        row.problems += [line for session in scene.sessions for line in session.wrong()]
        return any(session.process.returncode == 0 for session in scene.sessions) or bool(row.problems)

    def _clear(self, scene: Scene, todo: list[Kind], played: list[Kind]) -> None:
        """Withdraw faults that wait, and return to the usual number of nodes."""
        self.world.storage.spoil = lambda operation: None
        for name in [*self.world.withdraw(), *scene.due]:
            kind = next(kind for kind in played if kind.name == name)
            played.remove(kind)
            todo.append(kind)
        for node in scene.extra:
            if node not in self.world.nodes or len(self.world.nodes) > NODES:
                self.world.remove_node(node)

    def _finish(self, output: Output, row: Row) -> None:
        """Seal, verify, and compare with the undisturbed run."""
        for command in ("seal", "verify"):
            if not row.problems:
                code, text = run_command(command, output.root)
                row.problems += [f"{command}: exit code {code}: {text}"] if code else []
        verdict = judge(output, self.expected)
        row.outputs += 1
        row.lost += verdict.lost
        row.doubled += verdict.doubled
        row.wrong += verdict.wrong
        row.equal &= verdict.equal

    def _damage(self, sealed: Output, kinds: Sequence[str], row: Row) -> None:
        output = self.world.new_output("local")
        shutil.copytree(sealed.root, output.root)
        shards = [Path(name).stem for name in output.names("state") if re.fullmatch(r"state/rare-\d+\.json", name)]
        names = iter(self.rng.sample(shards, 2 * len(kinds)))
        # The listings first: verify compares them with the markers, as long as all are there.
        for kind in sorted(kinds, key=lambda kind: kind not in LISTINGS):
            row.injected[kind] += 1
            self._expect_named(RESTING[kind](output, [next(names), next(names)], self.rng), kind, output, row)
        before = {name: output.read(name) for name in output.names()}
        code, text = run_command("seal", output.root)
        if code != 2:
            row.problems.append(f"seal of a damaged set: exit code {code}: {text}")
        if before != {name: output.read(name) for name in output.names()}:
            row.problems.append("seal without --repair changed a damaged set")
        run_command("seal", output.root, "--repair")
        scene = Scene(self.world, output, self.rng)
        self._session(scene, [], [], row)
        self._finish(output, row)

    def _expect_named(self, names: list[str], kind: str, output: Output, row: Row) -> None:
        code, text = run_command("verify", output.root, "--json")
        unnamed = [name for name in names if name not in text]
        if code != 1 or unnamed:
            row.problems.append(f"{kind}: verify (exit code {code}) does not name {unnamed}: {text[-300:]}")


def run_command(*arguments: str) -> tuple[int, str]:
    """Run a rarefy command in this process: exit code and everything that it prints."""
    with io.StringIO() as text:
        with redirect_stdout(text), redirect_stderr(text):
            code = main(arguments)
        return code, text.getvalue()


@contextmanager
def _timed(row: Row) -> Iterator[None]:
    start = time.monotonic()
    yield
    row.seconds = time.monotonic() - start


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'kind':24}{'injected':>9}{'retries':>9}{'lost':>6}{'doubled':>9}{'wrong':>7}  digest equal"]
    lines += [line for row in rows for line in row_lines(row)]
    return "\n".join([*lines, *row_lines(_sum(rows))[:1]])


def row_lines(row: Row) -> list[str]:
    """One row, and a line for each of its problems."""
    numbers = f"{row.injected.total():>9}{row.retries:>9}{row.lost:>6}{row.doubled:>9}{row.wrong:>7}"
    line = f"{row.name:24}{numbers}  {'yes' if row.equal else 'NO':12} {row.seconds:6.0f} s"
    return [line, *(f"  problem: {' '.join(problem.split())}" for problem in row.problems)]


def _sum(rows: Sequence[Row]) -> Row:
    total = Row("all", equal=all(row.equal for row in rows))
    for row in rows:
        total.injected.update(row.injected)
        for name in ("retries", "outputs", "sessions", "lost", "doubled", "wrong", "seconds"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
    return total


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps([vars(row) for row in rows], indent=1)
