"""Regions as a configuration names them."""

import pytest

from voxtile.cases.regions import regions_of, structures_of
from voxtile.errors import ConfigError

CLASSES = ("background", "edema", "necrosis", "enhancing")


def test_regions_unite_classes_by_name_and_may_be_one_class() -> None:
    given = {"whole": ["enhancing", "edema", "necrosis"], "core": ["necrosis", "enhancing"], "enhancing": ["enhancing"]}
    found = regions_of(given, CLASSES, "background")
    assert found == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert list(found) == list(given)
    assert regions_of(None, CLASSES, "background") == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"whole": ["edma"]}, r"holds edma, which is no class\. Did you mean 'edema'\?"),
        ({"whole": []}, r"must be a list of classes, for example 'data\.regions=\{whole: \[edema, necrosis, enhancing\]\}'"),
        ({"whole": "edema"}, "must be a list of classes"),
        ({"whole": ["background", "edema"]}, r"holds 'background'.*Take it out"),
        ({"edema": ["edema", "necrosis"]}, "names a region 'edema', and 'data.labels' a class"),
        ({"edema": ["necrosis"]}, "names a region 'edema', and 'data.labels' a class"),
        ({"ignore": ["necrosis"]}, "names a region 'ignore'"),
        ({"a/b": ["necrosis"]}, r"with other signs .*: '/' \(solidus\) in a/b\."),
        ({"": ["necrosis"]}, r"'data\.regions' holds an empty name\."),
        ({f"r{n}": ["edema"] for n in range(33)}, "names 33 regions; 32 are the most"),
    ],
)
def test_what_is_no_region_is_refused(given: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        regions_of(given, CLASSES, "background")


def test_what_is_measured_are_regions_or_else_the_foreground() -> None:
    assert structures_of(CLASSES, 0, {}) == {"edema": (1,), "necrosis": (2,), "enhancing": (3,)}
    assert structures_of(CLASSES, None, {})["background"] == (0,)
    assert structures_of(CLASSES, 0, {"core": [2, 3]}) == {"core": (2, 3)}
