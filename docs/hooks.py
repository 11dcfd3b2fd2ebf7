"""Pages of the site that are generated (the command line) or lie at the root of the repository (CHANGELOG.md)."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
AT_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md")
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?!https?:|#)(?:\.\./)?((?!docs/)[\w.-]+(?:/[\w./-]*)?)(#[\w-]+)?\)")


def wide(prog: str) -> argparse.HelpFormatter:
    """Lines of one width, whatever the terminal."""
    return argparse.HelpFormatter(prog, width=96)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of docs/."""
    for name in AT_ROOT:
        files.append(File.generated(config, name, content=moved((ROOT / name).read_text(encoding="utf-8"))))
    files.append(File.generated(config, "CLI.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links from docs/ to the root lead to the same page here, or become the path of the file."""
    for name in AT_ROOT:
        markdown = markdown.replace(f"](../{name}", f"]({name}")
    return OUTSIDE.sub(lambda link: _outside(link[0], link[1], link[2]) if "](../" in link[0] else link[0], markdown)


def moved(text: str) -> str:
    """A page of the root as a page of docs/: links to docs/ become links next to it, links to code become its path."""
    text = text.replace("](docs/", "](").replace('"docs/', '"')
    return OUTSIDE.sub(lambda link: _outside(link[0], link[1], link[2]), text)


def _outside(whole: str, text: str, path: str) -> str:
    if (ROOT / "docs" / path).exists() or path in AT_ROOT:
        return whole
    return text if path in text else f"{text} (`{path}`)"


def command_line() -> str:
    """The reference of all commands, from the parser itself."""
    from rarefy.cli import make_parser

    parser = make_parser()
    parts = ["# Command line", "Written by `rarefy.cli.make_parser`, which also prints `rarefy COMMAND --help`."]
    for name, command in subcommands(parser).items():
        parts += section(f"rarefy {name}", command, 2)
    return "\n\n".join(parts)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    choices: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            choices |= action.choices
    return choices


def section(title: str, command: argparse.ArgumentParser, level: int) -> list[str]:
    """One command: what it does, its usage, its arguments and its examples."""
    command.formatter_class = wide
    usage = command.format_usage().removeprefix("usage: ").strip().replace("\n" + " " * len("usage: "), "\n")
    parts = [f"{'#' * level} {title}", escaped(command.description or ""), f"```text\n{usage}\n```"]
    rows = [row(action) for action in command._actions if action.help not in (None, argparse.SUPPRESS)]
    shown = [each for each in rows if not each.startswith("| `-h")]
    if shown:
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *shown]))
    if command.epilog:
        parts.append(f"```text\n{command.epilog.strip()}\n```")
    for name, each in subcommands(command).items():
        parts += section(f"{title} {name}", each, level + 1)
    return parts


def row(action: argparse.Action) -> str:
    """One line of the table of arguments."""
    if not action.option_strings:
        return f"| `{action.metavar or action.dest}` | {escaped(action.help)} |"
    choices = " or ".join(map(str, action.choices or ()))
    value = "" if action.nargs == 0 else f" `{action.metavar or choices or action.dest.upper()}`"
    names = ", ".join(f"`{option}`" for option in action.option_strings)
    return f"| {names}{value} | {escaped(action.help)} |"


def escaped(text: Any) -> str:
    """Text of a help message as Markdown."""
    return re.sub(r"([|<>*_\[\]])", r"\\\1", str(text).replace("%%", "%"))
