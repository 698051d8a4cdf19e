"""The command line itself: help, versions, words that are wrong, and what is imported before a run starts."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.commands.conftest import Command, Run
from voxtile import __version__
from voxtile.commands.compose import folder_of
from voxtile.commands.console import console
from voxtile.commands.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "lightning", "monai", "torchmetrics", "rasterio", "nibabel", "scipy", "pandas", "matplotlib", "wandb")
# Runs a command and prints, after what it says, which heavy modules it has imported and its exit code.
PROBE = f"""
import sys
from voxtile.commands.main import main
code = 0
try:
    code = main()
except SystemExit as error:
    code = error.code or 0
print("imported", *[name for name in {HEAVY} if name in sys.modules])
print("code", code)
"""


@pytest.mark.parametrize("word", ["--help", "-h", "help", None])
def test_help_lists_the_commands(voxtile: Command, word: str | None) -> None:
    said = voxtile(*([] if word is None else [word]))
    assert said.code == 0
    for name, text in COMMANDS.items():
        assert f"{name}" in said.out
        assert text in said.out


def test_the_command_where_it_is_not_on_the_path() -> None:
    done = subprocess.run([sys.executable, "-m", "voxtile", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


def test_the_version(voxtile: Command) -> None:
    assert voxtile("--version").out.strip() == __version__


def test_an_unknown_command_is_named_with_the_nearest(voxtile: Command) -> None:
    said = voxtile("trian")
    assert said.code == 2
    assert "voxtile has no command 'trian'. Did you mean 'train'?" in said.err


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["voxtile", name, "--help"])
    assert main() == 0
    out = capfd.readouterr().out
    assert "voxtile" in out
    assert "==" in out


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("predict", "damaged: error      # what cannot be read of a file: error, or nodata"),
        ("status", "runs: ${paths.runs}/*   # run folders, a list or a pattern"),
        ("plan", "  memory: 8        # gigabytes that a training step may take"),
    ],
)
def test_settings_are_explained_where_a_command_is(voxtile: Command, name: str, line: str) -> None:
    out = voxtile(name, "--help").out
    settings = yaml.safe_load(out.rpartition("==\n")[2].partition("Other commands")[0])
    assert out.splitlines().count(line) == 1
    assert settings.keys() >= yaml.safe_load((folder_of(name) / f"{name}.yaml").read_text()).keys() - {"defaults", "hydra"}
    assert ("model" in settings) == (name == "plan")
    assert yaml.safe_load(voxtile(name, "--cfg", "job").out).keys() == settings.keys()


def test_train_names_the_other_commands(voxtile: Command) -> None:
    (line,) = (line for line in voxtile("train", "--help").out.splitlines() if line.startswith("Other commands:"))
    assert set(re.findall(r"\w+", line.partition("voxtile")[2].partition(",")[0])) == COMMANDS.keys() - {"train"}


def test_check_says_what_it_does(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["voxtile", "check", "--help"])
    assert main() == 0
    out = capfd.readouterr().out
    assert out.startswith("Looks at a training before it starts")
    assert "voxtile check data=mri" in out
    assert "Trains a segmentation network" not in out
    assert "training:" in out


LIGHT = {
    "train --help": (0, "== What can be chosen"),
    "train --cfg job": (0, "_target_: voxtile.models.unet.UNet"),
    "train training.stepz=1": (2, "Did you mean 'training.steps'?"),
    "train lr=0.1": (2, "no key 'lr'. Did you mean 'optimizer.lr'?"),
    "train steps=5": (2, "no key 'steps'. Did you mean 'training.steps'?"),
    "train bach_size=5": (2, "no key 'bach_size'. Did you mean 'training.batch_size'?"),
    "train trainer.max_epochs=5": (2, "Did you mean 'training.steps'? voxtile counts steps"),
    "train learning_rate=1": (2, "no key 'learning_rate'. Did you mean 'optimizer.lr'?"),
    "train --epochs=5": (
        2,
        "'--epochs=5' is no flag: settings are typed 'key=value', without dashes. Did you mean 'training.steps'?",
    ),
    "train --lr 0.1": (2, "'--lr' is no flag: settings are typed 'key=value', without dashes. Did you mean 'optimizer.lr'?"),
    "predict --input x": (2, "without dashes. Did you mean 'input'?"),
    "train --vers": (0, "Hydra "),
    "compare runs=[a,b]": (2, "no key 'runs'. Did you mean 'evaluations'?"),
    "evaluate epochs=5": (2, "no key 'epochs'. All keys: voxtile evaluate"),
    "train seed=0,1": (2, "Several values are for several runs: type '-m' too."),
    "train sweep=optuna optimizer.lr=interval(1e-3,1e-2)": (2, "type '-m' too. Sweep parameters 'optimizer.lr=interval("),
    "train model=unett": (2, "Did you mean 'unet'?"),
    "evaluate --help": (0, "voxtile evaluate run="),
    "predict inptu=x": (2, "Did you mean 'input'?"),
    "train training.steps=-4": (2, "'training.steps=-4' must be 1 or more"),
    "train seed=-1": (2, "'seed=-1' must be a whole number"),
    "train data.window=32": (2, "'data.window=32' must be [height, width]"),
    "train trainer.precision=8": (2, "'trainer.precision=8' is unknown"),
    "check +data.windo=1": (2, "Did you mean 'window'?"),
    **{
        f"{command} run=nothere{more}": (4, "nothere is no run folder: it does not exist. Name the folder of a run with 'run=")
        for command, more in (
            ("evaluate", ""), ("predict", " input=a output=b"), ("export", " format=onnx"), ("verify", ""), ("reproduce", ""),
        )
    },
    "predict runs=[nothere,northere] input=a output=b": (4, "nothere is no run folder"),
    "compare evaluations=[nothere,northere]": (4, "nothere holds no evaluation"),
}  # fmt: skip


def test_help_and_configuration_errors_import_nothing_heavy() -> None:
    """In one process for all, since what one imports the others would show as well."""
    script = "import contextlib\n" + "\n".join(
        f"sys.argv = ['voxtile', *{words.split()!r}]\n{PROBE.replace('import sys', '', 1)}" for words in LIGHT
    )
    done = subprocess.run([sys.executable, "-c", f"import sys\n{script}"], capture_output=True, text=True, timeout=120, check=True)
    parts = (done.stdout).split("\ncode ")
    assert [int(part.splitlines()[0]) for part in parts[1:]] == [code for code, _ in LIGHT.values()]
    for line in done.stdout.splitlines():
        if line.startswith("imported"):
            assert line == "imported"
    for _, words in LIGHT.values():
        assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"train", "check", "plan"}))
def test_a_setting_that_is_added_to_a_command_is_refused(command: str, voxtile: Command) -> None:
    said = voxtile(command, "+nonsense=3")
    assert said.code == 2
    assert f"'voxtile {command}' takes no 'nonsense'. It takes " in said.text


def test_what_is_added_further_down_is_refused_and_an_own_setting_is_not(
    voxtile: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where Hydra makes a folder for several jobs
    assert "'voxtile evaluate' takes no 'data'." in voxtile("evaluate", "+data.labels={0: ground}").text
    assert "'paths' takes no 'cahe'. Did you mean 'cache'?" in voxtile("evaluate", "+paths.cahe=a").text
    assert "'voxtile evaluate' takes no 'a'." in voxtile("evaluate", "-m", "+a=1,2").text
    assert "takes no" not in voxtile("evaluate", "++crf.bilateral_weight=4", "+surface=true").text


def test_commands_work_from_any_folder(scene_run: Run, tmp_path: Path, voxtile: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nothing was trained" in voxtile("train", *scene_run.words).text
    assert voxtile("train", "--cfg", "job").code == 0
    assert list(tmp_path.iterdir()) == []


def test_flags_may_stand_anywhere(voxtile: Command) -> None:
    for words in (["seed=3", "--cfg", "job", "model.width=5"], ["--cfg", "job", "seed=3", "model.width=5"]):
        said = voxtile("train", *words)
        assert said.code == 0
        assert "seed: 3" in said.out
        assert "width: 5" in said.out


def test_train_py_is_voxtile_train() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "modle=unet"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT / "tests",
        check=False,
    )
    assert done.returncode == 2
    assert "Did you mean 'model'?" in done.stderr


COMPLETED = {
    "voxtile tr": "train",
    "voxtile train aug": "augment=",
    "voxtile train model=fcn8s_": "model=fcn8s_atonce",
    "voxtile train data=sat": "data=satellite",
    "voxtile evaluate spl": "split=",
    "voxtile predict prec": "precision=",
}


@pytest.mark.parametrize(("line", "found"), COMPLETED.items())
def test_the_shell_completes_what_was_begun(voxtile: Command, monkeypatch: pytest.MonkeyPatch, line: str, found: str) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    said = voxtile("-sc", "query=bash")
    assert said.code == 0
    assert found in said.out.split()
    assert "complete -o nospace" in voxtile("-sc", "install=bash").out


def test_names_that_are_no_text_are_printed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stored, encoding="utf-8", write_through=True))
    console().print(os.fsdecode(b"a\xff.tif"))
    assert stored.getvalue() == b"a\\udcff.tif\n"


def test_signs_that_stand_for_pictures_are_printed_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    console().print("runs/t:x:1 [red]")
    assert capfd.readouterr().out == "runs/t:x:1 [red]\n"
