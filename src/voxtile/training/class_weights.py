"""Weights of classes in a loss, from how often they occur in the training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from voxtile.errors import ConfigError, did_you_mean, listed
from voxtile.values import is_number

WeightRule = str | Sequence[float] | Mapping[str, float] | None
RULES = ("inverse", "median_frequency")


def class_weight_table(
    rule: WeightRule, num_classes: int, class_counts: Sequence[int] | None = None, present_counts: Sequence[int] | None = None
) -> list[float]:
    """The weight of each class.

    A class without a pixel in the training set cannot be learned and gets weight 0; `voxtile check` warns of it.

    Args:
        rule: None gives every class 1. A list is taken as it is; weights by name must have been made one, see `weights_in_order`.
            "inverse" is N / (K'·n(c)) with N judged pixels, n(c) of
            them of class c, and K' classes that occur: the mean weight over the training set's pixels is 1.
            "median_frequency" is median(f) / f(c) over the classes that occur, f(c) being n(c) divided by the pixels of those
            cases in which c occurs, void ones included (Eigen and Fergus 2015; SegNet, Badrinarayanan et al. 2017, section 3);
            not rescaled: the class of median frequency has weight 1.
        num_classes: K.
        class_counts: n(c), K numbers; needed by the rules.
        present_counts: pixels of the training cases in which class c occurs, K numbers; needed by "median_frequency".

    Raises:
        ConfigError: The rule is unknown, lacks its counts, or a list does not have K weights that are at least 0, one of them more.
    """
    if rule is None:
        return [1.0] * num_classes
    if isinstance(rule, Mapping):
        raise ConfigError(f"'loss.class_weights={dict(rule)}' names classes, which a loss does not know. Give a list.")
    if not isinstance(rule, str):
        weights = [float(weight) for weight in rule]
        if len(weights) != num_classes or not all(is_number(weight, 0) for weight in weights) or not any(weights):
            raise ConfigError(
                f"'loss.class_weights={list(rule)}' must be {num_classes} numbers that are at least 0, and not all 0, one for each "
                "class in the order of the data set's classes."
            )
        return weights
    if rule not in RULES:
        raise ConfigError(
            f"'loss.class_weights={rule}' is no rule.{did_you_mean(rule, RULES)} Give null, 'inverse', 'median_frequency', or a "
            f"list of {num_classes} numbers."
        )
    counts = _counts(rule, "class_counts", class_counts, num_classes)
    if rule == "inverse":
        frequency = counts * np.count_nonzero(counts) / max(counts.sum(), 1)
        return _inverted(frequency)
    extent = _counts(rule, "present_counts", present_counts, num_classes)
    frequency = counts / np.maximum(extent, 1)
    return _inverted(frequency / np.median(frequency[counts > 0]) if counts.any() else frequency)


def weights_in_order(given: Mapping[str, float], classes: Sequence[str]) -> list[float]:
    """Weights by class name as a list in the order of the classes; 1 for those that are not named.

    Raises:
        ConfigError: A name is no class, or a weight no number.
    """
    if strange := [str(name) for name in given if name not in classes]:
        raise ConfigError(
            f"'loss.class_weights' names '{strange[0]}', which is no class.{did_you_mean(strange[0], classes)} The classes are "
            f"{listed(classes, 30)}."
        )
    if wrong := [name for name, weight in given.items() if not is_number(weight, 0)]:
        raise ConfigError(f"'loss.class_weights.{wrong[0]}={given[wrong[0]]}' must be a number that is at least 0.")
    return [given.get(name, 1) for name in classes]


def _counts(rule: str, name: str, counts: Sequence[int] | None, num_classes: int) -> NDArray[np.float64]:
    if counts is None or len(counts) != num_classes:
        raise ConfigError(
            f"'loss.class_weights={rule}' needs `{name}`, {num_classes} numbers of pixels in the training set, and got {counts}. "
            "Give the weights as a list where the training set is not counted."
        )
    return np.asarray(counts, dtype=np.float64)


def _inverted(frequency: NDArray[np.float64]) -> list[float]:
    return [1 / float(value) if value else 0.0 for value in frequency]
