import pytest

from voxtile.cases.formula import NEGATIVE, Expression, Grammar
from voxtile.errors import ConfigError

GRAMMAR = Grammar(frozenset("+-*/<"), {"twice": (1, 1), "least": (2, 3)}, (int, str), "sums")
OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "<": lambda a, b: int(a < b),
    NEGATIVE: lambda a: -a,
    "twice": lambda a: 2 * a,
    "least": min,
}


def value(text, **names):
    def apply(name, parts):
        return OPERATIONS[name](*(part.value for part in parts))

    return Expression(text, "data.x", GRAMMAR).value(int, lambda name: names[name], apply)


@pytest.mark.parametrize("text", ["1 + 2 * b - -3", "twice(a) / (b - 1)", "least(a, 5, b) * 2", "(a < b) + 4", "a"])
def test_an_allowed_expression_comes_to_what_python_makes_of_it(text):
    functions = {"twice": OPERATIONS["twice"], "least": min}
    assert value(text, a=7, b=3) == eval(text, functions | {"a": 7, "b": 3})  # the walker never does this


def test_names_are_variables_and_not_functions():
    found = Expression("twice(b) + a - b * '2019_B4'", "data.x", GRAMMAR)
    assert (found.names, found.texts) == (("b", "a"), ("2019_B4",))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "a.b", "a[0]", "[a]", "lambda: a", "a if b else a", "twice(a, b)", "twice(x=a)", "twice(*a)",
        "least(a)", "a % b", "a ** b", "a < b < a", "a and b", "not a", "~a", "1.5",
        "True", "None", "f'{a}'", "(a := 1)", "a ; b", "", "(a",
        "twice(a)(b)", "a" * 301, "a\x00b",
    ],
)  # fmt: skip
def test_everything_else_is_refused(text):
    with pytest.raises(ConfigError, match=r"'data\.x=.*Expected sums"):
        Expression(text, "data.x", GRAMMAR)
