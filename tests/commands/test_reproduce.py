"""A run trained again from its folder: the same bits, and what is said where it is not."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.commands.conftest import Command, Run, homes, other_label
from tests.testers.tiny import scene_words
from voxtile.commands.reproduce import _made_with, _parent_of
from voxtile.commands.verify import other_identity
from voxtile.errors import RunError
from voxtile.studies.reproduction import compare
from voxtile.training import recipe
from voxtile.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]


def test_the_run_that_one_started_from_is_looked_for_beside_it_once_both_have_moved(tmp_path: Path) -> None:
    first, recorded = RunFolder(tmp_path / "moved" / "child"), tmp_path / "runs" / "parent"
    with pytest.raises(RunError, match=r"weights of .*parent, which is gone\. Put that run's folder beside this one"):
        _parent_of(first, recorded)
    (tmp_path / "moved" / "parent").mkdir(parents=True)
    assert _parent_of(first, recorded) == tmp_path / "moved" / "parent"
    recorded.mkdir(parents=True)
    assert _parent_of(first, recorded) == recorded


def test_a_run_whose_data_have_moved_is_trained_again_identically(copied_run: Run, voxtile: Command, tmp_path: Path) -> None:
    shutil.copytree(copied_run.folder / "scenes", tmp_path / "moved")
    config = copied_run.home / "config.yaml"
    config.write_text(config.read_text().replace(str(copied_run.folder / "scenes"), "/gone"))
    said = voxtile("reproduce", f"run={copied_run.home}", f"output={tmp_path / 'again'}", "code=here",
                   f"root={tmp_path / 'moved'}", f"paths.cache={copied_run.folder / 'cache'}")  # fmt: skip
    assert said.code == 0, said.text
    assert "identical: all" in said.text
    (again,) = homes(next((tmp_path / "again").iterdir()))
    assert again.name == copied_run.home.name
    assert (again / "weights" / "last.safetensors").read_bytes() == (copied_run.home / "weights" / "last.safetensors").read_bytes()


def test_what_a_run_lacks_is_told_before_anything_is_trained(copied_run: Run, tmp_path: Path, voxtile: Command) -> None:
    (copied_run.home / "metrics.csv").unlink()
    (copied_run.home / "weights" / "last.safetensors").unlink()
    said = voxtile("reproduce", f"run={copied_run.home}", f"output={tmp_path / 'again'}", "code=here")
    assert said.code == 4
    assert f"{copied_run.home} cannot be compared with: metrics.csv, weights/last.safetensors are gone" in said.text
    assert not (tmp_path / "again").exists()


def test_numbers_and_weights_that_were_changed_later_are_not_blamed_on_the_hardware(copied_run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(copied_run.home, other)
    first, second = RunFolder(copied_run.home), RunFolder(other)
    kept = first.metrics.read_text()
    first.metrics.write_text(re.sub(r"(?m)^3,val/dice,.*$", "3,val/dice,0.9", kept))
    found = compare(first, second)
    assert not found.identical
    assert found.lines[0].startswith("not identical: 1 of ")
    assert re.fullmatch(r"  step 3, val/dice: 0\.9, now 0\.\d+", found.lines[1])
    assert found.lines[2:] == [
        f"The weights are the same, bit for bit, so the training was: {first.metrics} seems to have changed since."
    ]
    first.metrics.write_text(kept)
    best = first.weights / "best.safetensors"
    save_file({name: value + 1 for name, value in load_file(best).items()}, best)
    found = compare(first, second)
    assert not found.identical
    assert found.lines[-1].endswith("it was finished with, so that they cannot be the same: best has changed.")


@pytest.mark.slow
def test_code_that_has_changed_since_is_brought_back(tmp_path: Path) -> None:
    """A checkout with a change that was not committed trains a run, and goes on; the run is trained again as it was."""
    tree, words, left = (
        tmp_path / "tree",
        scene_words(tmp_path),
        tmp_path / "temporary" / "voxtile-code-killed",
    )
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "TMPDIR": str(left.parent)}
    left.mkdir(parents=True)

    def git(*given: str) -> None:
        who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
        subprocess.run(["git", *who, *given], cwd=tree, check=True, capture_output=True)

    def ran(*given: object) -> str:
        command = [sys.executable, "-c", "from voxtile.commands.main import main; raise SystemExit(main())", *map(str, given)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", tree / "conf")
    shutil.copy(ROOT / "train.py", tree)
    git("init", "-q")
    git("config", "diff.noprefix", "true")  # a setting of the user's, which must not matter
    git("add", "-A")
    git("commit", "-qm", "first")
    module = tree / "src" / "voxtile" / "training" / "module.py"
    module.write_text(module.read_text() + "\n# not committed: ä\n")
    ran("train", *words)
    (home,) = homes(tmp_path / "runs")
    git("commit", "-qam", "second")
    module.write_text(module.read_text() + "\nraise SystemExit('this is not the code that made the run')\n")
    git("commit", "-qam", "third")
    git("worktree", "add", "--detach", str(left / "tree"))
    os.utime(left, (0, 0))
    said = ran("reproduce", f"run={home}", f"paths.cache={tmp_path / 'cache'}", "patch=true")
    assert "with the code of commit" in said
    assert "not quite" not in said
    assert "identical: all" in said
    found = subprocess.run(["git", "worktree", "list"], cwd=tree, capture_output=True, text=True, check=True).stdout
    assert len(found.splitlines()) == 1
    assert not left.exists()


def test_changed_data_are_told_before_anything_is_trained(copied_run: Run, tmp_path: Path, voxtile: Command) -> None:
    with other_label(copied_run, "train") as case:
        said = voxtile("reproduce", f"run={copied_run.home}", f"output={tmp_path / 'again'}", "code=here")
    assert said.code == 3
    assert f"changed: label of {case}" in said.text
    assert not (tmp_path / "again").exists()
    assert "'patch=perhaps' must be true or false" in voxtile("reproduce", f"run={copied_run.home}", "patch=perhaps").text


def test_a_reproduction_with_other_trusted_code_is_another(
    copied_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    manifest = copied_run.read("manifest.json")

    def made(*trust: str) -> str:
        return _made_with(manifest, {"code": "here", "trust": list(trust)})

    (tmp_path / "lab_of_tests.py").write_text("")
    importlib.invalidate_caches()  # the folder was listed a moment ago, when the file was not there
    before = made("lab_of_tests")
    assert before == made("lab_of_tests") != made()
    (tmp_path / "lab_of_tests.py").write_text("1\n")
    assert made("lab_of_tests") != before


def test_an_unfinished_run_and_changed_code_are_refused(copied_run: Run, voxtile: Command) -> None:
    manifest = copied_run.read("manifest.json")
    manifest["code"] = {"sources": "1" * 64, "commit": "2" * 40, "diff": "+ 1\n"}
    (copied_run.home / "manifest.json").write_text(json.dumps(manifest))
    said = voxtile("reproduce", f"run={copied_run.home}")
    assert said.code == 4
    assert "Commit 222222222222, which made the run, is not in the history of this checkout" in said.text
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    if head:  # of a checkout
        manifest["code"]["commit"] = head
        (copied_run.home / "manifest.json").write_text(json.dumps(manifest))
        said = voxtile("reproduce", f"run={copied_run.home}")
        assert said.code == 4
        assert "uncommitted changes (1 line of a diff" in said.text
        assert "Read them, since they run as code, then type 'patch=true'" in said.text
    manifest["code"]["commit"] = "--upload-pack=x"
    (copied_run.home / "manifest.json").write_text(json.dumps(manifest))
    assert "names '--upload-pack=x' as the commit, which is none" in voxtile("reproduce", f"run={copied_run.home}").text
    manifest["code"]["commit"] = "2" * 40
    (copied_run.home / "manifest.json").write_text(json.dumps(manifest))
    said = voxtile("reproduce", f"run={copied_run.home}", "patch=true")
    assert said.code == 4
    assert "Commit 222222222222 could not be brought back" in said.text
    assert "'code=here'" in said.text
    (copied_run.home / "status.json").write_text('{"state": "interrupted", "step": 2}')
    said = voxtile("reproduce", f"run={copied_run.home}")
    assert said.code == 4
    assert "is interrupted, at step 2: there is nothing to compare with yet. Train it to its end first: the command" in said.text


def test_a_run_of_an_older_network_is_whole_and_not_trained_again_with_the_present_code(
    copied_run: Run, voxtile: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = copied_run.read("recipe.json")["settings"]["model"]["_target_"]
    monkeypatch.setattr(recipe, "MOVED", {network: lambda given: True})
    assert other_identity(RunFolder(copied_run.home)) == []
    said = voxtile("reproduce", f"run={copied_run.home}", f"output={tmp_path / 'again'}", "code=here")
    assert said.code == 4
    assert (
        "its network or its augmentation has another version now, which comes to other numbers. Leave 'code=here' out" in said.text
    )


def test_what_differs_is_said_with_its_likely_cause_and_the_spread_of_seeds(copied_run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(copied_run.home, other)
    first, second = RunFolder(copied_run.home), RunFolder(other)
    assert compare(first, second).identical
    weights = load_file(other / "weights" / "last.safetensors")
    name = next(key for key in weights if weights[key].ndim > 1)
    weights[name][0] += 0.5
    save_file(weights, other / "weights" / "last.safetensors", metadata={"step": "6"})
    found = compare(first, second)
    assert not found.identical
    text = "\n".join(found.lines)
    assert "0 of" in found.lines[0]
    assert f"weights last: {len(weights) - 1} of {len(weights)} tensors are the same; the largest difference is 0.5" in text
    assert "Code, versions and hardware are the same, so the cause is an operation that is not deterministic" in text
    assert "fewer than two finished runs with another seed lie beside this one" in text

    manifest, status = (json.loads((other / f"{part}.json").read_text()) for part in ("manifest", "status"))
    manifest["versions"]["torch"] = "9.9"
    manifest["hardware"]["threads"] = 77
    status["best"]["scores"]["dice"] += 0.25
    (other / "manifest.json").write_text(json.dumps(manifest))
    (other / "status.json").write_text(json.dumps(status))
    metrics = (other / "metrics.csv").read_text().splitlines()
    (other / "metrics.csv").write_text("\n".join([*metrics[:-1], "6,val/other,1.0"]) + "\n")
    for seed, change in ((1, 0.01), (2, -0.01)):
        beside = copied_run.home.parent / f"seed{seed}"
        shutil.copytree(copied_run.home, beside)
        recipe, own = (json.loads((beside / f"{part}.json").read_text()) for part in ("recipe", "status"))
        recipe["settings"]["seed"], recipe["identity"] = seed, f"{seed:032}"
        own["best"]["scores"]["dice"] += change
        (beside / "recipe.json").write_text(json.dumps(recipe))
        (beside / "status.json").write_text(json.dumps(own))
    text = "\n".join(compare(first, second).lines)
    assert text.startswith(f"not identical: 2 of {len(metrics)} numbers of metrics.csv differ")
    assert "(+0.250000)" in text
    assert "threads (" in text
    assert ", now 77)" in text
    assert ", now 9.9)" in text
    assert "The mean Dice moved by 0.2500, more than the standard deviation 0.0100 of this recipe's 3 seeds." in text
