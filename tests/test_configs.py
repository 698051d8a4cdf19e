"""Every configuration file opens with a command that uses it; the command composes, and everything in it is built."""

import inspect
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate

from tests.testers.composing import ROOT, command_words, composed
from voxtile.commands.allowed import build, build_network, target
from voxtile.commands.build import parts
from voxtile.commands.compose import conf_dir, folder_of

OPTIONS = sorted(conf_dir().rglob("*/*.yaml"))
FILES = [*(folder_of(name) / f"{name}.yaml" for name in ("train", "plan", "evaluate", "predict")), *OPTIONS]


def group_and_option(path: Path) -> tuple[str, str]:
    group, _, option = path.relative_to(conf_dir()).with_suffix("").as_posix().partition("/")
    return group, option


def name(path: Path) -> str:
    return "/".join(group_and_option(path)) if path in OPTIONS else path.name


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
        group, option = group_and_option(path)
        assert any(word.startswith(f"{group}=") and option in word.partition("=")[2].split(",") for word in words)
    else:
        assert words[0] == path.stem
        assert composed(words)


@pytest.mark.parametrize("path", OPTIONS, ids=name)
def test_everything_in_an_option_is_built(path: Path) -> None:
    for config in composed(header(path)):
        built = parts(config)
        classes = len(built.dataset.classes)
        if group_and_option(path)[0] in ("model", "experiment"):  # the other groups leave the network as it is
            with torch.device("meta"):  # as wide as the command says, for nothing
                built_by_us = build_network(config["model"], (), 2, classes)
                built_by_hydra = instantiate(config["model"], in_channels=2, num_classes=classes)
            shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (built_by_us, built_by_hydra)]
            assert shapes[0] == shapes[1]
        facts = {"num_classes": classes, "class_counts": [100] * classes, "present_counts": [100] * classes}
        build(config["loss"], "loss", background=built.dataset.background, **facts)
        for node in config["logger"].values():
            target(node["_target_"], "logger")
        assert config["trainer"].keys() <= inspect.signature(lightning.Trainer).parameters.keys()


def test_help_lists_every_group_and_option() -> None:
    done = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    # Groups come before settings: of lines with the same key, the first counts.
    rows = dict(line.split(": ", 1) for line in reversed(done.stdout.splitlines()) if ": " in line)
    for group, option in map(group_and_option, OPTIONS):
        assert option in rows[group].split(", ")


@pytest.mark.parametrize(
    ("group", "name"),
    [("launcher", "processes"), ("launcher", "slurm"), ("launcher", "ray"), ("sweeper", "combinations"), ("sweeper", "study")],
)
def test_settings_of_a_plug_in_stand_in_its_file_alone(group: str, name: str) -> None:
    composed(["train"])  # plug-ins are found then
    assert list(ConfigStore.instance().load(f"hydra/{group}/{name}.yaml").node) == ["_target_"]
