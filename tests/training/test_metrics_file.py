"""The metrics file keeps every bit of its numbers and goes back to a checkpoint."""

import math
import struct
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxtile.training.metrics_file import HEADER, MetricsFile, read


def started(path: Path, size: int = 0) -> MetricsFile:
    metrics = MetricsFile(path)
    metrics.start(size)
    return metrics


def rows(path: Path) -> list[tuple[int, str, float]]:
    lines = path.read_text().splitlines()
    assert lines[0] + "\n" == HEADER
    return [(int(step), name, float(value)) for step, name, value in (line.split(",") for line in lines[1:])]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(), max_size=10))
def test_a_value_comes_back_with_the_same_bits(tmp_path: Path, values: list[float]) -> None:
    metrics = started(tmp_path / "metrics.csv")
    for step, value in enumerate(values):
        metrics.add(step, {"train/loss": value})
    found = [value for _, _, value in rows(tmp_path / "metrics.csv")]
    for a, b in zip(found, values, strict=True):
        assert struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))


def test_it_is_cut_back_to_the_checkpoint_and_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm.csv", tmp_path / "rough.csv"
    metrics = started(calm)
    for step in range(6):
        metrics.add(step, {"train/loss": 1 / (step + 3), "train/lr": 0.1})
    metrics = started(rough)
    for step in range(3):
        metrics.add(step, {"train/loss": 1 / (step + 3), "train/lr": 0.1})
    size = metrics.sync()
    assert size == rough.stat().st_size
    metrics.add(3, {"train/loss": 7.0})  # after the checkpoint, lost with the process
    with rough.open("a") as file:
        file.write("4,train/l")  # a row that was cut off
    metrics = started(rough, size)
    for step in range(3, 6):
        metrics.add(step, {"train/loss": 1 / (step + 3), "train/lr": 0.1})
    assert rough.read_bytes() == calm.read_bytes()


def test_what_was_added_is_in_the_file_at_once(tmp_path: Path) -> None:
    metrics = started(tmp_path / "metrics.csv")
    metrics.add(1, {"val/dice": 0.5, "val/iou": 0.25})
    assert rows(tmp_path / "metrics.csv") == [(1, "val/dice", 0.5), (1, "val/iou", 0.25)]


def test_a_run_from_the_start_throws_an_older_file_away(tmp_path: Path) -> None:
    started(tmp_path / "metrics.csv").add(1, {"a": 1.0})
    started(tmp_path / "metrics.csv")
    assert rows(tmp_path / "metrics.csv") == []


def test_rows_are_read_back_without_one_that_is_half_written(tmp_path: Path) -> None:
    started(tmp_path / "metrics.csv").add(3, {"val/dice": 0.1, "val/dice/paved roads": 1e-300})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,val/dice,0.2")  # 0.25, of which the last digit is missing
    assert read(tmp_path / "metrics.csv") == [(3, "val/dice", "0.1"), (3, "val/dice/paved roads", "1e-300")]
    (tmp_path / "metrics.csv").write_text(HEADER[:5])
    assert read(tmp_path / "metrics.csv") == []
