"""Runs that are killed and started again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def ends(starts: list[tuple[list[str], tuple[str, int] | None]]) -> list[int]:
    """The exit codes of trainings, one after the other, each of them killed at its moment if it has one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.testers.killing"], input=json.dumps(starts), cwd=ROOT, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(next(line for line in reversed(done.stderr.splitlines()) if line.startswith("[")))
    return found


def bits(runs: Path) -> dict[str, bytes]:
    (home,) = [path for path in runs.iterdir() if (path / "recipe.json").exists()]
    names = ("weights/best.safetensors", "weights/last.safetensors", "metrics.csv", "status.json", "pictures/validation.png")
    assert not (home / "resume.pt").exists()
    return {name: (home / name).read_bytes() for name in names}
