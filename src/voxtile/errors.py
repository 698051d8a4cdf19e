"""The errors a user can cause. Each is one paragraph: what, where, what was expected, what to type next."""

import difflib
import re
from collections.abc import Iterable


class VoxtileError(Exception):
    """An error with a message for the user; commands print it without a traceback and exit with `exit_code`."""

    exit_code = 1
    label = "Error"


class ConfigError(VoxtileError):
    """The configuration names something that does not exist or does not fit together."""

    exit_code = 2
    label = "Configuration error"


class DataError(VoxtileError):
    """A file or a data set is not what it should be."""

    exit_code = 3
    label = "Data error"


class DamagedError(DataError):
    """A file holds pixels that cannot be decoded; what to do about it is not the same in every command.

    Attributes:
        found: what cannot be read, and where.
    """

    def __init__(self, found: str) -> None:
        super().__init__(
            f"{found} The file is probably cut off or damaged there; fetch it again, leave the case out with 'data.exclude=[…]', "
            "or read around it with 'data.scene.area'."
        )
        self.found = found


class AbsentError(DataError):
    """A data set is not where its configuration says; which settings name another place is not the same in every command.

    Attributes:
        found: what is not there, or there instead.
    """

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found} {advice}")
        self.found = found


class RunError(VoxtileError):
    """A run folder is missing, busy, from another version, or its training failed."""

    exit_code = 4
    label = "Run error"


class PartialError(VoxtileError):
    """Some of many inputs failed; the others were finished."""

    exit_code = 5
    label = "Incomplete"


def reason(error: BaseException) -> str:
    """What another library says is wrong, on one line and without a full stop, to stand in a sentence."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) < 300 else text[:300] + " …"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the nearest known word, or an empty string.

    Nothing is said where only digits of the nearest are others, as of another band or date: it is near, and not what was meant.
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    if not close or _without_digits(close[0]) == _without_digits(word):
        return ""
    return f" Did you mean '{close[0]}'?"


def _without_digits(word: str) -> str:
    return re.sub("[0-9]", "0", word)


def counted(number: int, noun: str) -> str:
    """A number with its noun, as in 1 case, 2 cases."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(count: int) -> str:
    """A number of bytes in the largest unit that it fills, as in 35.0 kB, 1.20 GB."""
    for unit, digits, power in (("GB", 2, 9), ("MB", 1, 6), ("kB", 1, 3)):
        if count >= 10**power:
            return f"{count / 10**power:,.{digits}f} {unit}"
    return counted(count, "byte")


def typed(names: Iterable[str], most: int | None = None) -> str:
    """Names as they stand in a list on the command line: '["p#1","b"]'; of more than `most` there is "…" for the others."""
    quoted = ['"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names]
    return "[" + ",".join(quoted[:most] + ["…"] * (most is not None and len(quoted) > most)) + "]"


def sentence(text: str) -> str:
    """A text with a full stop at its end."""
    return text if text.rstrip().endswith((".", "!", "?")) else f"{text.rstrip()}."


def listed(items: Iterable[object], most: int = 8) -> str:
    """Joins items with commas, cutting a long list and saying how many are left out."""
    names = [str(item) for item in items]
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
