import pytest

from voxtile.cases.vector_settings import VectorSettings, as_text
from voxtile.errors import ConfigError


def test_nothing_given_is_the_default():
    assert VectorSettings.of({}) == VectorSettings.of(dict.fromkeys(("layer", "values", "outside", "buffer"))) == VectorSettings()


def test_values_are_parsed_once():
    found = VectorSettings.of(
        {
            "attribute": "kind",
            "values": {"forest": 1, 3: 2, "unsure": "ignore", 2.0: 0},
            "outside": "ignore",
            "priority": [2, "ignore", 1],
            "buffer": 4,
            "border": 1.5,
        }
    )
    assert found.values == (("forest", 1), ("3", 2), ("unsure", None), ("2", 0))
    assert (found.outside, found.priority, found.buffer, found.border) == (None, (2, None, 1), 4.0, 1.5)
    assert len({found, VectorSettings()}) == 2  # hashable


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"atribute": "a"}, r"takes no 'atribute'\. Did you mean 'attribute'\?"),
        ({"layer": True}, r"'data\.vectors\.layer=True' must be a text"),
        ({"all_touched": "yes"}, r"'data\.vectors\.all_touched=yes' must be true or false"),
        ({"buffer": -1}, r"'data\.vectors\.buffer=-1' must be a number of metres, 0 or more"),
        ({"buffer": float("nan")}, "must be a number of metres"),
        ({"border": "3 m"}, r"'data\.vectors\.border=3 m' must be a number of pixels"),
        ({"outside": "background"}, r"'data\.vectors\.outside' holds 'background'.*whole numbers, or 'ignore'"),
        ({"outside": True}, r"'data\.vectors\.outside' holds 'True'"),
        ({"attribute": "a", "values": [1, 2]}, r"'data\.vectors\.values=\[1, 2\]' must give a stored label value for each"),
        (
            {"attribute": "a", "values": '{"Wälder": 1}'},
            r"has a key that cannot be typed.*under 'vectors': 'values: \{\"Wälder\": 1\}'",
        ),
        ({"attribute": "a", "values": {"x": "forest"}}, r"'data\.vectors\.values' holds 'forest'"),
        ({"values": {"x": 1}}, r"needs the attribute.*type 'data\.vectors\.attribute=…'"),
        ({"priority": 3}, r"'data\.vectors\.priority=3' must be a list of different"),
        ({"priority": [1, 1]}, "must be a list of different"),
    ],
)
def test_what_makes_no_sense_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        VectorSettings.of(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"outside": 7}, r"'data\.vectors\.outside' uses the stored value 7.*maps 0, 1.*'data\.vectors\.outside=ignore'"),
        ({"priority": [1, 7]}, r"'data\.vectors\.priority' uses the stored value 7"),
        ({"attribute": "a", "values": {"x": 7}}, r"'data\.vectors\.values' uses the stored value 7.*'\+data\.labels\.7=<class>'\."),
    ],
)
def test_values_without_a_class_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        VectorSettings.of(given).check_labels({0, 1})


def test_larger_values_win_and_ignore_over_them_unless_priority_says_otherwise():
    stored = [3, None, 1, 2]
    assert sorted(stored, key=VectorSettings().rank) == [1, 2, 3, None]
    assert sorted(stored, key=VectorSettings(priority=(1, None)).rank) == [2, 3, None, 1]


@pytest.mark.parametrize(("value", "text"), [(3, "3"), (3.0, "3"), (3.5, "3.5"), ("3.0", "3.0"), (True, "true"), ("a b", "a b")])
def test_attribute_values_are_compared_as_text(value, text):
    assert as_text(value) == text
