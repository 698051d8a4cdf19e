"""Commands run in this process, and two small finished runs that many tests look at."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import rasterio
import yaml

from tests.testers.tiny import scene_words, volume_words
from voxtile.commands.main import main
from voxtile.commands.trained import Trained


@dataclass(frozen=True)
class Outcome:
    """What a command said and how it ended; its words on screen are one line each, however wide the screen."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return " ".join((self.out + self.err).split())


def read(home: Path, name: str) -> dict:
    """A JSON file of a run folder."""
    return json.loads((home / name).read_text())


@dataclass(frozen=True)
class Run:
    """A finished run: the words that train it, its folder and its data."""

    words: list[str]
    home: Path
    folder: Path
    said: str

    def read(self, name: str) -> dict:
        return read(self.home, name)


Command = Callable[..., Outcome]


def homes(runs: Path) -> list[Path]:
    """The run folders below `runs`."""
    return sorted(path.parent for path in runs.glob("*/recipe.json"))


def opened(run: Run, weights: str = "best") -> Trained:
    """A run as commands open it that trust nothing beside voxtile."""
    return Trained.of({"trust": [], "paths": {"cache": None}}, str(run.home), weights)


def renumbered(run: Run, folder: Path, values: tuple[int | str, int | str] = (40, 10)) -> Path:
    """A copy of a run whose data set calls its two classes by other stored values."""
    home = shutil.copytree(run.home, folder / run.home.name)
    config = yaml.safe_load((home / "config.yaml").read_text())
    config["data"]["labels"] = dict(zip(values, config["data"]["labels"].values(), strict=True))
    (home / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return home


def with_manifest(home: Path, manifest: dict) -> None:
    """Has a finished run say other things of itself, as one whose version kept no digest of them."""
    status = read(home, "status.json")
    status.pop("data", None)
    (home / "status.json").write_text(json.dumps(status))
    (home / "manifest.json").write_text(json.dumps(manifest))


@contextmanager
def other_label(run: Run, side: str) -> Iterator[str]:
    """While this is open, the label of the first case of a side is another one; gives the case's id."""
    case = run.read("manifest.json")["data"]["split"][side][0]["id"]
    path = run.folder / "scenes" / "labels" / f"{case}.tif"
    stored = path.read_bytes()
    try:
        with rasterio.open(path, "r+") as label:
            label.write(1 - label.read())
        yield case
    finally:
        path.write_bytes(stored)


@pytest.fixture(scope="session", autouse=True)
def _no_one_elses_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever a command writes by default goes below the tests' own folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATA", "RUNS", "CACHE"):
            patch.setenv(f"VOXTILE_{name}", str(tmp_path_factory.mktemp(name.lower())))
        # The checkout may be edited while the tests run, which is no concern of theirs.
        patch.setattr("voxtile.studies.manifest.own_sources", lambda: "0" * 64)
        patch.setattr("voxtile.studies.manifest.code", lambda: {"sources": "0" * 64, "commit": "0" * 40, "diff": ""})
        yield


@pytest.fixture
def voxtile(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `voxtile <words>` in this process."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["voxtile", *map(str, words)])
        capfd.readouterr()
        code = main()
        said = capfd.readouterr()
        assert "Traceback" not in said.out + said.err
        return Outcome(code, said.out, said.err)

    return run


def trained(folder: Path, words: list[str]) -> Run:
    """Trains a run, whose folder lies below `folder/runs`."""
    log = folder / "said.txt"
    with pytest.MonkeyPatch.context() as patch, log.open("w") as said:
        patch.setattr(sys, "argv", ["voxtile", "train", *words])
        patch.setattr(sys, "stdout", said)
        assert main() == 0
    (home,) = homes(folder / "runs")
    return Run(words, home, folder, log.read_text())


@pytest.fixture(scope="session")
def scene_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on six scenes; tests may evaluate it and change nothing else."""
    folder = tmp_path_factory.mktemp("scene_run")
    return trained(folder, scene_words(folder))


@pytest.fixture(scope="session")
def volume_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on five volumes; tests may evaluate it and change nothing else."""
    folder = tmp_path_factory.mktemp("volume_run")
    return trained(folder, volume_words(folder))


@pytest.fixture
def copied_run(scene_run: Run, tmp_path: Path) -> Run:
    """A run folder that a test may change; its data stay where they are."""
    home = tmp_path / "runs" / scene_run.home.name
    shutil.copytree(scene_run.home, home, ignore=shutil.ignore_patterns("evaluations"))
    return Run([*scene_run.words, f"paths.runs={tmp_path / 'runs'}"], home, scene_run.folder, scene_run.said)
