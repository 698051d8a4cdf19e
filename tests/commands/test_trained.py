"""A trained run as evaluate and predict open it."""

from copy import copy
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from tests.commands.conftest import Run, opened
from tests.testers.composing import composed
from voxtile.cases.windowing import Windowing
from voxtile.commands.build import Parts
from voxtile.commands.trained import Trained
from voxtile.errors import ConfigError
from voxtile.inference.field import reach_of


def settings(run: Run, *words: str) -> dict[str, Any]:
    (config,) = composed(["predict", f"run={run.home}", "input=a.tif", "output=maps", *words])
    return config


def with_windows(built: Parts, windowing: Windowing) -> Parts:
    """The parts as if windows had been declared so."""
    dataset = copy(built.dataset)
    dataset.windowing = windowing
    return replace(built, dataset=dataset)


def test_runs_that_predict_together_see_as_far_as_the_one_that_sees_farthest(scene_run: Run) -> None:
    trained = opened(scene_run)
    own, wide = reach_of(trained.network.eval(), 2), nn.Sequential(nn.Conv2d(2, 2, 3, padding=60, dilation=60))
    assert own < 60
    config = settings(scene_run, "halo=field")
    assert trained.predictor(config).procedure.halo == own
    assert trained.predictor(config, [trained, replace(trained, network=wide)]).procedure.halo >= 60


def test_a_halo_that_would_fill_the_memory_is_refused_with_the_widest(scene_run: Run) -> None:
    trained = opened(scene_run)
    with pytest.raises(ConfigError, match=r"'halo' is 20000 .* windows of 16x16, .* Type 'halo=2888' or less"):
        trained.predictor(settings(scene_run, "halo=20000"))
    assert trained.predictor(settings(scene_run, "halo=2888")).procedure.halo == 2888


def test_of_runs_that_predict_together_the_largest_training_window_counts(scene_run: Run) -> None:
    trained = opened(scene_run)
    larger = replace(trained, built=with_windows(trained.built, Windowing((8, 40))))
    for members in ([trained, larger], [larger, trained]):
        assert members[0].predictor(settings(scene_run), members).trained_on == (1, 16, 40)


def test_every_run_must_be_made_for_samples(scene_run: Run) -> None:
    class Able(nn.Conv2d):
        stochastic = True

    trained, able = opened(scene_run), Able(2, 2, 1)
    with pytest.raises(ConfigError, match="'samples=3' asks for Monte-Carlo dropout"):
        trained.predictor(settings(scene_run, "samples=3"), [replace(trained, network=able), trained])


def with_symmetry(run: Run, symmetry: dict[str, Any], axis: str = "z") -> Trained:
    """The run as if its data had been declared so."""
    trained = opened(run)
    data = {**trained.built.config["data"], "symmetry": symmetry}
    config = {**trained.built.config, "data": data, "augment": {**trained.built.config["augment"], "symmetry": symmetry}}
    return replace(trained, built=with_windows(replace(trained.built, config=config), Windowing((16, 16), axis)))


@pytest.mark.parametrize(("axis", "mirrored", "swapped"), [("z", "x", "x"), ("y", "x", "x"), ("y", "z", "y"), ("x", "y", "x")])
def test_classes_change_places_along_the_axis_of_the_volume_however_its_slices_lie(
    volume_run: Run, axis: str, mirrored: str, swapped: str
) -> None:
    pairs = {"flips": [mirrored], "swap": {mirrored: [["ground", "disc"]]}}
    declared, plain = with_symmetry(volume_run, pairs, axis), with_symmetry(volume_run, {"flips": [mirrored]}, axis)
    config = settings(volume_run, f"mirrors=[{mirrored}]")
    assert declared.predictor(config).procedure.swapped == [{swapped: ((0, 1),)}]
    assert plain.predictor(config, [plain, declared]).procedure.swapped == [{}, {swapped: ((0, 1),)}]
    assert plain.predictor(config, [plain, plain]).procedure.swapped == []
    other = next(each for each in "zyx" if each not in (axis, mirrored))
    assert declared.predictor(settings(volume_run, f"mirrors=[{other}]")).procedure.swapped == []
