"""The manifest: what made a run, in facts that can be compared later."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import voxtile

if TYPE_CHECKING:
    from voxtile.data.prepared import Prepared

PACKAGES = ("torch", "torchvision", "lightning", "numpy", "monai", "torchmetrics", "rasterio", "nibabel", "scipy", "hydra-core")


def manifest(command: str, prepared: Prepared) -> dict[str, Any]:
    """Command, code, versions, hardware and data of a run that starts now."""
    split = prepared.split
    return {
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": code(),
        "versions": versions(),
        "hardware": hardware(),
        "data": {
            "fingerprint": prepared.fingerprint,
            "split": split.as_dict(),
            "test_fingerprint": prepared.test_fingerprint,
            "test_images": {case.id: prepared.images[case.id] for case in split.test},
            "channels": list(split.train[0].channels),
            "classes": list(prepared.dataset.classes),
            "background": prepared.dataset.background,
            "colors": [list(color) for color in prepared.dataset.colors],
            "intensity": None if prepared.intensity is None else prepared.intensity.as_dict(),
            "waived": list(prepared.waived),
        },
    }


def continued(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a run that goes on: as it began, and under "segments" what each later start was made with."""
    kept = ("command", "started", "code", "versions", "hardware")
    return {**old, "segments": [*old.get("segments", []), {key: new[key] for key in kept}]}


def versions() -> dict[str, str]:
    """Of Python, voxtile and the packages that can change a number."""
    return {"python": platform.python_version(), "voxtile": voxtile.__version__} | {
        name: importlib.metadata.version(name) for name in PACKAGES
    }


def hardware() -> dict[str, Any]:
    """What the run computes on."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def code() -> dict[str, str]:
    """Commit and uncommitted changes of the checkout that voxtile runs from; empty where it is an installed package."""
    root = Path(voxtile.__file__).parents[2]
    if not (root / ".git").exists():
        return {}
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        return {"commit": commit, "diff": _git(root, "diff", "HEAD", "--", "src", "train.py")}
    except (OSError, subprocess.CalledProcessError):
        return {}  # no git, or a checkout without a commit


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout


def changes(old: Mapping[str, Any]) -> list[str]:
    """What has changed since a manifest was written, one phrase each: code, versions, threads and GPUs."""
    found = []
    old = (old.get("segments") or [old])[-1]  # the latest start is what would be continued
    now = code()
    if (old["code"].get("commit"), old["code"].get("diff")) != (now.get("commit"), now.get("diff")):
        found.append("the code has changed")
    found += [
        f"{name} was {value}, is {versions().get(name)}" for name, value in old["versions"].items() if versions().get(name) != value
    ]
    here = hardware()
    for key in ("machine", "threads", "gpus"):
        if old["hardware"].get(key) != here[key]:
            found.append(f"{key} was {old['hardware'].get(key)}, is {here[key]}")
    return found
