"""What a search is among: the values that were typed, and the configurations that trials have with them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, product
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from voxtile.commands import compose
from voxtile.commands.words import listed_choice
from voxtile.errors import ConfigError, reason

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from optuna.distributions import BaseDistribution

    from voxtile.commands.build import Parts

SEARCHES = ("choice", "range", "interval", "tag")  # the words of Hydra's grammar by which several values are given
NOT_COMPOSED = (HydraException, OmegaConfBaseException)  # what Hydra raises
LUCK = ("seed", "fold", "split")  # with what is below them: they choose what judges a trial, or its chance
TRIES = 64  # combinations of options among which one is looked for that goes together; each takes some 0.1 s


def space_of(arguments: Sequence[str], written: Any) -> tuple[list[str], dict[str, BaseDistribution]]:
    """What is the same in all trials, as typed, and what is searched, by its path.

    Args:
        arguments: the user's words; they take the place of what is written for the same path.
        written: words of the configuration.

    Raises:
        ConfigError: Nothing is searched, or it is not clear among what.
    """
    from optuna.distributions import CategoricalDistribution

    space: dict[str, BaseDistribution] = {}
    for override in parsed_words(written, "space"):
        if not override.is_sweep_override():
            raise ConfigError(
                f"'hydra.sweeper.space' holds '{override.input_line}', which is one value. Expected words as they are typed, for "
                "example 'optimizer.lr=tag(log, interval(1e-4, 1e-2))' or 'model.depth=choice(2,3)'."
            )
        space[override.get_key_element()] = _typed(override)
    fixed: list[Override] = []
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        space.pop(override.get_key_element(), None)
        if override.is_sweep_override():
            space[override.get_key_element()] = _typed(override)
        else:
            fixed.append(override)
    if not space:
        near = "".join(map(_misspelt, fixed))
        raise ConfigError(
            f"'sweep=optuna' searches nothing.{near} Say among what: type 'optimizer.lr=tag(log, interval(1e-4, 1e-2))' or "
            "'model.width=choice(0.125,0.25)' in quotes, or write such words into 'hydra.sweeper.space'."
        )
    for path, each in space.items():
        if path.lstrip("+").split(".")[0] in LUCK:
            raise ConfigError(
                f"'{path}' is given several values, and a search would choose among them: the trial on the easiest validation "
                "cases or with the luckiest seed would win, whatever its other settings. Set one value for all trials, such as "
                f"'{_one_of(path, each)}', and train the best settings afterwards with the others: without 'sweep=optuna', "
                "'train -m … seed=0,1,2' or 'fold=0,1,2,3,4' trains a run for each."
            )
        if isinstance(each, CategoricalDistribution) and len(each.choices) < 2:
            raise ConfigError(f"'{path}' is to be searched among one value, {each.choices[0]}. Give it more, or set it.")
    return [str(each.input_line) for each in fixed if each.get_key_element() not in ("sweep", *space)], space


def _one_of(path: str, each: BaseDistribution) -> str:
    """What is typed to set a setting that is searched to its first value."""
    return typed_words({path: _ends(each)[0]})[0]


def _misspelt(override: Override) -> str:
    """A sentence about a word with one value that seems to be meant as a search, such as a=chioce(1,2); empty about others."""
    key, _, value = str(override.input_line).partition("=")
    value = value.strip("'")  # what Hydra's grammar does not know was put in quotes
    called = re.fullmatch(r"(\w+)(\(.*\))", value)
    near = difflib.get_close_matches(called[1], SEARCHES, n=1, cutoff=0.6) if called else []
    if not called or not near:
        return ""
    if near[0] == called[1]:
        return f" '{key}={value}' cannot be read as several values: expected some in the brackets, as in '{key}=choice(1,2)'."
    return f" '{key}={value}' is one value, a text: did you mean '{key}={near[0]}{called[2]}'?"


def parsed_words(words: Any, name: str) -> list[Override]:
    """The words of a list among the settings, as Hydra reads them."""
    if isinstance(words, str) and re.fullmatch(r"\[.*=.*\]", words):  # Hydra takes [a=1,b=2] for text
        words = [word.strip() for word in words[1:-1].split(",")]
    if not isinstance(words, list) or not all(isinstance(word, str) and "=" in word for word in words):
        raise ConfigError(f"'hydra.sweeper.{name}={words}' must be a list of words, each like '<name>=<value>'.")
    try:
        return OverridesParser.create().parse_overrides([listed_choice(word) for word in words])
    except HydraException as error:
        raise ConfigError(f"'hydra.sweeper.{name}' cannot be read: {reason(error)}.") from error


def _typed(override: Override) -> BaseDistribution:
    """A distribution of a word, such as `optimizer.lr=interval(1e-4,1e-2)`."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    log = "log" in getattr(value, "tags", ())
    try:
        if isinstance(value, IntervalSweep):
            if value.start is None or value.end is None:
                raise ValueError("an interval has two ends")
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=log)
            return FloatDistribution(float(value.start), float(value.end), log=log)
        if isinstance(value, RangeSweep):
            first, last, step = (float(each or 0) for each in (value.start, value.stop, value.step))
            count = math.ceil((last - first) / step - 1e-9)  # as Python's range, without its end
            if count < 1:
                raise ValueError("the range is empty")
            if all(isinstance(each, int) for each in (value.start, value.stop, value.step)):
                return IntDistribution(int(first), int(first + (count - 1) * step), step=int(step))
            return FloatDistribution(first, float(f"{first + (count - 1) * step:.12g}"), step=step)
        if not isinstance(value, ChoiceSweep):
            raise ValueError("expected choice(…), range(…) or interval(…)")
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"'{override.input_line}' cannot be searched: {reason(error)}.") from error


@dataclass
class TrialMaker:
    """Makes the configurations of trials.

    Attributes:
        fixed: words that are the same in all trials.
        space: what is searched, by its path.
        config: of the sweep.
        loader: composes the configuration of a trial.
    """

    fixed: Sequence[str]
    space: Mapping[str, BaseDistribution]
    config: DictConfig
    loader: ConfigLoader
    _known: dict[tuple[Any, ...], list[str]] = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, BaseDistribution]:
        """The groups of which an option is searched."""
        known = compose.groups_of("train")
        return {path: each for path, each in self.space.items() if path in known}

    def words(self, params: Mapping[str, Any]) -> list[str]:
        """What is typed to train with the values of what is searched."""
        return [*self.fixed, *typed_words(params)]

    def composed(self, params: Mapping[str, Any]) -> DictConfig:
        """The configuration with these values."""
        return self.loader.load_sweep_config(self.config, [*self.words(params), "sweep=optuna"])  # `hydra.sweeper.…` belong to it

    def fitting(self, options: Mapping[str, Any]) -> list[str]:
        """The settings that are searched where these options of the groups are chosen: those that the options have."""
        settings = [path for path in self.space if path not in self.groups]
        if not options:
            return settings
        key = tuple(options[group] for group in self.groups)
        if key not in self._known:
            config = self.composed(options)
            self._known[key] = [path for path in settings if _has(config, path)]
        return self._known[key]

    def combinations(self, most: int, is_grid: bool) -> list[dict[str, Any]]:
        """All that can be tried, `most` at most; nothing where there are more, or values without steps, unless it is a grid.

        Raises:
            ConfigError: It is a grid, and a setting has no steps.
        """
        values = {path: _steps(each, most) for path, each in self.space.items()}
        if endless := [path for path in values if not values[path]]:
            if not is_grid:
                return []
            path = endless[0]
            raise ConfigError(f"A grid needs steps, and '{path}' has none. Type '{path}=choice(…)' or '{path}=range(…)'.")
        if not is_grid and any(len(each) >= most for each in values.values()):
            return []
        return list(islice(self._combinations(values), most))

    def _combinations(self, values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
        for chosen in product(*(values[group] for group in self.groups)):
            options = dict(zip(self.groups, chosen, strict=True))
            rest: list[str] = []
            with suppress(*NOT_COMPOSED):  # options that do not go together are a trial that fails
                rest = self.fitting(options)
            for each in product(*(values[path] for path in rest)):
                yield options | dict(zip(rest, each, strict=True))

    def check(self) -> Parts:
        """Looks at a trial with each option, or the least and the largest value, of each setting, before there is a study.

        Returns:
            The parts of a trial.

        Raises:
            ConfigError: No run can have a value.
            HydraException: An option or a setting is misspelt.
        """
        from voxtile.commands.build import check_without_data

        samples = self._samples()
        configs = [self.composed(sample) for sample in samples]  # what is misspelt is found sooner than what does not fit
        built = []
        for sample, config in zip(samples, configs, strict=True):
            try:
                built.append(check_without_data(compose.job_config(config)))
            except ConfigError as error:
                told = f"{error}{self._whole_instead(error)}"
                raise ConfigError(f"{told} This is of a trial with {' '.join(typed_words(sample))}; none was begun.") from error
        return built[0]

    def _samples(self) -> list[dict[str, Any]]:
        """Values of trials among which is each option, and the least and the largest value of each setting."""
        first = {path: _ends(each)[0] for path, each in self.space.items()}
        bases: list[dict[str, Any]] = [] if self.groups else [{}]
        for group, which in self.groups.items():
            for each in _ends(which):
                if all(base[group] != each for base in bases):
                    bases.append(self._base(group, each))
        samples = [base | {path: first[path] for path in self.fitting(base)} for base in bases]
        for path in (path for path in self.space if path not in self.groups):
            # One that no option has is sampled all the same, and not composed.
            with_it = next((sample for sample in samples if path in sample), bases[0] | {path: first[path]})
            samples += [with_it | {path: each} for each in _ends(self.space[path]) if with_it | {path: each} not in samples]
        return samples

    def _base(self, group: str, option: str) -> dict[str, Any]:
        """Options of all groups, one of them given, that go together; the first ones where none do, for them to say why."""
        values = [[option] if each == group else _ends(which) for each, which in self.groups.items()]
        bases = [dict(zip(self.groups, chosen, strict=True)) for chosen in islice(product(*values), TRIES)]
        for base in bases:
            with suppress(*NOT_COMPOSED):
                self.fitting(base)
                return base
        return bases[0]

    def _whole_instead(self, error: ConfigError) -> str:
        """What to type in the place of an interval of what must be whole, whose values are not; empty where that is not it."""
        from optuna.distributions import FloatDistribution

        for path, each in self.space.items():
            if isinstance(each, FloatDistribution) and str(error).startswith(f"'{path}={each.low}' must be a whole number"):
                return f" An interval's values are not: type '{path}=range({math.ceil(each.low)},{math.floor(each.high) + 1})'."
        return ""


def _has(config: DictConfig, path: str) -> bool:
    """Whether a configuration has a path to set; one that is added with + needs none."""
    parent, _, key = path.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return path.startswith("+") or not isinstance(node, DictConfig) or key in map(str, node)


def _ends(each: BaseDistribution) -> Sequence[Any]:
    """All options, or the least and the largest value, of what is searched."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(each, CategoricalDistribution):
        return each.choices
    assert isinstance(each, IntDistribution | FloatDistribution)
    return list(dict.fromkeys((each.low, each.high)))


def _steps(each: BaseDistribution, most: int) -> Sequence[Any]:
    """The first values of what is searched, `most` at most; none where it has no steps."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(each, CategoricalDistribution):
        return each.choices[:most]
    assert isinstance(each, IntDistribution | FloatDistribution)
    if each.single():
        return [each.low]
    if each.log or not each.step:
        return ()
    if isinstance(each, IntDistribution):
        return range(each.low, each.high + 1, each.step)[:most]
    count = round((each.high - each.low) / each.step) + 1
    return [float(f"{each.low + number * each.step:.12g}") for number in range(min(count, most))]


def typed_words(values: Mapping[str, Any]) -> list[str]:
    """The words of settings that are searched."""
    return [f"{path}={value if isinstance(value, str) else repr(value)}" for path, value in values.items()]
