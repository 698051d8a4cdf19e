"""How the group of a case follows from its name: a pattern, an expression or a table; and the wish to group by place."""

from __future__ import annotations

import csv as csvfile
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from voxtile.cases.formula import NEGATIVE, Expression, Grammar, Operand
from voxtile.errors import ConfigError, DataError, did_you_mean, listed, reason, typed
from voxtile.values import is_number, refuse_unknown

Rule = Callable[[str, Mapping[str, str]], str]  # (case id, fields of its name) -> group


class Grouping:
    """Names the group of each case: what must never be on both sides of a split, such as the patient or the place."""

    def __init__(
        self,
        pattern: str | None = None,
        expression: str | None = None,
        csv: str | None = None,
        key: str = "id",
        column: str = "group",
        delimiter: str = ",",
        place: float | None = None,
        **unknown: object,
    ) -> None:
        r"""Reads one rule; without any, each case is its own group.

        Args:
            pattern: regular expression searched in the id. The group is what its part named `group` matched, or the whole
                match: `^patient\d+` or `_(?P<group>[A-Z]+)_`.
            expression: arithmetic and text on the name. Variables: `id`, `number` (the last integer in the id) and the
                fields of the layout's patterns, which are texts. Signs: `+ - * // %`, brackets, `int(…)` and `str(…)`;
                `+` joins two texts. For example `(number + 1) // 2` or `str(int(visit) % 10) + patient`.
            csv: table with one row per case.
            key: the table's column of case ids.
            column: the table's column of groups.
            delimiter: what separates the table's columns.
            place: where given, groups of which scenes overlap, or are less than so many metres apart on the ground, are one,
                whatever their names (see `voxtile.data.places`): where cases lie is known when all are open.
            **unknown: misspelt settings, refused.

        Raises:
            ConfigError: A setting is unknown or wrong, or several rules are given.
        """
        known = ("pattern", "expression", "csv", "key", "column", "delimiter", "place")
        refuse_unknown("data.group", unknown, known)
        given = {"pattern": pattern, "expression": expression, "csv": csv}
        chosen = [name for name, value in given.items() if value is not None]
        if len(chosen) > 1:
            raise ConfigError(f"'data.group' gives {' and '.join(chosen)}, and a group follows from one rule. Keep one of them.")
        if len(delimiter) != 1:
            raise ConfigError(f"'data.group.delimiter={delimiter}' must be one character, such as ',' or ';'.")
        if place is not None and not is_number(place, 0):
            raise ConfigError(
                f"'data.group.place={place}' must be a distance in metres: scenes less than so far apart are one group, at 0 those "
                "that overlap. Type, for example, 'data.group.place=500'."
            )
        self.place = place
        self._rule: Rule | None = None
        if pattern is not None:
            self._rule = _Pattern(pattern)
        elif expression is not None:
            self._rule = _Expression(str(expression))
        elif csv is not None:
            # Read at the first case: new files that are only predicted need no group, and the table may be elsewhere.
            table = cache(lambda: _Table(Path(csv).expanduser(), key, column, delimiter))
            self._rule = lambda case_id, fields: table()(case_id, fields)

    def __call__(self, case_id: str, fields: Mapping[str, str], known: str = "") -> str:
        """The group of the case called `case_id`, whose name holds the `fields` of the layout's patterns.

        Without a rule it is the one that the layout has `known`, or the case is its own.

        Raises:
            ConfigError: The expression uses a variable that does not exist, or mixes texts and numbers.
            DataError: The rule finds no group for this case, or the table cannot be read or contradicts itself.
        """
        group = self._rule(case_id, fields) if self._rule else known or case_id
        if not group:
            raise DataError(f"'data.group' finds an empty group for case '{case_id}'. Expected a name; correct the rule.")
        return group


class _Pattern:
    def __init__(self, pattern: str) -> None:
        try:
            self._regex = re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"'data.group.pattern={pattern}' is no regular expression: {reason(error)}. Expected, for example, '^[A-Z]+' or "
                "'_(?P<group>[0-9]+)_'."
            ) from error

    def __call__(self, case_id: str, fields: Mapping[str, str]) -> str:
        match = self._regex.search(case_id)
        if match is None:
            raise DataError(
                f"Case '{case_id}' does not match 'data.group.pattern={self._regex.pattern}', so its group is unknown. Widen the "
                f"pattern, or leave the case out with 'data.exclude={typed([case_id])}'."
            )
        return (match["group"] if "group" in self._regex.groupindex else match[0]) or ""


_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
}  # fmt: skip
_GRAMMAR = Grammar(
    frozenset(_OPERATIONS),
    {"int": (1, 1), "str": (1, 1)},
    (int, str),
    "whole numbers, texts in quotes, the variables id and number, fields of the layout's patterns, + - * // %, brackets, int(…) "
    "and str(…); for example '(number + 1) // 2'",
)


class _Expression:
    def __init__(self, text: str) -> None:
        self._expression = Expression[int | str](text, "data.group.expression", _GRAMMAR)

    def __call__(self, case_id: str, fields: Mapping[str, str]) -> str:
        numbers = re.findall(r"[0-9]+", case_id)
        names: dict[str, int | str] = {**fields, "id": case_id}
        if numbers:
            names["number"] = int(numbers[-1])

        try:
            return str(self._expression.value(lambda given: given, lambda name: self._variable(name, names), self._apply))
        except (ValueError, ZeroDivisionError) as error:
            raise DataError(
                f"'data.group.expression={self._expression.text}' gives no group for case '{case_id}' with {names}: "
                f"{reason(error)}. Correct the expression, or leave the case out with 'data.exclude={typed([case_id])}'."
            ) from error

    def _apply(self, operation: str, operands: Sequence[Operand[int | str]]) -> int | str:
        if operation in ("int", "str"):
            return int(operands[0].value) if operation == "int" else str(operands[0].value)
        if operation == "+" and all(isinstance(operand.value, str) for operand in operands):
            return "".join(str(operand.value) for operand in operands)
        numbers = [self._number(operand) for operand in operands]
        return -numbers[0] if operation == NEGATIVE else _OPERATIONS[operation](*numbers)

    def _number(self, operand: Operand[int | str]) -> int:
        if isinstance(operand.value, int):
            return operand.value
        part = operand.text
        raise self._expression.error(
            f"calculates with {part}, which is the text '{operand.value}' (write int({part}), or str(…) around the other part)"
        )

    def _variable(self, name: str, names: Mapping[str, int | str]) -> int | str:
        if name in names:
            return names[name]
        if name == "number":
            raise ValueError("the id holds no integer, so there is no 'number'")
        known = sorted({*names, "number"})
        raise self._expression.error(f"uses '{name}', and the variables here are {listed(known)}", did_you_mean(name, known))


class _Table:
    def __init__(self, path: Path, key: str, column: str, delimiter: str) -> None:
        self._path, self._key = path, key
        try:
            # utf-8-sig: spreadsheets put a byte order mark before the first column's name
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csvfile.DictReader(file, delimiter=delimiter)
                rows, columns = list(reader), list(reader.fieldnames or ())
        except (OSError, UnicodeDecodeError, csvfile.Error) as error:
            raise DataError(
                f"The table {path} (data.group.csv) cannot be read: {reason(error)}. Expected a UTF-8 CSV file."
            ) from error
        for setting, name in (("key", key), ("column", column)):
            if name not in columns:
                raise ConfigError(
                    f"'data.group.{setting}={name}' is no column of {path}; its columns, separated by '{delimiter}', are "
                    f"{listed(columns)}.{did_you_mean(name, columns)}"
                )
        self._groups: dict[str, str] = {}
        for number, row in enumerate(rows, 1):
            case_id, group = row[key] or "", row[column] or ""
            if self._groups.setdefault(case_id, group) != group:
                raise DataError(
                    f"{path}, row {number}: '{case_id}' is of group '{group}', and an earlier row says '{self._groups[case_id]}'. "
                    "Expected one group per case."
                )

    def __call__(self, case_id: str, fields: Mapping[str, str]) -> str:
        if case_id not in self._groups:
            raise DataError(
                f"Case '{case_id}' is not in column '{self._key}' of {self._path} (data.group.csv), so its group is "
                f"unknown.{did_you_mean(case_id, self._groups)} Add a row, or leave the case out with "
                f"'data.exclude={typed([case_id])}'."
            )
        return self._groups[case_id]
