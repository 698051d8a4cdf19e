"""What stands for red, green and blue."""

import numpy as np
import pytest

from voxtile.inference.colours import UNJUDGED, as_rgb, visible


@pytest.mark.parametrize(
    ("channels", "shown"),
    [
        ("nir red green blue", "red green blue"),
        ("Blue Green Red NIR", "Red Green Blue"),
        ("B02 B03 B04 B08 B11", "B04 B03 B02"),
        ("B2 B3 B4", "B4 B3 B2"),
        ("band1 band2 band3 band4", "band3 band2 band1"),
        ("a b c", "a b c"),
        ("VV VH", "VV"),
        ("t1", "t1"),
    ],
)
def test_channels_are_shown_by_their_names_and_else_by_their_number(channels: str, shown: str) -> None:
    names = channels.split()
    assert [names[place] for place in visible(names)] == shown.split()


def test_each_channel_is_stretched_over_what_holds_data() -> None:
    image = np.random.default_rng(0).normal(1000, 50, (3, 60, 50)).astype(np.float32)
    image[:, :20] = -9999
    valid = image[0] > 0
    picture = as_rgb(image, valid, ["green", "red", "blue"])
    for place, channel in enumerate([1, 0, 2]):
        low, high = np.percentile(image[channel][valid], (2, 98))
        expected = np.clip((image[channel][valid] - low) / (high - low), 0, 1) * 255
        np.testing.assert_allclose(picture[..., place][valid], expected, atol=1)
    assert (picture[~valid] == UNJUDGED).all()
    grey = as_rgb(image[:1], valid)
    assert (grey[valid][:, 0] == grey[valid][:, 2]).all()


def test_grey_in_8_bits_stays_grey_and_bands_of_scenes_have_scales_of_their_own() -> None:
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(100, 140, (1, 20, 20), dtype=np.uint8), 3, axis=0)
    grey[1, :2] = 255  # a green line, which would take the green out of all the rest
    held = np.ones((20, 20), dtype=bool)
    shown = as_rgb(grey, held)[2:]
    assert (shown[..., 0] == shown[..., 1]).all()
    scaled = grey[:, 2:].astype(np.uint16) * np.array([1, 3, 2], dtype=np.uint16)[:, None, None]
    shown = as_rgb(scaled, held[2:])
    assert (shown.max(axis=(0, 1)) == 255).all()
