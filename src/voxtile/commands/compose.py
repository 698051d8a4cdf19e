"""Hydra, kept in one place: composing a configuration, and running a task on it, or on each of a multirun."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra import main as hydra_main
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

import voxtile
from voxtile.commands.checks import with_names
from voxtile.commands.console import console
from voxtile.commands.guard import STOPPED, StoppedError, guarded, stopped, was_stopped
from voxtile.commands.heap import keep_heap
from voxtile.commands.own import blaming
from voxtile.commands.words import check_whole, escaped, quoted, readable
from voxtile.errors import ConfigError, VoxtileError, did_you_mean, reason
from voxtile.values import refuse_unknown


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


# Hydra's flags that take a word of their own, by their long names, and those that are answered here.
_LONG = {
    "-h": "--help",
    "-m": "--multirun",
    "-cd": "--config-dir",
    "-cp": "--config-path",
    "-cn": "--config-name",
    "-c": "--cfg",
    "-p": "--package",
}
_OTHERS = (
    "--hydra-help", "--version", "--resolve", "--run", "-r", "--shell-completion", "-sc", "--experimental-rerun", "--info", "-i",
)  # fmt: skip
_VALUED = ("--config-dir", "--config-path", "--config-name", "--package", "--cfg")
_OWN = {"--help", "--cfg", "--config-dir"}
Flags = Mapping[str, Sequence[str]]  # as `_parsed` gives them


# Name, overrides and further folders of the configuration that the running job was composed from.
_CURRENT: ContextVar[tuple[str, list[str], list[Path]]] = ContextVar("composed", default=("train", [], []))


def further_folders() -> list[Path]:
    """The folders of configurations, beside ours, that the running job was composed from."""
    return _CURRENT.get()[2]


def current_words() -> list[str]:
    """The overrides of the running job."""
    return _CURRENT.get()[1]


def run(name: str, argv: Sequence[str], task: Callable[[dict[str, Any]], int], about: str = "") -> int:
    """Composes the configuration `name` with the overrides in `argv` and calls `task` on it, once per job of a multirun.

    Args:
        name: a configuration file without its ending, see `folder_of`.
        argv: what the user typed after the command, Hydra's own flags included.
        task: takes the resolved configuration as plain dicts and lists and returns an exit code.
        about: what `--help` says of the command first, where the configuration is another command's.

    Returns:
        0, or the largest exit code of the jobs.
    """
    codes: list[int] = [0]
    flags, typed = _parsed(argv)
    overrides: list[str] = []
    folders = [Path(value) for value in flags.get("--config-dir", [])]

    def job(config: DictConfig) -> None:
        if HydraConfig.initialized():  # Hydra's own command line has composed
            hydra = HydraConfig.get()
            _refuse_shadowed(hydra.runtime.choices, folder_of(name), folders)
            config = _with_choices(config, hydra.runtime.choices)
            _CURRENT.set((name, list(hydra.overrides.task), folders))
        else:
            _CURRENT.set((name, overrides, folders))
        keep_heap()
        with cache_at(OmegaConf.select(config, "paths.cache")):
            codes.append(guarded(lambda: _called(task, config), OmegaConf.select(config, "debug_errors", default=False)))
        if codes[-1] == STOPPED:
            raise StoppedError

    try:
        if missing := [value for value in flags.get("--config-dir", []) if not value or not Path(value).is_dir()]:
            raise ConfigError(
                f"The folder '{missing[0]}' of '--config-dir' does not exist. Name the one that holds data/, model/, …."
            )
        check_whole(typed)
        _refuse_no_flags(name, flags)
        _refuse_bare(name, typed)
        overrides = without_nulls(readable(typed, several="--multirun" in flags), groups_of(name))
        _CURRENT.set((name, overrides, folders))
        with _arguments(flags, overrides):
            if not flags.keys() <= _OWN or flags.get("--cfg", ["job"])[-1] != "job":
                with _arguments(*_searching(flags, overrides, folders)):
                    hydra_main(version_base="1.3", config_path=str(folder_of(name)), config_name=name)(job)()
                return max(codes)
            config = composed(name, overrides, folders)
            if "--help" in flags:
                print(_help(config, name, about))
            elif "--cfg" in flags:
                print(OmegaConf.to_yaml(_without_hydra(config)), end="")
            else:
                job(_with_choices(_without_hydra(config), config.hydra.runtime.choices))
        return max(codes)
    except StoppedError:
        return STOPPED
    except SystemExit as end:  # of Hydra's own flags
        return int(end.code or 0)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, VoxtileError) as error:
        problem: Exception = error
    except UnicodeDecodeError as error:
        if (file := _not_text(folders)) is None:
            raise
        problem = ConfigError(f"{file} is no UTF-8 text: {reason(error)}. Save it as UTF-8, without a byte-order mark.")
    except ValueError as error:
        if "Config group override must be a string" not in str(error):
            raise
        problem = ConfigError(f"An option is chosen by its name: {reason(error)}. Look at the group with 'voxtile {name} --help'.")
    if was_stopped(problem):
        return stopped()
    from voxtile.commands.explain import explain

    return guarded(lambda: explain(problem, name, [conf_dir(), *folders]))


def _not_text(folders: Sequence[Path]) -> Path | None:
    """The first file of configurations that is no UTF-8: the error of whoever reads it does not name it."""
    for file in (file for folder in folders for file in sorted(folder.rglob("*.yaml"))):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return file
    return None


def _refuse_no_flags(name: str, flags: Flags) -> None:
    """Refuses what looks like a flag and is none of Hydra's, which would answer with its whole usage.

    Raises:
        ConfigError: A word with dashes is no flag.
    """
    known = (*_LONG.values(), *_OTHERS)
    for flag, words in flags.items():
        if flag != "--" and flag not in known and not any(flag.startswith("--") and each.startswith(flag) for each in known):
            from voxtile.commands.explain import no_flag

            raise ConfigError(no_flag(words[0], name))


def _refuse_bare(name: str, words: Sequence[str]) -> None:
    """Refuses a word that sets nothing, such as a path alone, which Hydra's grammar would answer with its own terms.

    Raises:
        ConfigError: A word is neither 'key=value' nor '~key'.
    """
    if bare := [word for word in words if not re.match(r"\+*\w[^=]*=|~", word)]:
        from voxtile.commands.explain import bare_word

        raise ConfigError(bare_word(bare[0], name))


def _called(task: Callable[[dict[str, Any]], int], config: DictConfig) -> int:
    """Calls the task with a job's configuration."""
    try:
        _refuse_others(_CURRENT.get()[0], config)
        for sentence in _overruled(config):
            console().print(sentence, style="yellow", soft_wrap=True)
        with blaming(OmegaConf.to_object(trust) if isinstance(trust := config.get("trust"), ListConfig) else ()):
            return task(plain(config))
    except VoxtileError as error:
        from voxtile.commands.explain import tell_of_merging, tell_of_typed

        tell_of_merging(error, config)
        tell_of_typed(error)
        raise


def _refuse_others(name: str, config: DictConfig) -> None:
    """Refuses what was added with + to a command's own settings; those that a run is made of are looked at where it is built.

    Raises:
        ConfigError: A setting is none of the command's.
    """
    if (folder := folder_of(name)) == conf_dir():
        return
    known = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    given = OmegaConf.to_container(config)
    assert isinstance(given, dict)
    for where, own, added in (
        (f"voxtile {name}", {key: known[key] for key in known if key not in ("defaults", "hydra")}, given),
        ("paths", known.get("paths", {}), given.get("paths")),
    ):
        if isinstance(added, dict):
            refuse_unknown(where, [key for key in added if key != "chosen"], own)


def _overruled(config: DictConfig) -> Iterator[str]:
    """A sentence about each typed word that has another value than the chosen way of debugging sets."""
    option = OmegaConf.select(config, "chosen.debug")
    files = [folder / "debug" / f"{option}.yaml" for folder in (*further_folders(), conf_dir())]
    for file in [file for file in files if file.is_file()][:1]:
        set_there = OmegaConf.load(file)
        for word in current_words():
            value = OmegaConf.select(set_there, key_of(word))
            if not isinstance(value, DictConfig | None) and value != OmegaConf.select(config, key_of(word)):
                yield f"'{word}' takes the place of '{key_of(word)}={value}', which 'debug={option}' sets"


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration with every interpolation resolved, as dicts and lists.

    Raises:
        ConfigError: An interpolation points nowhere, a value is missing, or a list of cases cannot be read.
    """
    try:
        content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"'{error.full_key}' has no value. Type '{error.full_key}=…'.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"The configuration cannot be resolved: {reason(error)}.") from error
    assert isinstance(content, dict)
    return with_names({str(key): value for key, value in content.items()})


@contextmanager
def cache_at(folder: str | None) -> Iterator[None]:
    """Lets the cache of decoded files, which knows no configuration, and processes that are started follow `paths.cache`."""
    before = os.environ.get("VOXTILE_CACHE")
    if folder is not None:
        os.environ["VOXTILE_CACHE"] = folder
    try:
        yield
    finally:
        if before is not None:
            os.environ["VOXTILE_CACHE"] = before
        elif folder is not None:
            del os.environ["VOXTILE_CACHE"]


@contextmanager
def _arguments(flags: Flags, overrides: Sequence[str]) -> Iterator[None]:
    """Puts words where Hydra reads them, and lets errors through instead of having Hydra print them and exit."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    words = [
        word for flag, values in flags.items() for value in values for word in ((flag, value) if flag in _VALUED else (value,))
    ]
    # Flags first, since Hydra's parser takes no override after a flag that follows one, and none of them may swallow an override.
    sys.argv = [before[0], *words, *(["--"] if words and overrides else []), *overrides]
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


def _parsed(words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Flags and overrides; of each flag, by its long name, the values that it was given, or the words where it takes none."""
    flags: dict[str, list[str]] = {}
    overrides: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flag, joined, value = word.partition("=")
        meant = [name for name in _LONG.values() if flag.startswith("--") and name.startswith(flag)]  # Hydra takes beginnings
        flag = meant[0] if len(meant) == 1 else _LONG.get(flag, flag)
        flags.setdefault(flag, []).append(word if flag not in _VALUED else value if joined else next(rest, ""))
    return flags, overrides


def composed(name: str, overrides: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """One configuration, Hydra's own part included. Composed here, once: Hydra's command line does it twice, and more for help."""
    GlobalHydra.instance().clear()
    search = [_searchpath(folders)] if folders else []
    with initialize_config_dir(str(folder_of(name)), version_base="1.3"):
        found = hydra_compose(name, [*search, *overrides], return_hydra_config=True)
    _refuse_shadowed(found.hydra.runtime.choices, folder_of(name), folders)
    return found


def _refuse_shadowed(choices: Mapping[str, str | None], shipped: Path, folders: Sequence[Path]) -> None:
    """Refuses a chosen option that the user has a file for, too: Hydra takes voxtile's own, and the other counts for nothing.

    Raises:
        ConfigError: There is one.
    """
    for group, option in choices.items():
        file = Path(group) / f"{option}.yaml"
        own = [folder / file for folder in folders if (folder / file).is_file()]
        if own and (shipped / file).is_file() and not own[0].samefile(shipped / file):
            raise ConfigError(
                f"{own[0]} has the name of the '{group}={option}' that comes with voxtile, which would be taken in its place. "
                f"Rename the file, and type '{group}=<its new name>'."
            )


def _searchpath(folders: Sequence[Path]) -> str:
    return f"hydra.searchpath=[{','.join(quoted(f'file://{folder.absolute()}') for folder in folders)}]"


def _searching(flags: Flags, overrides: Sequence[str], folders: Sequence[Path]) -> tuple[Flags, list[str]]:
    """The words with all folders of `--config-dir`, of which Hydra's own command line takes one only."""
    if len(folders) < 2:
        return flags, list(overrides)
    return {flag: values for flag, values in flags.items() if flag != "--config-dir"}, [_searchpath(folders), *overrides]


def _with_choices(config: DictConfig, choices: Mapping[str, str | None]) -> DictConfig:
    """Notes which option of each group was chosen: run folders and tables are named by them.

    Raises:
        ConfigError: An option's file names a key twice.
    """
    from voxtile.commands.checks import check_files

    kept = config.copy()
    with open_dict(kept):
        kept.chosen = {group: option for group, option in choices.items() if not group.startswith("hydra/")}
    check_files(kept.chosen, [conf_dir(), *further_folders()])
    return kept


def again(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The running job's configuration composed once more, resolved, with some overrides changed.

    Args:
        changes: value by key or group; they take the place of what was given for the same key. What was given for an argument of
            `model` that the network has not after these changes is left out.
    """
    from voxtile.commands.explain import known_keys

    name, overrides, _ = _CURRENT.get()
    kept = [word for word in overrides if key_of(word) not in changes]
    added = [f"{key}={as_typed(value)}" for key, value in changes.items()]
    while True:
        try:
            return beside(name, without_nulls([*kept, *added], groups_of(name)))
        except (HydraException, OmegaConfBaseException) as error:
            unknown = re.search(r"Could not override '(model\.[^']+)'", str(error))
            fitting = [word for word in kept if unknown is None or key_of(word) != unknown[1]]
            if fitting == kept:
                known = re.search(r"Could not override '([^']+)'", str(error))
                what = f"there is no '{known[1]}'.{did_you_mean(known[1], known_keys(name))}" if known else reason(error)
                raise ConfigError(f"The configuration cannot be composed with {', '.join(added)}: {what}") from error
            kept = fitting


def beside(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Another configuration than the running job's, resolved, from the same folders."""
    before = GlobalHydra.instance().hydra
    try:
        return job_config(composed(name, overrides, further_folders()))
    finally:
        GlobalHydra.instance().hydra = before  # a multirun goes on with its own


def key_of(word: str) -> str:
    """What an override sets."""
    return word.partition("=")[0].lstrip("+")


def as_typed(value: Any) -> str:
    """A value in the grammar of overrides."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{escaped(str(key))}:{as_typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_typed, value)) + "]"
    if isinstance(value, str):
        return quoted(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def job_config(config: DictConfig) -> dict[str, Any]:
    """A job's configuration as its task takes it, from the one that Hydra composed for a launcher."""
    return plain(_with_choices(_without_hydra(config), config.hydra.runtime.choices))


def _without_hydra(config: DictConfig) -> DictConfig:
    kept = config.copy()
    with open_dict(kept):
        del kept["hydra"]
    return kept


def _help(config: DictConfig, name: str, about: str = "") -> str:
    """What `--help` prints: the template of the configuration, with groups and settings; `about` in the place of its header."""
    folder = folder_of(name)
    rows = [f"{group}: {', '.join(options_of(folder, group))}" for group in groups_of(name)]
    text: str = config.hydra.help.template
    if about:
        text = text.replace(config.hydra.help.header, about)
    settings = _without_hydra(config)
    shown = ""
    if name != "train":  # whose groups and ways of debugging set what its file holds
        shown, own = _own_settings(folder / f"{name}.yaml")
        with open_dict(settings):
            for key in own:
                settings.pop(key, None)
    shown += OmegaConf.to_yaml(settings) if settings else ""  # of plan also what a run is made of
    return text.replace("$APP_CONFIG_GROUPS", "\n".join(row for row in rows if row[-2] != ":")).replace("$CONFIG", shown)


def _own_settings(file: Path) -> tuple[str, list[str]]:
    """What a command's file sets, as it stands there, with the comments beside it; and the keys."""
    text = file.read_text(encoding="utf-8")
    found = re.search(r"^defaults:\n(?: [^\n]*\n)*\n*(.*?)^hydra:$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return f"{found[1].rstrip()}\n", list(yaml.safe_load(found[1]))


def groups_of(name: str) -> list[str]:
    """The groups of the configuration `name`."""
    folder = folder_of(name)
    found = (entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("_"))
    return sorted(found) if folder == conf_dir() else []


def options_of(folder: Path, group: str) -> list[str]:
    """The options of a group, those in folders of their own as `monai/unet`, after the others; hidden files are no options."""
    files = sorted((folder / group).rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    own = [path.relative_to(folder / group).with_suffix("") for path in files]
    return [option.as_posix() for option in own if not any(part.startswith(".") for part in option.parts)]


def without_nulls(words: Sequence[str], groups: Sequence[str]) -> list[str]:
    """The words without `debug=null` and `experiment=null`, which are so anyway, and which Hydra does not take.

    Raises:
        ConfigError: Another group is to be null.
    """
    for word in words:
        group, _, value = word.partition("=")
        if group in groups and value == "null" and group not in ("debug", "experiment"):
            raise ConfigError(f"'{word}': a run needs a '{group}'. Type '{group}=<option>'; conf/{group} holds the options.")
    return [word for word in words if word not in ("debug=null", "experiment=null")]
