import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from voxtile.cases.shared import Shared


def test_threads_that_ask_at_the_same_time_get_one_and_the_same():
    made, start = [], threading.Barrier(4)
    shared = Shared(10, len)

    def ask(_):
        start.wait(10)
        return shared.get("a", lambda: made.append(1) or [1, 2])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert len(made) == 1
    assert all(each is found[0] for each in found)


def test_making_one_thing_does_not_hold_up_another():
    shared = Shared(10, len)
    outer = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(shared.get, "slow", lambda: [outer.wait(10)])
        assert shared.get("quick", lambda: [7]) == [7]
        outer.set()
        assert slow.result() == [True]


def test_what_was_used_longest_ago_goes_first_and_the_latest_stays_whatever_its_size():
    shared, made = Shared(5, len), []

    def get(key, size):
        return shared.get(key, lambda: made.append(key) or [key] * size)

    for key, size in (("a", 2), ("b", 2), ("a", 2), ("c", 3), ("a", 2), ("b", 2), ("huge", 99), ("huge", 99)):
        assert len(get(key, size)) == size
    assert made == ["a", "b", "c", "b", "huge"]


def test_an_error_is_passed_on_and_nothing_is_kept():
    shared = Shared(5, len)
    with pytest.raises(ZeroDivisionError):
        shared.get("a", lambda: [1 // 0])
    assert shared.get("a", lambda: [3]) == [3]
