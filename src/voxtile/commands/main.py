"""The command `voxtile`: finds the sub-command and hands it the rest of the line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from voxtile import __version__
from voxtile.commands.guard import stopped
from voxtile.commands.surroundings import interruptible, printing, set_right, to_nowhere
from voxtile.errors import did_you_mean

COMMANDS = {
    "train": "train a network, or continue or report a run that was started before",
    "status": "how far runs are, and why they failed",
    "plan": "propose settings for volumes from what the training cases look like",
    "check": "look at a configuration and its data before training",
    "evaluate": "score a run on whole cases of its validation or test split",
    "compare": "look whether the scores of evaluations differ, case by case",
    "predict": "apply a run to new files",
    "export": "write a run's network for use elsewhere: a bundle, ONNX, torch.export",
    "verify": "look whether a run's weights, data and scores are what its folder says",
    "reproduce": "train a run again from what its folder says, and compare bit by bit",
}

# Commands that go on when nobody reads what they print.
MAKING = ("train", "plan", "evaluate", "compare", "predict", "export", "reproduce")
ASKING = {"-h", "--help", "-c", "--cfg", "-i", "--info", "--hydra-help"}  # by which they only print


def usage() -> str:
    """What `voxtile --help` prints."""
    rows = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    return (
        f"voxtile {__version__}: semantic segmentation of medical volumes and satellite scenes\n\n"
        f"usage: voxtile <command> [key=value …]\n\n{rows}\n\n"
        "Each command explains itself: voxtile <command> --help"
    )


def complete(words: Sequence[str]) -> int:
    """Hydra's shell completion, which knows nothing of sub-commands; the shell gives the line so far in `COMP_LINE`."""
    if not words[1:2] or not words[1].startswith("query"):  # install=… and uninstall=… are the same for all
        code: int = import_module("voxtile.commands.train").main(words)
        return code
    line = os.environ.get("COMP_LINE", "")
    name = [*line.split(), "", ""][1]
    if name not in COMMANDS or line.endswith(name):
        print(" ".join(command for command in COMMANDS if command.startswith(name)))
        return 0
    os.environ["COMP_LINE"] = line.replace(f" {name} ", " ", 1)
    code = import_module(f"voxtile.commands.{name}").main(words)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command and returns its exit code.

    0 done, 1 unexpected, or not all could be printed, 2 configuration, 3 data, 4 run, 5 some of many inputs failed, 130 stopped
    by Ctrl-C or SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else [*argv, *sys.argv[1:]])
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        return complete(words)
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(f"voxtile has no command '{name}'.{did_you_mean(name, COMMANDS)}\n\n{usage()}", file=sys.stderr)
        return 2
    # A raster without a georeference is a fine image, and `check` says so. By its text, since rasterio is slow to import.
    warnings.filterwarnings("ignore", "Dataset has no geotransform")
    # From half of the size on that it refuses Pillow warns, of what large micrographs have. By its text likewise.
    warnings.filterwarnings("ignore", r"Image size .* could be decompression bomb")
    set_right()
    told = ASKING & {word.partition("=")[0] for word in rest}
    with interruptible(), printing(makes=name in MAKING and not told) as printed:
        try:
            code: int = import_module(f"voxtile.commands.{name}").main(rest)
            printed.flush()
        except KeyboardInterrupt:
            return stopped()
        except BrokenPipeError:  # the reader, such as `head`, has gone
            to_nowhere(sys.stdout)
            return 1
    return code or int(printed.lost)
