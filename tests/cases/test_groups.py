import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtile.cases.groups import Grouping
from voxtile.errors import ConfigError, DataError

NAME = "hippocampus_007"


def test_without_a_rule_each_case_is_its_own_group():
    assert Grouping()(NAME, {}) == NAME


@pytest.mark.parametrize(
    ("pattern", "group"),
    [
        (r"^[a-z]+", "hippocampus"),
        (r"_(?P<group>\d+)", "007"),
        (r"0+(\d)", "007"),  # groups without the name do not count
    ],
)
def test_a_pattern_gives_its_named_part_or_the_whole_match(pattern, group):
    assert Grouping(pattern=pattern)(NAME, {}) == group


def test_a_name_that_does_not_match_is_named():
    with pytest.raises(DataError, match=f"{NAME}.*does not match"):
        Grouping(pattern="^patient")(NAME, {})


def test_a_pattern_whose_group_took_no_part_is_an_error():
    with pytest.raises(DataError, match="empty group"):
        Grouping(pattern="hippo(?P<group>X)?")(NAME, {})


def test_a_broken_pattern_is_an_error():
    with pytest.raises(ConfigError, match="no regular expression"):
        Grouping(pattern="(")


@pytest.mark.parametrize(
    ("expression", "group"),
    [
        ("(number + 1) // 2", "4"),
        ("number % 4 - 5 * -1", "8"),
        ("id + '/' + site", "hippocampus_007/north"),
        ("str(int(visit) // 10) + site", "1north"),
        ("visit", "012"),
        ("-(number)", "-7"),
    ],
)
def test_an_expression_calculates_with_the_name(expression, group):
    assert Grouping(expression=expression)(NAME, {"site": "north", "visit": "012"}) == group


@given(st.integers(min_value=1, max_value=400))
@settings(max_examples=30, deadline=None)
def test_two_neighbouring_numbers_are_one_scan(n):
    group = Grouping(expression="(number + 1) // 2")
    assert group(f"hippocampus_{2 * n - 1:03d}", {}) == group(f"hippocampus_{2 * n:03d}", {}) == str(n)


_TERMS = st.recursive(
    st.integers(0, 99).map(str) | st.just("number"),
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        | inner.map(lambda t: f"-{t}")
    ),
    max_leaves=8,
)


@given(_TERMS)
@settings(max_examples=100, deadline=None)
def test_an_expression_means_what_python_means(expression):
    try:
        expected = str(eval(expression, {"__builtins__": {}}, {"number": 7}))
    except ZeroDivisionError:
        with pytest.raises(DataError, match="gives no group"):
            Grouping(expression=expression)(NAME, {})
    else:
        assert Grouping(expression=expression)(NAME, {}) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "id.upper()",
        "id[0]",
        "number ** 99",
        "number if number else 1",
        "[number for number in id]",
        "lambda: 1",
        "(x := 1)",
        "f'{id}'",
        "True",
        "1.5",
        "number == 7",
        "int(id, 36)",
        "int(x=1)",
        "open('x')",
        "number +",
        "number; number",
        "",
        "+".join(["number"] * 100),
    ],
)
def test_anything_else_in_an_expression_is_refused(expression):
    with pytest.raises(ConfigError, match=r"data\.group\.expression"):
        Grouping(expression=expression)


def test_a_long_sum_is_evaluated_in_one_pass():
    assert Grouping(expression="+".join(["1"] * 150))(NAME, {}) == "150"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("numer // 2", "Did you mean 'number'"),
        ("visit + 1", r"write int\(visit\)"),
        ("id * 1000000000", r"write int\(id\)"),
        ("id % number", r"write int\(id\)"),
        ("number + '_'", "the text '_'"),
    ],
)
def test_a_misused_variable_is_named(expression, message):
    with pytest.raises(ConfigError, match=message):
        Grouping(expression=expression)(NAME, {"visit": "012"})


@pytest.mark.parametrize(("expression", "case_id"), [("number", "north"), ("number // (number - 7)", NAME), ("int(id)", NAME)])
def test_a_case_that_the_expression_does_not_fit_is_named(expression, case_id):
    with pytest.raises(DataError, match=f"no group for case '{case_id}'"):
        Grouping(expression=expression)(case_id, {})


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text('\ufeffscan;patient;note\ns1;p1;"left; early"\ns2;p1;\ns3;;\n', encoding="utf-8")
    return str(path)


def test_a_table_names_the_group(table):
    group = Grouping(csv=table, key="scan", column="patient", delimiter=";")
    assert (group("s1", {}), group("s2", {})) == ("p1", "p1")
    with pytest.raises(DataError, match="'s9' is not in column 'scan'"):
        group("s9", {})
    with pytest.raises(DataError, match="empty group for case 's3'"):
        group("s3", {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key": "scan", "column": "patients", "delimiter": ";"}, "Did you mean 'patient'"),
        ({"key": "scans", "column": "patient", "delimiter": ";"}, r"data\.group\.key=scans"),
        ({"key": "scan", "column": "patient"}, "scan;patient;note"),
        ({"key": "scan", "column": "patient", "delimiter": "tab"}, "one character"),
    ],
)
def test_a_wrong_column_is_an_error(table, settings, message):
    with pytest.raises(ConfigError, match=message):
        Grouping(csv=table, **settings)("s1", {})


def test_a_table_that_contradicts_itself_is_an_error(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("id,group\na,1\nb,1\na,2\n")
    with pytest.raises(DataError, match="row 3: 'a'"):
        Grouping(csv=str(path))("a", {})


@pytest.mark.parametrize("content", [None, b"id,group\n\xff\xfe,1\n"])
def test_an_unreadable_table_is_an_error(tmp_path, content):
    path = tmp_path / "groups.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        Grouping(csv=str(path))("a", {})


def test_two_rules_or_a_misspelt_one_are_an_error():
    with pytest.raises(ConfigError, match="pattern and expression"):
        Grouping(pattern="a", expression="id")
    with pytest.raises(ConfigError, match="Did you mean 'pattern'"):
        Grouping(**{"patern": "a"})


@pytest.mark.parametrize("place", [True, -1, "near", float("inf")])
def test_a_place_is_a_distance(place):
    with pytest.raises(ConfigError, match=r"'data.group.place=.*metres.*'data.group.place=500'"):
        Grouping(place=place)


def test_grouping_by_place_goes_with_any_rule():
    assert Grouping().place is None
    grouping = Grouping(pattern="^[a-z]+", place=0)
    assert grouping.place == 0
    assert grouping("ab12", {}) == "ab"
