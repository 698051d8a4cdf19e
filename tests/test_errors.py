"""What errors are worded with."""

import pytest

from voxtile.errors import did_you_mean


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("gren", ["green", "red"], "green"),
        ("B4", ["B04", "B03"], "B04"),
        ("fcn16", ["fcn32s", "fcn16s"], "fcn16s"),
        ("unet2", ["unet"], "unet"),
        ("s11", ["s0", "s1"], "s1"),
        ("20230401_B08", ["20231001_B08", "20230401_B04"], None),
        ("20230401_b08", ["20231001_B08", "20230401_B08"], "20230401_B08"),
        ("band7", ["band1", "band2"], None),
        ("resnet51", ["resnet50", "resnet152"], None),
    ],
)
def test_the_nearest_word_is_proposed_unless_only_digits_are_others(word, known, meant):
    assert did_you_mean(word, known) == (f" Did you mean '{meant}'?" if meant else "")
