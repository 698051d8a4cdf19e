"""Batches come in order from any number of threads, and whatever goes wrong is seen by the reader."""

import threading
import time

import numpy as np
import pytest
import torch

from voxtile.data.batches import ReadAhead, collate, flattened

WORKERS = [0, 1, 3]


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("read")]


@pytest.fixture(autouse=True)
def _no_thread_stays():
    """Threads end with the loader that they belong to."""
    before = readers()
    yield
    left = [thread for thread in readers() if thread not in before]
    for thread in left:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in left)


# --- reading ahead


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("count", [0, 1, 20])
def test_batches_come_in_the_order_of_their_items(workers, count):
    def make(item):
        time.sleep(0.002 * (item % 3))  # later items are often ready first
        return {"item": item}

    loader = ReadAhead(lambda: range(count), make, workers)
    for _ in range(2):  # and again
        assert [batch["item"] for batch in loader] == list(range(count))


def test_items_are_asked_for_at_the_start_of_each_pass():
    stretches = iter([range(3), range(3, 5)])
    loader = ReadAhead(lambda: next(stretches), lambda item: {"item": item}, 2)
    assert [[batch["item"] for batch in loader] for _ in range(2)] == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_while_reading_surfaces_at_its_batch(workers):
    def make(item):
        if item == 3:
            raise OSError("the disk is gone")
        return {"item": item}

    got = []
    with pytest.raises(OSError, match="the disk is gone"):
        got.extend(batch["item"] for batch in ReadAhead(lambda: range(100), make, workers))
    assert got == [] or got == [0, 1, 2]


@pytest.mark.parametrize("workers", WORKERS)
def test_leaving_early_reads_little_more_and_nothing_behind_the_back(workers):
    begun, made = [], []

    def make(item):
        begun.append(item)
        time.sleep(0.01)
        made.append(item)
        return {"item": item}

    loader = ReadAhead(lambda: range(1000), make, workers, ahead=2)
    iterator = iter(loader)
    assert [next(iterator)["item"] for _ in range(3)] == [0, 1, 2]
    iterator.close()
    assert sorted(begun) == sorted(made)
    assert len(made) <= 3 + 2 * workers + 1
    assert next(iter(loader)) == {"item": 0}  # and it can be gone through again


def test_threads_and_what_they_hold_open_outlive_a_pass():
    seen = set()
    loader = ReadAhead(lambda: range(20), lambda item: seen.add(threading.get_ident()) or {"item": item}, 1)
    for _ in range(3):
        list(loader)
    assert len(seen) == 1


def test_no_more_than_the_batches_ahead_are_held():
    made = []
    for batch in ReadAhead(lambda: range(50), lambda item: made.append(item) or {"item": item}, 2, ahead=3):
        assert len(made) <= batch["item"] + 1 + 3 * 2


def test_several_threads_read_at_once():
    barrier = threading.Barrier(3, timeout=10)  # breaks unless three threads meet

    def make(item):
        barrier.wait()
        return {"item": item}

    assert len(list(ReadAhead(lambda: range(6), make, 3))) == 6


# --- stacking


def sample(dtype, value=0):
    return {
        "image": np.full((2, 1, 3, 4), value, dtype),
        "valid": np.ones((1, 3, 4), dtype=bool),
        "label": np.zeros((1, 3, 4), np.uint8),
        "mean": np.zeros(2),
        "index": value,
        "augment": {"affine": {"angle": np.array(0.5)}, "flips": np.array([True, False, True])},
    }


def test_samples_are_stacked_with_what_is_nested_in_them():
    batch = collate([sample("uint8", 1), sample("uint8", 2)])
    assert batch["image"].shape == (2, 2, 1, 3, 4)
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].dtype == torch.uint8
    assert batch["valid"].dtype == torch.bool
    assert batch["mean"].dtype == torch.float64
    assert batch["index"].tolist() == [1, 2]
    assert batch["augment"]["affine"]["angle"].tolist() == [0.5, 0.5]
    assert batch["augment"]["flips"].shape == (2, 3)


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("uint8", "int16", torch.int16),
        ("int16", "uint16", torch.int32),
        ("uint8", "float32", torch.float32),
        ("float32", "float64", torch.float64),
        ("uint16", "uint16", torch.uint16),
        (">i2", ">i2", torch.int16),
    ],
)
def test_images_of_different_types_are_promoted_to_one_that_holds_them(first, second, both):
    batch = collate([sample(first, 7), sample(second, 200)])
    assert batch["image"].dtype == both
    assert [int(image.flatten()[0]) for image in batch["image"]] == [7, 200]


def test_the_depth_axis_of_planes_is_taken_away():
    batch = flattened(collate([sample("uint8")] * 5))
    assert {key: tuple(batch[key].shape) for key in ("image", "valid", "label", "mean")} == {
        "image": (5, 2, 3, 4), "valid": (5, 3, 4), "label": (5, 3, 4), "mean": (5, 2),
    }  # fmt: skip
