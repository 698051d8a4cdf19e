import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtile.cases.bands import PRESETS, Derived, Mask, decibel
from voxtile.errors import ConfigError

RNG = np.random.default_rng(0)
LAYERS = {name: RNG.integers(1, 4000, (6, 7)).astype(np.uint16) for name in ("B03", "B04", "B08", "B12", "2019_B04")}
EXACT = {name: layer.astype(np.float64) for name, layer in LAYERS.items()}


@pytest.mark.parametrize(
    ("text", "a", "b"),
    [
        ("ndvi(B08, B04)", "B08", "B04"),
        ("ndwi(B03, B08)", "B03", "B08"),
        ("nbr(B08, B12)", "B08", "B12"),
        ("mndwi(B03, B12)", "B03", "B12"),
        ("(B08 - B04) / (B08 + B04)", "B08", "B04"),
        ("(B08 - '2019_B04') / (B08 + '2019_B04')", "B08", "2019_B04"),
    ],
)
def test_indices_are_normalised_differences(text, a, b):
    found = Derived("x", text)
    assert found.bands == (a, b)
    assert found(LAYERS).dtype == np.float32
    np.testing.assert_allclose(found(LAYERS), (EXACT[a] - EXACT[b]) / (EXACT[a] + EXACT[b]), rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-B03 + 2.5 * B04 ** 2 / 3", lambda e: -e["B03"] + 2.5 * e["B04"] ** 2 / 3),
        ("abs(B03 - B04) - sqrt(B08) + log10(B12) * exp(-B03 / 4000)",
         lambda e: abs(e["B03"] - e["B04"]) - np.sqrt(e["B08"]) + np.log10(e["B12"]) * np.exp(-e["B03"] / 4000)),
        ("min(B03, B04, 900) + max(B08, 50)", lambda e: np.minimum(np.minimum(e["B03"], e["B04"]), 900) + np.maximum(e["B08"], 50)),
        ("where(B03 > 2000, B04, -1) * (B08 <= B12)", lambda e: np.where(e["B03"] > 2000, e["B04"], -1) * (e["B08"] <= e["B12"])),
        ("-(B03 == B03) - (B04 != B04) + (B03 >= 4) * (B04 < 9)", lambda e: -1 + (e["B03"] >= 4) * (e["B04"] < 9)),
    ],
)  # fmt: skip
def test_free_formulas_equal_numpys(text, expected):
    np.testing.assert_allclose(Derived("x", text)(LAYERS), expected(EXACT), rtol=1e-5, atol=1e-2)


def test_what_has_no_value_is_not_finite():
    layers = {"a": np.array([[0, 3, -1.0]]), "b": np.array([[0, -3, 1.0]])}
    for text in ("ndvi(a, b)", "1 / (a + b)", "sqrt(a * b - 1)", "log10(a + b)"):
        assert not np.isfinite(Derived("x", text)(layers)).any()


@pytest.mark.parametrize("text", ["1 + 2", "open(B04)", "B04.dtype", "B04 and B08", "(lambda: 1)()", "B04 % 2", "B04 if 1 else 2"])
def test_what_is_no_formula_of_bands_is_refused(text):
    with pytest.raises(ConfigError, match=r"data\.scene\.derived\.x=.*for example '\(B08 - B04\)"):
        Derived("x", text)


def test_a_formula_pickles_as_its_text():
    packed = pickle.dumps(Derived("ndvi", "ndvi(B08, B04)"))
    assert len(packed) < 200
    assert pickle.loads(packed) == Derived("ndvi", "ndvi(B08, B04)")


def test_decibels_are_ten_times_the_logarithm_and_nothing_at_zero():
    np.testing.assert_allclose(decibel(np.array([1, 10, 0.001])), [0, 10, -30])
    assert np.isnan(decibel(np.array([0.0, -2.0, np.nan]))).all()


@settings(deadline=None)
@given(bits=st.sets(st.integers(0, 15), min_size=1), values=st.lists(st.integers(0, 65535), min_size=1, max_size=20))
def test_bits_mark_what_their_numbers_say(bits, values):
    stored = np.array([values], dtype=np.uint16)
    for layer in (stored, stored.view(np.int16)):
        marked = Mask("qa", bits=tuple(bits)).marks(layer)
        assert marked[0].tolist() == [any(value >> bit & 1 for bit in bits) for value in values]


def test_values_and_presets_mark_clouds():
    classes = np.arange(12, dtype=np.uint8)[None]
    assert np.flatnonzero(Mask("SCL", values=(3, 9)).marks(classes)).tolist() == [3, 9]
    assert np.flatnonzero(Mask("SCL", **PRESETS["scl_clouds"]).marks(classes)).tolist() == [0, 1, 3, 8, 9, 10]
    # Landsat 8-9 Collection 2, table of common QA_PIXEL values: clear land, clear water, high-confidence cloud, cloud shadow, fill.
    quality = np.array([[21824, 21952, 22280, 23888, 1]], dtype=np.uint16)
    assert Mask("QA", **PRESETS["qa_pixel_clouds"]).marks(quality)[0].tolist() == [False, False, True, True, True]
