"""The trackers of a run."""

import pytest

from voxtile.commands.loggers import finish


def test_a_tracker_that_ends_badly_is_told_and_no_reason_to_fail(capfd: pytest.CaptureFixture[str]) -> None:
    class Tracker:
        def finalize(self, status: str) -> None:
            raise OSError(f"no server to tell of {status}")

    finish([Tracker()], well=True)
    assert "Tracker did not end well: no server to tell of success" in capfd.readouterr().out
