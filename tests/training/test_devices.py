"""One run in one, two and three processes: the same samples, the same loss, the same integers, the same decision."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.testers.tiny import odd_words

ROOT = Path(__file__).parents[2]
LOSSES = ("ce", "dice")


class World:
    """What the processes of one training left."""

    def __init__(self, home: Path, count: int) -> None:
        self.said = [json.loads((home / f"said-{rank}.json").read_text()) for rank in range(count)]
        self.matrices = [np.load(home / f"matrices-{rank}.npy") for rank in range(count)]
        self.weights = load_file(home / "weights" / "last.safetensors")
        rows = [row.split(",") for row in (home / "metrics.csv").read_text().splitlines()[1:]]
        self.losses = np.array([float(value) for _, name, value in rows if name == "train/loss"])
        self.scores = {(step, name): value for step, name, value in rows if name.startswith("val/") and name != "val/loss"}


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def trained(jobs: Mapping[str, tuple[Sequence[str], int, str]], folder: Path) -> dict[str, World]:
    """Trains jobs of (words, processes, what is broken), one after the other."""
    orders = [(list(words), str(folder / name), count, broken, port()) for name, (words, count, broken) in jobs.items()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.testers.worlds"], input=json.dumps(orders), cwd=ROOT, capture_output=True, text=True,
        timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: World(folder / name, count) for name, (_, count, _) in jobs.items()}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    folder = tmp_path_factory.mktemp("worlds")
    words = odd_words(folder)
    jobs = {f"{loss} {count}": ([*words, f"loss={loss}"], count, "") for loss in LOSSES for count in (1, 2, 3)}
    still = [*words, "loss=ce", "training.steps=2", "optimizer.lr=0"]  # the same weights everywhere
    jobs |= {f"still {count}": (still, count, "") for count in (1, 2, 3)} | {"padded": (still, 3, "padded")}
    jobs["ce 2 plain mean"] = ([*words, "loss=ce"], 2, "plain mean")
    jobs["batch 2"] = ([*words, "loss=ce", "model.norm=batch", "training.ema=0.9", "training.minutes=9"], 2, "")
    sharded = [*words, "loss=ce", "training.ema=0.9", "trainer.strategy=fsdp"]
    jobs["fsdp 2"], jobs["whole 2"] = (sharded, 2, ""), (sharded[:-1], 2, "")
    jobs["ce 2 parts"] = ([*words, "loss=ce", "training.accumulate=2"], 2, "")
    return trained(jobs, folder)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_each_step_of_the_one_stream(worlds: dict[str, World], count: int) -> None:
    (one,) = (said["seen"] for said in worlds["ce 1"].said)
    shares = [said["seen"] for said in worlds[f"ce {count}"].said]
    together = [sorted(chain(*step)) for step in zip(*shares, strict=True)]
    assert together == one == [list(range(7 * step, 7 * step + 7)) for step in range(6)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("count", [2, 3])
def test_the_loss_and_the_weights_do_not_depend_on_the_number_of_processes(
    worlds: dict[str, World], loss: str, count: int
) -> None:  # fmt: skip
    one, many = worlds[f"{loss} 1"], worlds[f"{loss} {count}"]
    assert len(one.losses) == 6
    np.testing.assert_allclose(many.losses, one.losses, rtol=2e-5)
    for name, weight in one.weights.items():
        np.testing.assert_allclose(many.weights[name], weight, rtol=1e-3, atol=1e-4, err_msg=name)


def test_parts_of_a_batch_do_not_change_the_loss(worlds: dict[str, World]) -> None:
    np.testing.assert_allclose(worlds["ce 2 parts"].losses, worlds["ce 1"].losses, rtol=2e-5)


def test_weights_that_are_cut_over_processes_are_trained_alike(worlds: dict[str, World]) -> None:
    cut, kept = worlds["fsdp 2"], worlds["whole 2"]
    np.testing.assert_allclose(cut.losses, kept.losses, rtol=2e-5)
    assert cut.weights.keys() == kept.weights.keys()
    for name, weight in kept.weights.items():
        np.testing.assert_allclose(cut.weights[name], weight, rtol=1e-3, atol=1e-4, err_msg=name)
    for mine, theirs in zip(cut.matrices, kept.matrices, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_plain_means_over_processes_would_be_noticed(worlds: dict[str, World]) -> None:
    assert np.abs(worlds["ce 2 plain mean"].losses / worlds["ce 1"].losses - 1).max() > 1e-3


@pytest.mark.parametrize("count", [2, 3])
def test_the_same_weights_give_the_same_integers_in_every_matrix_on_every_process(worlds: dict[str, World], count: int) -> None:
    one, many = worlds["still 1"], worlds[f"still {count}"]
    assert one.matrices[0].shape == (1, 7, 2, 2)
    for matrices in many.matrices:
        np.testing.assert_array_equal(matrices, one.matrices[0])
    assert many.scores == one.scores


def test_running_statistics_and_decisions_are_those_of_the_first_process(worlds: dict[str, World]) -> None:
    first, second = worlds["batch 2"].said
    assert first["running"]
    assert first["running"] == second["running"]
    assert first["best"] == second["best"]
    np.testing.assert_array_equal(*worlds["batch 2"].matrices)


def test_padding_would_be_noticed(worlds: dict[str, World]) -> None:
    assert worlds["padded"].matrices[0].sum() > worlds["still 1"].matrices[0].sum()


@pytest.mark.parametrize("loss", LOSSES)
def test_all_processes_decide_alike_which_weights_are_best(worlds: dict[str, World], loss: str) -> None:
    best = [said["best"]["step"] for count in (1, 2, 3) for said in worlds[f"{loss} {count}"].said]
    assert len(best) == 6
    assert len(set(best)) == 1
