"""Composes written commands as they would be typed, without running what they would start."""

import argparse
import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from voxtile.commands.compose import folder_of, plain
from voxtile.commands.main import COMMANDS

ROOT = Path(__file__).parents[2]
FILES = {
    "train": "train",
    "plan": "plan",
    "check": "train",
    "evaluate": "evaluate",
    "compare": "compare",
    "predict": "predict",
    "status": "status",
    "reproduce": "reproduce",
    "verify": "verify",
    "export": "export",
}  # command -> its configuration


def command_words(line: str) -> list[str] | None:
    """Sub-command and words of a line that calls voxtile, assignments of variables before it aside; None for other lines."""
    if "voxtile " not in line and "train.py" not in line:
        return None
    words = shlex.split(line.replace("<", "").replace(">", ""), comments=True)
    words = list(itertools.dropwhile(lambda word: "=" in word, words))
    if words[:2] == ["python", "train.py"]:
        return ["train", *words[2:]]
    return words[1:] if words[:1] == ["voxtile"] and words[1:2] and words[1] in COMMANDS else None


def composed(words: list[str]) -> list[dict[str, Any]]:
    """The resolved configurations of `voxtile <words>`; of a multirun as many as show every value of every sweep once.

    Raises:
        HydraException: A key, an option or a flag does not exist.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--config-dir")
    parser.add_argument("--cfg", choices=["job"])
    for flags in (("--help", "-h"), ("--multirun", "-m")):
        parser.add_argument(*flags, action="store_true")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args(words[1:])
    search = [f"hydra.searchpath=[file://{Path(given.config_dir).absolute()}]"] if given.config_dir else []
    name = FILES[words[0]]
    with initialize_config_dir(str(folder_of(name)), version_base="1.3"):
        jobs = _jobs(given.overrides) if given.multirun else [given.overrides]
        return [plain(compose(name, [*search, *job])) for job in jobs]


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of jobs that together have every value of every sweep."""
    choices = [
        [f"{parsed.get_key_element()}={value}" for value in _values(parsed)]
        if parsed.is_sweep_override()
        else [parsed.input_line or ""]
        for parsed in OverridesParser.create().parse_overrides(overrides)
    ]
    return [[values[job % len(values)] for values in choices] for job in range(max(map(len, choices)))]


def _values(parsed: Override) -> list[object]:
    """The values of a sweep; of an interval its ends."""
    if parsed.is_interval_sweep():
        return [parsed.value().start, parsed.value().end]
    return list(parsed.sweep_string_iterator())


def fences(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block of a Markdown text, indented ones moved left."""
    language: str | None = None
    lines: list[str] = []
    indent = 0
    for line in text.splitlines():
        if not line.lstrip().startswith("```"):
            lines.append(line[indent:])
        elif language is None:
            language, indent, lines = line.strip().removeprefix("```"), line.index("`"), []
        else:
            yield language, "\n".join(lines) + "\n"
            language = None
