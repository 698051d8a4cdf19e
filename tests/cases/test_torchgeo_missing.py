"""What can be said of TorchGeo's data sets without TorchGeo."""

import sys
from functools import partial

import pytest

from voxtile.cases.dataset import Dataset
from voxtile.cases.layouts import CaseFiles
from voxtile.cases.torchgeo import TorchGeoLayout, told_apart
from voxtile.commands.allowed import build
from voxtile.errors import ConfigError

LAYOUT = "voxtile.cases.torchgeo.TorchGeoLayout"


def layout(target="torchgeo.datasets.LandCoverAI", trust=(), **more):
    return build({"_target_": LAYOUT, "root": "data", "dataset": {"_target_": target}, **more}, "data.layout", trust)


def test_a_missing_torchgeo_is_named_with_what_to_type(monkeypatch):
    for module in ("torchgeo", "torchgeo.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"torchgeo is not installed\. Type pip install 'voxtile\[torchgeo\]'"):
        layout()


@pytest.mark.parametrize("target", ["numpy.load", "os.system", "torchgeo_datasets.LandCoverAI", "torchgeo.trainers.BaseTask"])
def test_nothing_else_is_built(target):
    with pytest.raises(ConfigError, match=r"not on the allow-list.*nothing was run"):
        layout(target)


def test_what_the_user_trusts_is_built_when_cases_are_looked_for():
    found = layout("tests.cases.test_torchgeo_missing.never", trust=["tests.cases.test_torchgeo_missing"])
    assert found.dataset.func is never


def never():
    raise AssertionError("built before its cases were looked for")


@pytest.mark.parametrize("dataset", ["torchgeo.datasets.LandCoverAI", None, {"root": "x"}])
def test_a_data_set_without_a_class_is_refused(dataset):
    with pytest.raises(ConfigError, match=r"'data\.layout\.dataset=.*names no class.*_target_: torchgeo\.datasets"):
        TorchGeoLayout("data", dataset)


def test_a_split_that_voxtile_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"'data\.layout\.splits' names 'training'; it takes train, val, test"):
        layout("tests.cases.test_torchgeo_missing.never", ["tests.cases.test_torchgeo_missing"], splits={"training": "train"})


@pytest.mark.parametrize("settings", [{"scene": {"scale": 0.0001}}, {"vectors": {"border": 2}}])
def test_settings_that_its_rows_would_not_follow_are_refused(settings):
    files = CaseFiles("a", (), sources=lambda nodata: never())
    dataset = Dataset("set", "geotiff", TorchGeoLayout("data", partial(never)), {0: "a", 1: "b"}, **settings)
    with pytest.raises(ConfigError, match=r"'data\.scene' and 'data\.vectors' say .* TorchGeoLayout has another library"):
        dataset.open(files)


@pytest.mark.parametrize(("ids", "told"), [("x x x", "x x_2 x_3"), ("x x_2 x", "x x_2 x_3"), ("x x x_2 x_2", "x x_2 x_2_2 x_2_3")])
def test_cases_of_one_id_never_get_the_id_of_another(ids, told):
    assert [case.id for case in told_apart([CaseFiles(name, ()) for name in ids.split()])] == told.split()
