"""A run killed at any moment and started again ends in the bits of an undisturbed one."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testers.killing import MOMENTS
from tests.testers.tiny import scene_words

ROOT = Path(__file__).parents[2]
slow = pytest.mark.slow


def ends(starts: list[tuple[list[str], tuple[str, int] | None]]) -> list[int]:
    """The exit codes of trainings, one after the other, each of them killed at its moment if it has one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.testers.killing"], input=json.dumps(starts), cwd=ROOT, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stderr.splitlines()[-1])
    return found


def bits(runs: Path) -> dict[str, bytes]:
    (home,) = [path for path in runs.iterdir() if (path / "recipe.json").exists()]
    names = ("weights/best.safetensors", "weights/last.safetensors", "metrics.csv", "status.json")
    assert not (home / "resume.pt").exists()
    return {name: (home / name).read_bytes() for name in names}


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
