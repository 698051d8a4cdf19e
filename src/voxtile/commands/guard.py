"""Errors that the user can mend become one paragraph and an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from errno import EAGAIN, ENOMEM
from traceback import print_exception

from voxtile.errors import RunError, VoxtileError, reason

STOPPED = 130  # exit code of a command that was asked to stop


class StoppedError(BaseException):
    """Ends a multirun whose job was asked to stop; not an Exception, since Hydra keeps those of a job and goes on."""


def no_memory(error: Exception) -> str | None:
    """What to say of an error that comes from a lack of memory: of a GPU's, a library's, an array's; None of any other error.

    A thread that the system refuses counts as one, too.
    """
    if type(error).__name__ == "OutOfMemoryError":  # by its name, since PyTorch is slow to import
        return (
            f"The GPU's memory is full: {reason(error)}. Type a smaller 'batch_size=…' of evaluate and predict, a larger "
            "'training.accumulate=…' of train, or smaller windows; see with 'nvidia-smi' who else uses the GPU."
        )
    if isinstance(error, ImportError) and re.search("failed to map segment|annot allocate memory", str(error)):  # the loader's
        return (
            f"A library cannot be loaded, since this process may not have more memory: {reason(error)}. Raise the limit of the "
            "shell ('ulimit -v unlimited'), the job or the container; libraries take some gigabytes of addresses."
        )
    refused = isinstance(error, OSError) and error.errno == ENOMEM  # by the system, which maps files and starts processes
    pytorchs = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if isinstance(error, MemoryError) or refused or pytorchs:
        return (
            f"There is not enough memory: {reason(error)}. Type a smaller 'batch_size=…' of evaluate and predict, a larger "
            "'training.accumulate=…' of train, fewer 'workers=…', or smaller windows; or raise the limit of the shell "
            "('ulimit -v unlimited'), the job or the container."
        )
    no_process = isinstance(error, OSError) and error.errno == EAGAIN and not error.filename
    if no_process or (isinstance(error, RuntimeError) and str(error) == "can't start new thread"):  # Python's
        return (
            "This user or container may have no more processes and threads: the system refused one. Type fewer 'workers=…' of "
            "train, evaluate and predict, run fewer commands at once, or raise the limit of the shell ('ulimit -u' shows it), the "
            "job or the container."
        )
    return None


def _no_file(error: Exception) -> str | None:
    """What to say of a file that cannot be read or written; None of an error that is not about a file."""
    if not isinstance(error, OSError) or not error.filename:
        return None
    return (
        f"{error.filename} cannot be read or written: {error.strerror}. Expected a folder that this user may write to, with room; "
        "choose where results go with 'paths.runs=…' and 'paths.cache=…'."
    )


def was_stopped(error: BaseException | None) -> bool:
    """Whether an error was raised while a command was being stopped, by a library's clearing up."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def stopped() -> int:
    """Says that the command was stopped by Ctrl-C or SIGTERM, and returns its exit code."""
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
    except Exception as error:
        if was_stopped(error):
            return stopped()
        if (said := no_memory(error) or _no_file(error)) is None:
            raise
        problem = RunError(said)
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
