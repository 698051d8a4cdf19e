"""Expressions in a configuration: parsed with Python's grammar and walked with an allow-list, so that no text is ever executed."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from voxtile.errors import ConfigError

LONGEST = 300  # characters; keeps numbers and nesting small
SIGNS: Mapping[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
NEGATIVE = "negative"  # the operation of a sign before a value

Value = TypeVar("Value")


class Operand(NamedTuple, Generic[Value]):
    """A part of an expression as it is written, and what it came to."""

    text: str
    value: Value


@dataclass(frozen=True)
class Grammar:
    """What an expression may hold.

    Attributes:
        signs: among the values of `SIGNS`.
        functions: least and most arguments by name.
        constants: types of literals.
        expected: what may be written, for messages.
    """

    signs: frozenset[str]
    functions: Mapping[str, tuple[int, int]]
    constants: tuple[type, ...]
    expected: str

    def allows(self, node: ast.AST) -> bool:
        """Whether the node by itself is allowed; its parts are nodes of their own."""
        if isinstance(node, ast.Constant):
            return type(node.value) in self.constants
        if isinstance(node, ast.Call):
            least, most = self.functions.get(node.func.id, (1, 0)) if isinstance(node.func, ast.Name) else (1, 0)
            return least <= len(node.args) <= most and not node.keywords
        if isinstance(node, ast.Compare):
            return len(node.ops) == 1
        if type(node) in SIGNS:
            return SIGNS[type(node)] in self.signs
        return isinstance(node, ast.Expression | ast.BinOp | ast.UnaryOp | ast.USub | ast.Name | ast.Load)


class Expression(Generic[Value]):
    """A text such as `(B8 - B4) / (B8 + B4)`, checked against a grammar."""

    def __init__(self, text: str, setting: str, grammar: Grammar) -> None:
        """Parses and checks.

        Args:
            text: what the configuration holds.
            setting: its key, for messages.
            grammar: what is allowed.

        Raises:
            ConfigError: The text is no expression, or holds what the grammar has not.
        """
        self.text, self.setting, self._grammar = text.strip(), setting, grammar
        if len(self.text) > LONGEST:
            raise self.error(f"is longer than {LONGEST} characters")
        try:
            tree = ast.parse(self.text, mode="eval")
        except (SyntaxError, ValueError) as error:
            raise self.error(f"is no expression: {error}") from error
        for node in ast.walk(tree):
            if not grammar.allows(node):
                raise self.error(f"holds '{self._written(node)}', which is not allowed")
        self._tree = tree.body

    @property
    def names(self) -> tuple[str, ...]:
        """The variables, in order of mention."""
        called = {id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        found = (node for node in ast.walk(self._tree) if isinstance(node, ast.Name) and id(node) not in called)
        return tuple(dict.fromkeys(node.id for node in sorted(found, key=lambda node: node.col_offset)))

    @property
    def texts(self) -> tuple[str, ...]:
        """The literals that are texts."""
        found = (node.value for node in ast.walk(self._tree) if isinstance(node, ast.Constant))
        return tuple(dict.fromkeys(value for value in found if isinstance(value, str)))

    def value(
        self,
        literal: Callable[[Any], Value],
        variable: Callable[[str], Value],
        apply: Callable[[str, Sequence[Operand[Value]]], Value],
        node: ast.expr | None = None,
    ) -> Value:
        """What the expression comes to.

        Args:
            literal: takes a literal of a kind that the grammar has.
            variable: takes a variable's name.
            apply: takes a sign, `NEGATIVE` or the name of a function, and its operands.
            node: a part of the expression; the whole of it where None.
        """
        node = self._tree if node is None else node
        match node:
            case ast.Constant(value=given):
                return literal(given)
            case ast.Name(id=name):
                return variable(name)
            case ast.Call(func=ast.Name(id=name), args=parts):
                operation = name
            case ast.UnaryOp(operand=operand):
                operation, parts = NEGATIVE, [operand]
            case ast.BinOp(left=left, op=sign, right=right):
                operation, parts = SIGNS[type(sign)], [left, right]
            case ast.Compare(left=left, ops=[compared], comparators=[right]):
                operation, parts = SIGNS[type(compared)], [left, right]
            case _:
                raise AssertionError(f"{type(node).__name__} passed the allow-list")
        return apply(operation, [Operand(self._written(part), self.value(literal, variable, apply, part)) for part in parts])

    def error(self, what: str, hint: str = "") -> ConfigError:
        """The paragraph about this expression."""
        return ConfigError(f"'{self.setting}={self.text}' {what}.{hint} Expected {self._grammar.expected}.")

    def _written(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.text, node) or type(node).__name__
