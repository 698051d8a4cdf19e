"""The ledger of looks at a test split: each one makes the next result a little less of a test."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

from voxtile.errors import RunError


def record_look(runs: Path, fingerprint: str, run: str, what: str) -> int:
    """Appends a look to the ledger of the test data with `fingerprint` and returns how many there are now.

    Args:
        runs: folder of run folders; the ledger lies in its `test_ledger`.
        fingerprint: of the test cases' images.
        run: identity of the run that looks.
        what: "evaluate" or "predict".
    """
    if not re.fullmatch(r"[0-9a-f]{32}", fingerprint):
        raise RunError(f"'{fingerprint}' is no fingerprint of test data: the run's manifest.json is damaged. Train the run again.")
    path = runs / "test_ledger" / f"{fingerprint}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), "run": run, "what": what})
    with path.open("a", encoding="utf-8") as ledger:
        ledger.write(line + "\n")
        ledger.flush()
        os.fsync(ledger.fileno())
    return len(path.read_text(encoding="utf-8").splitlines())
