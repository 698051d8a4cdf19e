"""Errors that the user can mend become one paragraph and an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from traceback import print_exception

from voxtile.errors import RunError, VoxtileError, reason

STOPPED = 130  # exit code of a command that was asked to stop


class StoppedError(BaseException):
    """Ends a multirun whose job was asked to stop; not an Exception, since Hydra keeps those of a job and goes on."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a GPU's memory is full; by its name, since PyTorch is slow to import."""
    return type(error).__name__ == "OutOfMemoryError"


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that a library cannot be loaded for lack of memory; by what the system's loader says of it."""
    return isinstance(error, ImportError) and bool(re.search("failed to map segment|annot allocate memory", str(error)))


def stopped() -> int:
    """Says that the command was stopped by Ctrl-C, and returns its exit code."""
    print("Stopped. Give the same command again: it goes on from what was saved, or begins anew.", file=sys.stderr)
    return STOPPED


def guarded(task: Callable[[], int], traceback: bool = False) -> int:
    """Calls `task`; an error that the user can mend is printed as its paragraph and becomes an exit code."""
    try:
        return task()
    except KeyboardInterrupt:
        return stopped()
    except VoxtileError as error:
        problem: VoxtileError = error
    except OSError as error:
        if not error.filename:  # not about a file
            raise
        problem = RunError(
            f"{error.filename} cannot be read or written: {error.strerror}. Expected a folder that this user may write to, with "
            "room; choose where results go with 'paths.runs=…' and 'paths.cache=…'."
        )
        problem.__cause__ = error
    except ImportError as error:
        if not lacks_memory(error):
            raise
        problem = RunError(
            f"A library cannot be loaded, since this process may not have more memory: {reason(error)}. Raise the limit of the "
            "shell ('ulimit -v unlimited'), the job or the container; libraries take some gigabytes of addresses."
        )
        problem.__cause__ = error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        problem = RunError(
            f"The GPU's memory is full: {reason(error)}. Type a smaller 'batch_size=…' of evaluate and predict, a larger "
            "'training.accumulate=…' of train, or smaller windows; see with 'nvidia-smi' who else uses the GPU."
        )
        problem.__cause__ = error
    if traceback:
        print_exception(problem)
    from rich.console import Console

    from voxtile.commands.console import print_any_name

    print_any_name(sys.stderr)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]{problem.label}:[/] ", end="")
    console.print(str(problem), markup=False)
    return problem.exit_code
