"""The words of a command line: what a user typed, as Hydra can read it, and what is printed to be typed next."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from voxtile.errors import ConfigError

# Settings that hold a path or a name: whatever stands there is text, also `scene (1).tif`, `1_000` and `a,b.tif`.
TEXTS = (
    "run", "input", "output", "root", "paths.data", "paths.runs", "paths.cache", "data.layout.root", "data.name",
    "data.group.csv", "split.file", "areas",
)  # fmt: skip
LISTS = ("runs", "evaluations", "data.exclude", "data.waive")  # settings that hold one such text, or a list of them


def quoted(text: str) -> str:
    """A text as a value that Hydra reads back as this text."""
    if re.fullmatch(r"[A-Za-z/.][A-Za-z0-9/._@-]*", text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    # Before a quote, or at the end, a backslash would escape; it is doubled there.
    inner = re.sub(r"(\\*)'", r"\1\1\\'", text)
    inner = re.sub(r"(\\+)$", r"\1\1", inner)
    return f"'{inner}'"


def escaped(key: str) -> str:
    """A key of a mapping as Hydra reads it back; its grammar knows no quotes there, and no letters with accents."""
    return re.sub(r"([\\()\[\]{}:=,\s])", r"\\\1", key)


def word(key: str, text: object) -> str:
    """`key=text` as it is typed in a shell."""
    return shlex.quote(f"{key}={quoted(str(text))}")


def list_word(key: str, texts: Iterable[object]) -> str:
    """`key=[text,text]` as it is typed in a shell."""
    return shlex.quote(f"{key}=[{','.join(quoted(str(text)) for text in texts)}]")


def command_line() -> str:
    """What the user types to train with the configuration that was composed."""
    program = ["python", sys.argv[0]] if Path(sys.argv[0]).name == "train.py" else ["voxtile", "train"]
    return shlex.join([*program, *(word for word in sys.argv[1:] if word != "--")])


def check_whole(argv: Sequence[str]) -> None:
    """Refuses a word that the shell has cut at a space inside its brackets.

    Raises:
        ConfigError: A word has an opening bracket and no closing one.
    """
    for number, given in enumerate(argv):
        key, _, value = given.partition("=")
        if not value.startswith(("{", "[")) or key in TEXTS or not _is_open(value):
            continue
        for end in range(number + 2, len(argv) + 1):
            if not _is_open(whole := " ".join(argv[number:end])):
                raise ConfigError(
                    f"'{given}' ends within its brackets: a shell begins a new word at each space. Put all of it in quotes: "
                    f"{shlex.quote(whole)}."
                )
        raise ConfigError(f"'{given}' has a bracket that is not closed. Close it, and put the whole word in quotes.")


def _is_open(text: str) -> bool:
    return any(text.count(start) > text.count(end) for start, end in ("{}", "[]"))


def listed_choice(word: str) -> str:
    """`key=choice(null,1)` as `key=null,1`, which means the same: Hydra's `choice` takes no null."""
    return re.sub(r"(=)choice\((.*\bnull\b.*)\)$", r"\1\2", word)


def readable(words: Sequence[str], several: bool = False) -> list[str]:
    """The same overrides, with values in quotes that are meant as text and that Hydra's grammar would refuse or read otherwise.

    Args:
        words: as the user typed them.
        several: whether values with commas are for several runs.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()

    def one(given: str) -> str:
        key, equals, value = given.partition("=")
        if not equals or not re.fullmatch(r"[+~]{0,2}[\w./@:]+", key):
            return given
        if re.fullmatch(r"'.*'|\".*\"|null|.*\$\{.*", value, re.DOTALL) or not value:
            return given
        text = key in TEXTS or (key in LISTS and not value.startswith("["))
        if text and not (several and "," in value):
            return f"{key}={quoted(value)}"
        given = listed_choice(given) if several else given
        try:
            parser.parse_override(given)
        except HydraException:
            return f"{key}={quoted(value)}"
        return given

    return [one(given) for given in words]
