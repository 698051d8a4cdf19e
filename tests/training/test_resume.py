"""A run killed at any moment and started again ends in the bits of an undisturbed one."""

import random
import signal
from pathlib import Path

import pytest

from tests.testers.killing import MOMENTS
from tests.testers.resuming import bits, ends
from tests.testers.tiny import scene_words

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("workers", "compiled"), [pytest.param(0, False, marks=slow), (2, False), pytest.param(2, True, marks=slow)]
)
def test_a_run_killed_at_ten_moments_ends_in_the_same_bits(tmp_path: Path, workers: int, compiled: bool) -> None:
    words = [*scene_words(tmp_path), f"workers={workers}", "augment=strong", "model.dropout=0.2", f"training.compile={compiled}"]
    words += ["training.steps=24", "training.ema=0.9"]
    if not compiled:
        words += ["model._target_=tests.testers.noisy.Noisy", "trust=[tests.testers.noisy]"]
    chance = random.Random(workers)
    moments = [(name, chance.randint(1, 2)) for name in MOMENTS]
    chance.shuffle(moments)
    undisturbed, disturbed = ([*words, f"paths.runs={tmp_path / name}"] for name in ("calm", "rough"))
    codes = ends([(undisturbed, None), *((disturbed, moment) for moment in moments), (disturbed, None)])
    assert codes[0] == codes[-1] == 0
    assert codes.count(-signal.SIGKILL) >= 8  # late moments may find the run already finished
    calm, rough = bits(tmp_path / "calm"), bits(tmp_path / "rough")
    for name, content in calm.items():
        assert rough[name] == content, name
