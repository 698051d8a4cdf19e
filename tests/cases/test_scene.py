import os
import pickle

import pytest

from voxtile.cases.bands import Derived, Mask
from voxtile.cases.scene import Scene
from voxtile.errors import ConfigError


def test_settings_are_parsed_once():
    found = Scene.of(
        {
            "resolution": 20, "resampling": "cubic", "scale": 0.0001, "offset": {"B04": -1000}, "decibel": ["VV"],
            "derived": {"ndvi": "ndvi(B08, B04)"},
            "masks": [{"band": "SCL", "values": [3]}, {"band": "QA", "bits": [3, 4]}, {"band": "SCL", "preset": "scl_clouds"}],
            "area": [179, -18, -179, -17],
        }
    )  # fmt: skip
    assert found.derived == (Derived("ndvi", "ndvi(B08, B04)"),)
    assert found.masks == (Mask("SCL", (3,)), Mask("QA", bits=(3, 4)), Mask("SCL", (0, 1, 3, 8, 9, 10)))
    assert (found.resolution, found.resampling, found.decibel, found.area) == (20, "cubic", ("VV",), (179, -18, -179, -17))
    assert pickle.loads(pickle.dumps(found)) == found


def test_offset_is_added_before_scale():
    found = Scene.of({"scale": 0.0001, "offset": {"B04": -1000}})
    gain, bias = found.linear("B04")
    assert 1500 * gain + bias == pytest.approx((1500 - 1000) * 0.0001)
    assert found.linear("B08") == (0.0001, 0)
    assert Scene.of({"scale": {"B04": 2}}).linear("B08") is None
    assert Scene.of({"offset": 5}).linear("B08") == (1, 5)


def test_nothing_set_is_nothing_in_a_key(tmp_path):
    assert Scene.of(None) == Scene.of({}) == Scene.of({"resolution": None}) == Scene()
    assert Scene().key == ""
    keys = {Scene.of({"resolution": n}).key for n in (10, 20)} | {Scene.of({"derived": {"x": text}}).key for text in ("a", "b")}
    file = tmp_path / "a.geojson"
    for text in ("{}", "{} ", "{}\n"):  # the last two are of one size and, as a copied file may be, of one time
        file.write_text(text)
        os.utime(file, (5, 5))
        keys.add(Scene.of({"area": str(file)}).key)
    assert len(keys) == 7


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resolutoin": 20}, "takes no 'resolutoin'. Did you mean 'resolution'"),
        ({"resolution": 0}, "resolution=0.* above 0"),
        ({"resolution": True}, "resolution=True"),
        ({"resampling": "average"}, "one of bilinear, cubic, nearest"),
        ({"scale": 0}, "scale=0.*other than 0"),
        ({"scale": "x"}, "scale=x"),
        ({"offset": {"B04": "x"}}, "a number, or one for each band"),
        ({"decibel": "VV"}, r"decibel=VV.*\[VV, VH\]"),
        ({"derived": ["ndvi"]}, "formulas by name"),
        ({"derived": {"x": "exec(B4)"}}, r"derived\.x=exec"),
        ({"masks": {"band": "SCL"}}, "a list such as"),
        ({"masks": [{"band": "SCL"}]}, "either values, bits or a preset"),
        ({"masks": [{"band": "SCL", "values": [1], "bits": [1]}]}, "either values, bits or a preset"),
        ({"masks": [{"band": "SCL", "preset": "scl_cloud"}]}, "qa_pixel_clouds. Did you mean 'scl_clouds'?"),
        ({"masks": [{"band": "SCL", "values": []}]}, "a list of whole numbers"),
        ({"masks": [{"band": "SCL", "bits": [32]}]}, "from 0 to 31"),
        ({"area": [0, 5, 1, 4]}, r"\[left, bottom, right, top\] in degrees"),
        ({"area": [0, 5, 400, 6]}, r"\[left, bottom, right, top\] in degrees"),
        ({"area": 3}, "a vector file, or"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=f"data.scene.*{words}"):
        Scene.of(settings)
