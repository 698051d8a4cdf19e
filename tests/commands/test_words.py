"""Words of a command line: any text survives the way through Hydra's grammar, and what is printed can be typed."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from voxtile.commands.compose import as_typed
from voxtile.commands.folders import named_paths
from voxtile.commands.words import list_word, quoted, readable, word

PARSER = OverridesParser.create()
ODD = [
    "a b", "ü.tif", "a=b", "scene (1).tif", "~/x", "a,b", "a'b", 'a"b', "a\\'b", "a\\", "12", "1_000", "null", "true", "[x]", "",
]  # fmt: skip


def value(text: str) -> object:
    return PARSER.parse_override(text).value()


@pytest.mark.parametrize("text", ODD)
def test_an_odd_text_comes_through(text: str) -> None:
    assert value(f"input={quoted(text)}") == text
    (typed,) = shlex.split(word("input", text))
    assert value(typed) == text


@given(st.text(st.characters(exclude_categories=("C",)), max_size=12))
def test_any_text_comes_through(text: str) -> None:
    assert value(f"input={quoted(text)}") == text


@given(st.sampled_from([text for text in ODD if text not in ("", "null")]))
def test_what_stands_for_a_path_is_text_without_quotes(text: str) -> None:
    assert value(readable([f"input={text}"])[0]) == text


@given(st.text(st.sampled_from("ab1 ,:=()[]{}\\\t-./"), min_size=1).map(lambda text: f"a{text}"))
def test_a_key_of_a_mapping_comes_through(key: str) -> None:
    assert value(f"surface={as_typed({key: 0.5, 'b': [1, 'c, d']})}") == {key: 0.5, "b": [1, "c, d"]}


def test_only_what_needs_quotes_gets_them() -> None:
    same = ["seed=1,2", "data.window=[64,64]", "+data.labels.7=ignore", "~data.group", "input='a b'", "root=null"]
    same += ["data.labels={0: a, 1: b}", "paths.runs=${oc.env:HOME}/runs", "optimizer=adamw"]
    assert readable(same) == same
    assert readable(["data.window=[64,64"]) == ["data.window='[64,64'"]  # so that an error can name the key


def test_several_runs_are_a_list() -> None:
    assert value(readable(["runs=[runs/a-s0,/elsewhere/my runs/b_1]"])[0]) == ["runs/a-s0", "/elsewhere/my runs/b_1"]
    assert value(readable(["runs=[(1)]"])[0]) == "[(1)]"  # no list to Hydra: a name, for an error to show


def test_a_list_that_is_printed_can_be_typed() -> None:
    (typed,) = shlex.split(list_word("runs", ["runs/a", *ODD]))
    assert value(readable([typed])[0]) == ["runs/a", *ODD]


def test_a_list_that_only_we_read_may_hold_quotes() -> None:
    assert [str(path) for path in named_paths("[ü/a, 'b, c',\"d,e\",f'g]")] == ["ü/a", "b, c", "d,e", "f'g"]


def test_a_pattern_of_runs_is_text() -> None:
    assert value(readable(["runs=runs (1)/a-*,b"])[0]) == "runs (1)/a-*,b"


def test_a_sweep_over_paths_stays_one() -> None:
    assert readable(["split.file=a.json,b.json"], several=True) == ["split.file=a.json,b.json"]
    assert readable(["split.file=a,b.json"]) == ["split.file='a,b.json'"]


def test_a_choice_that_may_be_nothing_is_read() -> None:
    assert readable(["training.clip=choice(null,1.0)"], several=True) == ["training.clip=null,1.0"]
    assert readable(["model=choice(a,b)", "input=choice(null)"]) == ["model=choice(a,b)", "input='choice(null)'"]
