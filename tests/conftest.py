"""What holds for all tests."""

import gc
import os

# `make test` starts a process per core; PyTorch's own threads in each of them would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """Garbage is no longer looked for among what all the tests have imported, where every training would look once."""
    gc.freeze()
