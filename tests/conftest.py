"""What holds for all tests."""

import os

# `make test` starts a process per core; PyTorch's own threads in each of them would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
