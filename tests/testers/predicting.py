"""For tests of what `voxtile predict` does without its networks."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def nothing_is_predicted() -> Iterator[None]:
    """Within it predicting fails, so that a command that succeeds has judged no window."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxtile.inference.predictor.Predictor._judged_part", None)
        yield
