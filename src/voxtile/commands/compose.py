"""Hydra, kept in one place: composing a configuration, checking it, and saying what is wrong with it in one paragraph."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

import voxtile
from voxtile.errors import ConfigError, VoxtileError, did_you_mean, listed


def conf_dir() -> Path:
    """The folder of configurations: inside the package when installed, at the top of a checkout otherwise."""
    package = Path(voxtile.__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def folder_of(name: str) -> Path:
    """Where the configuration `name` lies: what a run is made of in `conf`, a command's own settings beside its code.

    The two are kept apart because Hydra takes any override whose key is a group's name, such as `split=val`, for a choice of the
    group.
    """
    own = Path(__file__).parent
    return own if (own / f"{name}.yaml").exists() else conf_dir()


STOPPED = 130  # exit code of a command that was asked to stop
# Hydra's flags that take a word of their own.
_VALUED = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p", "--cfg", "-c")


class _StoppedError(BaseException):
    """Ends a multirun whose job was asked to stop; not an Exception, since Hydra keeps those of a job and goes on."""


def run(name: str, argv: Sequence[str], task: Callable[[dict[str, Any]], int]) -> int:
    """Composes the configuration `name` with the overrides in `argv` and calls `task` on it, once per job of a multirun.

    Args:
        name: a configuration file without its ending, see `folder_of`.
        argv: what the user typed after the command, Hydra's own flags included.
        task: takes the resolved configuration as plain dicts and lists and returns an exit code.

    Returns:
        0, or the largest exit code of the jobs.
    """
    codes: list[int] = [0]

    def job(config: DictConfig) -> None:
        codes.append(guarded(lambda: task(plain(config)), OmegaConf.select(config, "debug_errors", default=False)))
        if codes[-1] == STOPPED:
            raise _StoppedError

    with _arguments(argv):
        try:
            hydra_main(version_base="1.3", config_path=str(folder_of(name)), config_name=name)(job)()
        except _StoppedError:
            return STOPPED
        except SystemExit as end:  # of Hydra's own flags, such as --help
            return int(end.code or 0)
        except (HydraException, OmegaConfBaseException) as error:
            problem: Exception = error
        else:
            return max(codes)
    return guarded(lambda: _explain(problem, name, _config_dirs(argv)))


def guarded(task: Callable[[], int], traceback: bool = False) -> int:
    """Calls `task`; an error that the user can mend is printed as its paragraph and becomes an exit code."""
    try:
        return task()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return STOPPED
    except VoxtileError as error:
        if traceback:
            raise
        from rich.console import Console

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[bold red]{type(error).__name__.removesuffix('Error')}:[/] ", end="")
        console.print(str(error), markup=False)
        return error.exit_code


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration with every interpolation resolved, as dicts and lists.

    Raises:
        ConfigError: An interpolation points nowhere, or a value is missing.
    """
    try:
        content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"'{error.full_key}' has no value. Type '{error.full_key}=…'.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"The configuration cannot be resolved: {str(error).splitlines()[0]}.") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


@contextmanager
def _arguments(argv: Sequence[str]) -> Iterator[None]:
    """Puts `argv` where Hydra reads it, and lets errors through instead of having Hydra print them and exit."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [before[0], *_flags_first(argv)]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


def _flags_first(argv: Sequence[str]) -> list[str]:
    """The same words with flags before overrides: Hydra's parser takes no override after a flag that follows one."""
    flags: list[str] = []
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        if word.startswith("-"):
            flags.append(word)
            flags += [next(words, "")] if word in _VALUED else []
        else:
            overrides.append(word)
    # A flag with an optional word must not swallow the first override.
    return [*flags, "--", *overrides] if flags and overrides else [*flags, *overrides]


def _config_dirs(argv: Sequence[str]) -> list[Path]:
    """Our folder of configurations, and the one that the user adds with `--config-dir`."""
    added = [Path(value) for flag, value in pairwise(argv) if flag in ("--config-dir", "-cd")]
    added += [Path(word.split("=", 1)[1]) for word in argv if word.startswith("--config-dir=")]
    return [conf_dir(), *added]


def known_keys(name: str) -> list[str]:
    """Every path of the default configuration `name`, and its groups."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder_of(name)), version_base="1.3"):
        config = compose(name)
    keys: list[str] = []

    def walk(node: Any, path: str) -> None:
        if OmegaConf.is_dict(node):
            for key in node:
                keys.append(f"{path}{key}")
                walk(node._get_node(key), f"{path}{key}.")

    walk(config, "")
    groups = [entry.name for entry in folder_of(name).iterdir() if entry.is_dir() and not entry.name.startswith("_")]
    return [*keys, *groups]


def _explain(error: Exception, name: str, folders: Sequence[Path]) -> int:
    """Turns Hydra's error into a paragraph of ours; its advice to add '+' would hide a misspelt key."""
    text = str(error) or str(error.__cause__)
    if missing := re.search(r"(?:Could not find|In '[^']*': Could not find) '([^']+)'", text):
        group, _, option = missing[1].rpartition("/")
        if not group or not any((folder / group).is_dir() for folder in folders):
            raise ConfigError(f"There is no configuration '{missing[1]}'.{did_you_mean(missing[1], known_keys(name))}") from error
        options = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        raise ConfigError(
            f"'{group}={option}' does not exist.{did_you_mean(option, options)} The options of '{group}' are: "
            f"{listed(options, 30)}."
        ) from error
    if key := re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        path = key[1].split("@")[0]
        known = known_keys(name)
        hint = did_you_mean(path, known) or did_you_mean(path, [k.split(".")[-1] for k in known])
        raise ConfigError(f"The configuration has no key '{path}'.{hint} All keys: voxtile {name} --cfg job") from error
    raise ConfigError(f"The configuration cannot be composed: {' '.join(text.split())}") from error
