"""How a command on a page is tested: run in this process, or parsed by the program that it names."""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from doc_blocks import PARSE, ROOT, Block, PageError, commands

from rarefy.cli import main, make_parser
from rarefy.errors import RarefyError
from rarefy.manifest import load_manifest

# Commands of rarefy that run for real, within seconds, wherever a page shows them without a rule.
QUICK = ("plan", "seal", "verify", "status", "report", "compare", "models", "export", "doctor", "completion")
# The others are parsed, their manifests are loaded, and these tests run them for real.
ELSEWHERE = {
    "init": "tests/project/test_own_images.py",
    "train": "tests/project/test_own_images.py",
    "run": "tests/project/test_own_images.py",
    "generate": "tests/faults/world.py",
    "select": "tests/audit/test_select.py",
    "audit": "tests/doc_folder.py",
    "bench": "tests/bench",
    "import": "tests/models/test_import_diffusers.py",
    "view": "tests/view",
    "push": "tests/publish",
}
# What a test machine does not have. A command with such a word is parsed.
ABSENT = ("s3://", "gs://", "hf://", "--ray-address", "cuda", "PATH")
# Programs that are not this project's: only what belongs to it, such as paths, is checked.
OTHERS = ("bash", "cd", "docker", "echo", "export", "git", "hf", "kubectl", "mkdir", "mutmut", "open", "pytest", "ray")
_PATH = re.compile(r"^(?:benchmarks|docs|examples|jobs|manifests|pipeline|tests)/[\w./-]+$")


class _ParsedError(Exception):
    """Ends a program once it has parsed its arguments."""


def check_console(block: Block) -> None:
    """Run or parse every command of the block. Raises PageError with its place."""
    for words in commands(block):
        try:
            check_command(words, run=block.mode != PARSE)
        except (RarefyError, PageError, SystemExit) as error:
            raise PageError(f"{block.where}: {' '.join(words)}: {error}") from error


def check_command(words: Sequence[str], run: bool) -> None:
    """Run or parse one command. Raises PageError, or what the program raises for arguments that it does not know."""
    words = [re.sub(r"^(?:[\w.-]+/)*bin/", "", word) for word in words]
    while words and re.match(r"^\w+=", words[0]):
        words.pop(0)
    for word in words:
        if _PATH.match(word) and not (ROOT / word).exists():
            raise PageError(f"there is no {word}")
    programs: dict[str, Callable[[list[str]], None]] = {
        "rarefy": lambda arguments: check_rarefy(arguments, run),
        "make": _check_make,
        "pip": _check_pip,
        "python": lambda arguments: _check_python(arguments, run),
        "torchrun": lambda arguments: _check_python(arguments[arguments.index("-m") :], run=False),
        "jobs/submit.sh": _check_submit,
    }
    if not words:
        return
    if words[0] in programs:
        programs[words[0]](words[1:])
    elif words[0] == "sbatch":
        check_rarefy(words[words.index("jobs/slurm.sh") + 1 :], run=False)
    elif words[0] not in OTHERS:
        raise PageError(f"say in tests/doc_commands.py how {words[0]!r} is tested")


def check_rarefy(words: list[str], run: bool) -> None:
    """Parse a command of rarefy; run it if it is quick and nothing is missing here."""
    arguments = make_parser().parse_args(words)
    name = words[0]
    if not run or any(absent in word for word in words for absent in ABSENT):
        return
    if name in QUICK:
        if (code := main(words)) != 0:
            raise PageError(f"exits with {code}")
    elif name in ELSEWHERE:
        _check_inputs(arguments)
    else:
        raise PageError(f"say in tests/doc_commands.py how 'rarefy {name}' is tested")


def _check_inputs(arguments: argparse.Namespace) -> None:
    """The manifest loads, and what the command reads is there."""
    if manifest := getattr(arguments, "manifest", None):
        if Path(manifest).suffix == ".toml" or "/" not in manifest:
            load_manifest(manifest, allow_plugins=True)
        return
    for name in ("recipe", "data", "test", "reference", "gates", "class_names"):
        given = getattr(arguments, name, None)
        for path in given[-1:] if isinstance(given, list) else [given]:
            if path and path != "imagenet" and not Path(path).exists():
                raise PageError(f"there is no {path} in the prepared folder (tests/doc_folder.py)")


def _check_make(words: list[str]) -> None:
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
    if words[0] not in targets:
        raise PageError(f"the Makefile has no {words[0]}")


def _check_pip(words: list[str]) -> None:
    """Extras of rarefy exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"(?:rarefy|\.)\[([\w,-]+)\]", " ".join(words)):
        if unknown := set(named.split(",")) - set(extras):
            raise PageError(f"rarefy has no extra {', '.join(unknown)}")


def _check_submit(words: list[str]) -> None:
    """The script's own options, and the command of rarefy that it submits."""
    _parse_only("jobs/submit.py", words, module=False)
    for name in ("run", "generate"):
        if name in words:
            check_rarefy(words[words.index(name) :], run=False)


def _check_python(words: list[str], run: bool) -> None:
    """Let a module or a file parse its arguments, and no more."""
    if words[:2] == ["-m", "rarefy"]:
        return check_rarefy(words[2:], run)
    name, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    if name in ("pip", "build", "http.server", "twine", "venv"):
        return _check_pip(rest)
    found = importlib.util.find_spec(name) if words[0] == "-m" else None
    source = ROOT / name if found is None or found.origin is None else Path(found.origin)
    if not source.is_file():
        raise PageError(f"there is no {name}")
    if re.search("parse_(known_)?args", source.read_text()):
        _parse_only(name, rest, words[0] == "-m")
    return None


def _parse_only(name: str, arguments: list[str], module: bool) -> None:
    parse = argparse.ArgumentParser.parse_known_args

    def stop(parser: argparse.ArgumentParser, args: list[str] | None = None, namespace: object = None) -> None:
        _, unknown = parse(parser, args)
        if unknown and name != "jobs/submit.py":  # the rest is a command of rarefy
            parser.error(f"unknown arguments: {' '.join(unknown)}")
        raise _ParsedError

    whole = argparse.ArgumentParser
    path = [str(ROOT), str((ROOT / name).parent), *sys.path]
    with (
        mock.patch.object(whole, "parse_args", stop),
        mock.patch.object(whole, "parse_known_args", stop),
        mock.patch.object(sys, "argv", [name, *arguments]),
        mock.patch.object(sys, "path", path),
    ):
        try:
            if module:
                runpy.run_module(name, run_name="__main__", alter_sys=False)
            else:
                runpy.run_path(str(ROOT / name), run_name="__main__")
        except _ParsedError:
            return
    raise PageError(f"{name} did not parse its arguments")


def known_options() -> dict[str, set[str]]:
    """The options of each command of rarefy, those of its own commands included."""
    return {name: _options(parser) for name, parser in _subparsers(make_parser()).items()}


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: each for action in actions for name, each in action.choices.items()}


def _options(parser: argparse.ArgumentParser) -> set[str]:
    own = {option for action in parser._actions for option in action.option_strings}
    return own.union(*(_options(each) for each in _subparsers(parser).values()))
