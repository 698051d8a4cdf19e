"""Every configuration file opens with a command that uses it; the command composes, and everything in it is built."""

import inspect
import subprocess
import sys
from pathlib import Path

import lightning
import pytest

from tests.testers.composing import ROOT, command_words, composed
from voxtile.commands.build import build, parts, target
from voxtile.commands.compose import conf_dir, folder_of

OPTIONS = sorted(conf_dir().glob("*/*.yaml"))
FILES = [*(folder_of(name) / f"{name}.yaml" for name in ("train", "evaluate", "predict")), *OPTIONS]


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def header(path: Path) -> list[str]:
    """The words of the command in a file's first comment; a line that names the package may come before it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    words = command_words(first.removeprefix("# ")) if first.startswith("# ") else None
    assert words is not None, f"{name(path)} opens with '{first}', which is no command"
    return words


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("DATA", "RUNS", "CACHE"):
        monkeypatch.setenv(f"VOXTILE_{folder}", str(tmp_path / folder.lower()))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_command_at_the_top_uses_the_file(path: Path) -> None:
    words = header(path)
    if path in OPTIONS:
        assert any(word.startswith(f"{path.parent.name}=") and path.stem in word.partition("=")[2].split(",") for word in words)
    else:
        assert words[0] == path.stem
        assert composed(words)


@pytest.mark.parametrize("path", OPTIONS, ids=name)
def test_everything_in_an_option_is_built(path: Path) -> None:
    for config in composed(header(path)):
        built = parts(config)
        classes = len(built.dataset.classes)
        build(config["model"], "model", in_channels=2, num_classes=classes)
        facts = {"num_classes": classes, "class_counts": [100] * classes, "present_counts": [100] * classes}
        build(config["loss"], "loss", background=built.dataset.background, **facts)
        for node in config["logger"].values():
            target(node["_target_"], "logger")
        assert config["trainer"].keys() <= inspect.signature(lightning.Trainer).parameters.keys()


def test_help_lists_every_group_and_option() -> None:
    done = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for folder in sorted({path.parent for path in OPTIONS}):
        assert f"\n{folder.name}: {', '.join(sorted(path.stem for path in folder.glob('*.yaml')))}\n" in done.stdout
