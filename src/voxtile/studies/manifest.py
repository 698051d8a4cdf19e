"""The manifest: what made a run, in facts that can be compared later."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import voxtile
from voxtile.errors import listed

if TYPE_CHECKING:
    from voxtile.data.prepared import Prepared

VERSION = 1  # of the manifest, see docs/manifest.schema.json: raise it when a reader of older ones would be misled
PACKAGES = (
    "torch", "torchvision", "lightning", "numpy", "monai", "torchmetrics", "scipy", "hydra-core",
    "rasterio", "nibabel", "simpleitk", "pydicom", "highdicom",
)  # fmt: skip


OPTIONAL = ("timm", "segmentation-models-pytorch")  # whose networks may be trained
# A diff that `git apply` takes, whatever the user's own settings are.
PLAIN = ("--no-color", "--no-ext-diff", "--no-textconv", "--binary", "--src-prefix=a/", "--dst-prefix=b/")


@dataclass(frozen=True)
class Devices:
    """What a run computes on.

    Attributes:
        kind: "cpu" or "cuda".
        count: how many, each with a process of its own.
        threads: of each process.
        strategy: how several share the work, "ddp" or "fsdp"; "" of one.
    """

    kind: str
    count: int
    threads: int
    strategy: str = ""


def manifest(
    command: str, prepared: Prepared, devices: Devices, trust: Sequence[str] = (), scales: Sequence[float] | None = None
) -> dict[str, Any]:
    """Command, code, versions, hardware and data of a run that starts now.

    Args:
        command: that starts it.
        prepared: its data.
        devices: on which it is trained.
        trust: see `trusted`.
        scales: see `pixel_sizes`.
    """
    from voxtile.data.distances import split_distances
    from voxtile.data.pixel_sizes import pixel_sizes

    split = prepared.split
    return {
        "version": VERSION,
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": code() | ({"trusted": trusted(trust)} if trust else {}),
        "versions": versions(),
        "hardware": hardware(devices),
        "data": {
            "fingerprint": prepared.fingerprint,
            "split": split.as_dict(),
            "contents": contents(prepared),
            "distance": {side: found and found.as_dict() for side, found in split_distances(split).items()},
            "test_fingerprint": prepared.test_fingerprint,
            "test_files": list(prepared.test_files),
            "channels": list(split.train[0].channels),
            "inputs": split.train[0].input_names,
            "past_the_border": "repeat" if split.train[0].neighbours else None,
            "spacing": prepared.dataset.spacing,
            "pixel_sizes": pixel_sizes(split.train, scales),
            "classes": list(prepared.dataset.classes),
            "background": prepared.dataset.background,
            "regions": {name: list(members) for name, members in prepared.dataset.regions.items()},
            "colors": [list(color) for color in prepared.dataset.colors],
            "intensity": None if prepared.intensity is None else prepared.intensity.as_dict(),
            "waived": list(prepared.waived),
        },
    }


def contents(prepared: Prepared) -> dict[str, dict[str, str]]:
    """Digests of the image and of the label of each training and validation case, by id."""
    return {
        name: {"image": found.image_digest, "label": found.label_digest}
        for name, found in sorted(prepared.surveys.items())
    }  # fmt: skip


def other_contents(data: Mapping[str, Any], prepared: Prepared) -> str:
    """In what training and validation cases differ from those of a manifest's `data`, "" where it does not say."""
    if "contents" not in data:  # an older one
        return ""
    known, now = data["contents"], contents(prepared)
    both = sorted(known.keys() & now.keys())
    found = {
        "changed": [f"{what} of {name}" for name in both for what in now[name] if known[name][what] != now[name][what]],
        "not in training or validation any more": sorted(known.keys() - now.keys()),
        "not in them before": sorted(now.keys() - known.keys()),
    }
    return "; ".join(f"{what}: {listed(names)}" for what, names in found.items() if names)


def continued(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a run that goes on: as it began, and under "segments" what each later start was made with."""
    kept = ("command", "started", "code", "versions", "hardware")
    return {**old, "segments": [*old.get("segments", []), {key: new[key] for key in kept}]}


def segment(written: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that is about the run's latest start."""
    found: dict[str, Any] = (written.get("segments") or [written])[-1]
    return found


def versions() -> dict[str, str]:
    """Of Python, voxtile and the packages that can change a number."""
    found = {"python": platform.python_version(), "voxtile": voxtile.__version__}
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in OPTIONAL:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def hardware(devices: Devices) -> dict[str, Any]:
    """What the run computes on."""
    import torch

    used = min(devices.count, torch.cuda.device_count()) if devices.kind == "cuda" else 0
    gpus = [torch.cuda.get_device_name(i) for i in range(used)]
    return {
        "device": devices.kind,
        "devices": devices.count,
        "machine": platform.machine(),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": devices.threads,
        "strategy": devices.strategy,
        "gpus": gpus,
        "driver": driver(),
    }


def driver() -> str | None:
    """The version of NVIDIA's driver, None where there is none."""
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
        if found := re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text):
            return found[1]
    return None


def cpu() -> str:
    """The processor's name where the system tells, and the instructions that PyTorch chooses its kernels by."""
    import torch

    names: list[str] = []
    with contextlib.suppress(OSError):
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return f"{names[0] if names else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})"


def code() -> dict[str, str]:
    """A digest of voxtile's source files; where it runs from a checkout, also its commit and uncommitted changes."""
    root = Path(voxtile.__file__).parents[2]
    found = {"sources": own_sources()}
    if (root / ".git").exists():
        # Without git, or in a checkout without a commit, the digest is all there is.
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            commit = _git(root, "rev-parse", "HEAD").strip()
            found |= {"commit": commit, "diff": _git(root, "diff", *PLAIN, "HEAD", "--", "src", "train.py")}
    return found


def own_sources() -> str:
    """The digest of voxtile's own source files."""
    return sources(Path(voxtile.__file__).parent)


def sources(package: Path) -> str:
    """SHA-256 of the names and contents of all Python files below a folder, committed or not."""
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def trusted(modules: Sequence[str]) -> dict[str, str | None]:
    """Digests of modules that the user trusts, each with the package that it is in, by name."""
    return {name: sources_of(name) for name in sorted({module.partition(".")[0] for module in modules})}


def sources_of(name: str) -> str | None:
    """As `sources`, of a module or package by the name under which it is imported, without importing it; None of one not there."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    found = hashlib.sha256()
    for folder in (spec and spec.submodule_search_locations) or ():
        found.update(sources(Path(folder)).encode())
    if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
        found.update(Path(spec.origin).read_bytes())
    return found.hexdigest() if spec is not None else None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=True)
    return done.stdout.decode(errors="surrogateescape")


def changes(old: Mapping[str, Any], devices: Devices) -> list[str]:
    """What has changed since a manifest was written, one phrase each: code, versions, devices, threads and GPUs."""
    found = []
    old = segment(old)  # the latest start is what would be continued
    if old["code"].get("sources") != own_sources():
        found.append("the code has changed")
    for name, digest in old["code"].get("trusted", {}).items():  # a manifest from elsewhere: only a package's name is looked up
        if sources_of(name.partition(".")[0]) != digest:
            found.append(f"the trusted module '{name}' has changed")
    now = versions()
    found += [f"{name} was {value}, is {now.get(name)}" for name, value in old["versions"].items() if now.get(name) != value]
    count = old["hardware"].get("devices", 1)
    before = {"devices": count, "strategy": "ddp" if count > 1 else ""}  # of older manifests, which do not say
    here, there = hardware(devices), before | old["hardware"]
    for key in ("device", "devices", "strategy", "machine", "cpu", "threads", "gpus", "driver"):
        # One device has no strategy, and a driver counts where it is used, of manifests that name one.
        on_gpus = here["device"] == "cuda"
        counts = {"strategy": there["strategy"] and here["strategy"], "driver": on_gpus and "driver" in there, "gpus": on_gpus}
        if there.get(key) != here[key] and counts.get(key, True):
            hint = f" (OMP_NUM_THREADS={there[key]} gives as many)" if key == "threads" and there.get(key) else ""
            found.append(f"{key} was {there.get(key)}, is {here[key]}{hint}")
    return found
