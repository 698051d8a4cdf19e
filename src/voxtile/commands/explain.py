"""What is wrong with a configuration that Hydra cannot compose, or a task cannot take, in one paragraph."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from voxtile.cases.scene import Scene
from voxtile.commands.compose import composed, current_words, folder_of, groups_of, key_of, options_of
from voxtile.errors import ConfigError, VoxtileError, did_you_mean, listed

SCENE = "data.scene."
OPEN = (  # what a data set's file may extend
    "data.labels.", "data.group.", "data.symmetry.", "data.colors.", "data.layout.", "data.sampling.class_weights.",
    "data.vectors.values.", SCENE, "data.regions.",
)  # fmt: skip

ELSEWHERE = {  # what other frameworks or commands call it, and the key here
    "epochs": "training.steps", "max_epochs": "training.steps", "num_epochs": "training.steps", "max_steps": "training.steps",
    "learning_rate": "optimizer.lr", "val_interval": "training.val_every", "val_check_interval": "training.val_every",
    "data": "dataset", "run": "evaluations", "runs": "evaluations",
}  # fmt: skip


def explain(error: Exception, name: str, folders: Sequence[Path]) -> int:
    """Turns Hydra's error into a paragraph of ours; its advice to add '+' would hide a misspelt key."""
    if isinstance(error, VoxtileError):
        raise error
    if isinstance(error, yaml.YAMLError):
        raise ConfigError(f"A configuration file is no YAML: {' '.join(str(error).split())}. Correct it there.") from error
    text = str(error) or str(error.__cause__)
    if missing := re.search(r"(?:Could not find|In '[^']*': Could not find) '([^']+)'", text):
        group, _, option = missing[1].partition("/")
        if not group or not any((folder / group).is_dir() for folder in folders):
            raise ConfigError(f"There is no configuration '{missing[1]}'.{did_you_mean(missing[1], known_keys(name))}") from error
        options = sorted({option for folder in folders for option in options_of(folder, group)}) or ["none"]
        own = "" if len(folders) > 1 else " An option in a folder of your own needs '--config-dir <folder>'."
        raise ConfigError(
            f"'{group}={option}' does not exist.{did_you_mean(option, options)} The options of '{group}' are: "
            f"{listed(options, 30)}.{own}"
        ) from error
    if merged := re.search(r"Error merging override ([^\s=]+)=(.*)", text):
        named = not merged[2].startswith("{")
        holds, example = ("settings by name", "{<name>: <value>}") if named else ("a list", "[<value>, <value>]")
        raise ConfigError(
            f"'{merged[1]}={merged[2]}' does not fit there: '{merged[1]}' holds {holds}. Type it so, in quotes: "
            f"'{merged[1]}={example}'."
        ) from error
    if "Ambiguous value" in text or "requires --multirun" in text:
        first_line = text.partition("\n")[0]
        more = " A list needs brackets, '<key>=[a,b]'." if "Ambiguous value" in text else ""
        raise ConfigError(f"Several values are for several runs: type '-m' too. {first_line}{more}") from error
    if key := re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        path = key[1].split("@")[0]
        known = known_keys(name)
        if path.startswith("model.") and any(key.startswith("model.") for key in known):
            raise ConfigError(_of_network(path, name, folders[1:])) from error
        if options := _options_with(path, name):
            raise ConfigError(
                f"'{path}' is a setting of {listed(options, 20)}, and something else was chosen. Type '{options[-1]}' too, or take "
                "the setting out."
            ) from error
        if typed := re.search(r"use \+[^\s={]+=(\{.*\})", text):
            raise ConfigError(
                f"'{path}={typed[1]}' would be added to the entries that '{path}' has, and names new ones. Type "
                f"'+{path}={typed[1]}' to have them beside the others, or '~{path}' before it to have them instead of the others."
            ) from error
        if path.startswith(OPEN) and (numbered := _numbered(path, next((w for w in current_words() if path in w), path))):
            raise ConfigError(numbered) from error
        if path.startswith(SCENE):
            names = [field.name for field in fields(Scene)]
            if (word := path.removeprefix(SCENE).partition(".")[0]) not in names:
                raise ConfigError(
                    f"'data.scene' takes no '{word}'.{did_you_mean(word, names)} It takes {listed(names, 20)}."
                ) from error
        if path in known or path.startswith(OPEN):
            raise ConfigError(
                f"What was chosen has no '{path}' to set. Add it with '+{path}=…', and take what it should replace out with '~…'."
            ) from error
        raise ConfigError(
            f"The configuration has no key '{path}'.{_meant(path, known)} All keys: voxtile {name} --cfg job"
        ) from error
    said = " ".join(text.split())
    if there := re.search(r"An item is already at '[^']+'\. Either remove \+ prefix: '([^']+)'", said):
        raise ConfigError(f"'{there[1].partition('=')[0]}' is there already: type '{there[1]}', without the plus.") from error
    if odd := next((word for word in current_words() if not _is_read(word)), None):
        before = odd.partition("=")[0].lstrip("+~")
        raise ConfigError(
            _numbered(re.sub(r"\.\{(-?\d+)\}$", r".\1", before), odd)
            or f"'{odd}' cannot be read: what is set, '{before}', must be letters without accents, digits and '_', with dots "
            "between the names. Other names go into a mapping: '<path>={<name>: <value>}'."
        ) from error
    raise ConfigError(f"The configuration cannot be composed: {said}") from error


def _is_read(word: str) -> bool:
    """Whether an override is one to Hydra's grammar."""
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _numbered(path: str, word: str) -> str:
    """What to say of a word with a path that ends in a whole number, as no path does; "" of any other."""
    if not (split := re.fullmatch(r"(.+)\.(-?\d+)", path)):
        return ""
    parent, key = split.groups()
    said = f"'{word}': the keys of '{parent}' are whole numbers, and a path cannot name one. "
    if word.startswith("~"):
        ignored = f"have its pixels ignored, '{parent}={{{key}: ignore}}', or " if parent == "data.labels" else ""
        return f"{said}To take {key} out, {ignored}type what there shall be instead: '~{parent}' '+{parent}={{<key>: <value>, …}}'."
    return f"{said}Type '{parent}={{{key}: {word.partition('=')[2] or '…'}}}'."


def no_flag(word: str, name: str) -> str:
    """What to say of a word that looks like a flag and is none."""
    key = word.lstrip("-").partition("=")[0].replace("-", "_")
    return f"'{word}' is no flag: settings are typed 'key=value', without dashes.{_meant(key, known_keys(name))}"


def bare_word(word: str, name: str) -> str:
    """What to say of a word of the command `name` that is no 'key=value'."""
    folder, said = folder_of(name), f"'{word}' sets nothing: what follows a command is 'key=value'."
    if (folder / "model").is_dir():
        typed = [f"{key}=…" for key in known_keys(name) if key == word]
        typed += [f"{group}={word}" for group in groups_of(name) if word in options_of(folder, group)]
        return f"{said} Type '{[*typed, '<setting>=…'][0]}'; 'voxtile {name} --help' lists all settings."
    settings = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    key = next(key for key in settings if key not in ("defaults", "hydra"))  # what a command is about stands first in its file
    if word in settings:
        return f"{said} Type '{word}=…'."
    if not (Path(word).expanduser() / "recipe.json").is_file():
        key = {"runs": "paths.runs"}.get(key, "input" if "input" in settings else key)
    return f"{said} Type '{key}={word}'."


def _meant(path: str, known: Sequence[str]) -> str:
    """A sentence with the key that a misspelt one, one without its section, or another framework's name for it may mean."""
    shortest = sorted(known, key=lambda key: (key.startswith("hydra."), key.count(".")))  # own keys before those of parts of parts
    by_end = {key.rpartition(".")[2]: key for key in reversed(shortest)}
    if (key := ELSEWHERE.get(path.rpartition(".")[2])) in known:
        steps = " voxtile counts steps, each a batch of windows, and no epochs." if "epoch" in path else ""
        return f" Did you mean '{key}'?{steps}"
    if path in by_end:
        return f" Did you mean '{by_end[path]}'?"
    if hint := did_you_mean(path, known):
        return hint
    close = difflib.get_close_matches(path, by_end, n=1)
    return f" Did you mean '{by_end[close[0]]}'?" if close else ""


def _of_network(path: str, name: str, folders: Sequence[Path]) -> str:
    """What to say of a setting below `model` that the configuration of the chosen network does not have.

    Raises:
        ConfigError: The network may not be built.
    """
    from voxtile.commands.allowed import OTHERS, below, target

    words, (parent, _, key) = current_words(), path.rpartition(".")
    try:
        config = composed(name, [word for word in words if not key_of(word).startswith("model.") or "_target_" in word], folders)
        maker, trust = OmegaConf.select(config, f"{parent}._target_"), config.trust
    except (HydraException, OmegaConfBaseException):
        maker = None
    if maker is None:  # several networks, or a part of one that builds nothing
        return (
            f"A network that was chosen has no '{path}' to set: arguments differ from network to network, and those of other "
            "libraries have names of their own. Leave it out, or put the networks that have it into a sweep of their own."
        )
    accepted = inspect.signature(target(maker, parent, list(trust) if isinstance(trust, ListConfig) else ())).parameters
    value = next((word.partition("=")[2] for word in words if key_of(word) == path), "…")
    if key in accepted:
        return f"'{path}' is an argument of {maker} that its configuration does not name. Add it: '+{path}={value}'."
    if not below(maker, OTHERS) and any(each.kind is each.VAR_KEYWORD for each in accepted.values()):
        return f"{maker} takes arguments of any name, and its configuration names no '{key}'. Add it: '+{path}={value}'."
    named = [
        each for each, how in accepted.items() if each not in ("in_channels", "num_classes") and how.kind is not how.VAR_KEYWORD
    ]
    takes = f" It takes {listed(named, 20)}." if named else ""
    if inner := next(_ends_in(OmegaConf.to_container(config.model), f".{key}", "model"), ""):
        return f"The network {maker} takes no '{key}', and what it is built of does: type '{inner}={value}'."
    return f"The network {maker} takes no '{key}'.{did_you_mean(key, named)}{takes} Leave it out, or type one of its own."


def _ends_in(node: Any, end: str, path: str) -> Iterator[str]:
    """The paths below a node that end so."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if f"{path}.{key}".endswith(end):
            yield f"{path}.{key}"
        yield from _ends_in(value, end, f"{path}.{key}")


def known_keys(name: str) -> list[str]:
    """Every path that the configuration `name` or an option of its groups sets, and its groups."""
    folder = folder_of(name)
    files = [("", folder / f"{name}.yaml")]
    files += [(f"{group}.", file) for group in groups_of(name) for file in sorted((folder / group).rglob("*.yaml"))]
    keys = dict.fromkeys(key for package, file in files for key in _keys_of(file, package))
    return [*(key for key in keys if key.split(".")[-1] != "defaults"), *groups_of(name)]


def _keys_of(file: Path, package: str) -> list[str]:
    """Every path that a file sets, where it lies below `package` unless it says otherwise."""
    keys: list[str] = []

    def walk(node: Any, path: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            keys.append(f"{path}{key}")
            walk(value, f"{path}{key}.")

    # Read as they are: composing once more takes a third of a second, and knows no key of an option that is not chosen.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = file.read_text(encoding="utf-8")
    walk(yaml.load(text, loader), "" if "# @package _global_" in text else package)  # noqa: S506  # both loaders are safe
    return keys


def _options_with(path: str, name: str) -> list[str]:
    """The options of groups that have a path, as they are typed."""
    folder = folder_of(name)
    groups = [group for group in groups_of(name) if group not in ("data", "experiment", "debug")]  # whose files set what they like
    options = [(group, option) for group in groups for option in options_of(folder, group)]
    return [f"{group}={each}" for group, each in options if path in _keys_of(folder / group / f"{each}.yaml", f"{group}.")]


def tell_of_merging(error: VoxtileError, config: DictConfig) -> None:
    """Where an error is about a mapping, says that what was typed was added to entries that the user may not think of."""
    for key, added, others in _merged(config, current_words()):
        if key in str(error):
            error.args = (
                f"{error} What was typed for '{key}' was added to the entries that it had, {listed(others)}: type '~{key}' and "
                f"'+{key}={added}' to have it instead of them.",
            )


def tell_of_typed(error: VoxtileError) -> None:
    """Where something cannot be built with its settings, says which of them were typed."""
    if part := re.match(r"'([\w.]+)' cannot be built with", str(error)):
        last = {key_of(word): f"'{word}'" for word in current_words() if key_of(word).startswith(f"{part[1]}.")}
        if last:
            error.args = (f"{error} Of these settings, you typed {listed(last.values())}.",)


def _merged(config: DictConfig, overrides: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Of each mapping that was typed for a key which had entries: the key, the mapping, and the entries that it had beside."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        typed, path = override.value(), override.key_or_group
        found = OmegaConf.select(config, path)
        if isinstance(typed, Mapping) and isinstance(found, DictConfig):
            others = [str(key) for key in found if str(key) not in {str(key) for key in typed}]
            if others:
                yield path, str(override.input_line).partition("=")[2], others
