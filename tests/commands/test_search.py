"""A search for settings: what is asked, what is told, and how a study goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.errors import ConfigCompositionException
from optuna.trial import TrialState

from tests.commands.conftest import Command, homes
from tests.testers.tiny import scene_words
from voxtile.commands import search as searching
from voxtile.commands.console import console
from voxtile.commands.guard import STOPPED
from voxtile.commands.space import TrialMaker
from voxtile.commands.sweep import Job

ROOT = Path(__file__).parents[2]
SPACE = ["optimizer.lr=tag(log, interval(1e-4, 1e-1))", "training.batch_size=range(1,4)"]


def study_of(runs: Path) -> optuna.Study:
    (file,) = runs.glob("studies/*/study.db")
    return optuna.load_study(study_name=file.parent.name, storage=f"sqlite:///{file}")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    small = [word for word in scene_words(tmp_path) if not word.startswith("model.depth")]  # which not every network has
    return ["train", "-m", "sweep=optuna", *small]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[Mapping[str, Any]], Any]], list[list[str]]]:
    """Has jobs end at once with the scores that a function of their settings gives; it returns their words as they come."""

    def pretend(score: Callable[[Mapping[str, Any]], Any]) -> list[list[str]]:
        asked: list[list[str]] = []

        def run_jobs(
            take: Callable[[], Job | None], slots: object, place: Path, ended: Callable[[Job], object], *_: object
        ) -> bool:
            while (job := take()) is not None:
                asked.append(list(job.outcome.words))
                found = score(dict(word.split("=", 1) for word in job.outcome.words))
                if isinstance(found, int):
                    job.outcome.code, job.outcome.reason = found, "it was told to"
                    if found == STOPPED:
                        ended(job)
                        return True
                else:
                    home = tmp_path / "pretended" / str(len(asked))
                    home.mkdir(parents=True, exist_ok=True)
                    status = {"state": "finished", "step": 10, "best": {"scores": found}}
                    (home / "status.json").write_text(json.dumps(status))
                    (home / "manifest.json").write_text(json.dumps({"training_seconds": 5.0, "peak_memory_gib": 1.0}))
                    job.outcome.code, job.outcome.home = 0, str(home)
                ended(job)
            return False

        monkeypatch.setattr(searching, "run_jobs", run_jobs)
        return asked

    return pretend


def test_trials_follow_the_typed_space_and_the_best_is_written_down(
    words: list[str], tmp_path: Path, voxtile: Command, pretended: Callable
) -> None:
    asked = pretended(lambda given: {"dice": -abs(float(given["optimizer.lr"]) - 0.01) * int(given["training.batch_size"])})
    words = [word for word in words if not word.startswith("training.")]  # which would be instead of the experiment's
    (tmp_path / "conf" / "experiment").mkdir()
    (tmp_path / "conf" / "experiment" / "long.yaml").write_text("# @package _global_\ntraining: {steps: 2000}\n")
    said = voxtile(*words, *SPACE, "model=choice(unet,segnet)", "experiment=long", "seed=3", "hydra.sweeper.trials=12")
    assert said.code == 0
    assert len(asked) == 12
    trials = study_of(tmp_path / "runs").trials
    assert {trial.params["training.batch_size"] for trial in trials} <= {1, 2, 3}
    assert all(1e-4 <= trial.params["optimizer.lr"] <= 1e-1 for trial in trials)
    assert {trial.params["model"] for trial in trials} == {"unet", "segnet"}
    assert all("seed=3" in each and not any(word.startswith("sweep") for word in each) for each in asked)
    best = max(trials, key=lambda trial: trial.values[0])
    (file,) = (tmp_path / "runs").glob("studies/*/experiment/best.yaml")
    command = file.read_text().splitlines()[1].removeprefix("# voxtile ")
    assert command in said.text
    config = voxtile(*command.split(), "--cfg", "job").out
    assert f"lr: {best.params['optimizer.lr']}" in config
    assert f"batch_size: {best.params['training.batch_size']}" in config
    assert f"_target_: voxtile.models.{best.params['model']}." in config
    assert "steps: 2000" in config  # the experiment's
    assert f"best: trial {best.number}" in said.text


def test_a_later_command_continues_the_study_with_other_trials(
    words: list[str], tmp_path: Path, voxtile: Command, pretended: Callable
) -> None:
    asked = pretended(lambda given: {"dice": 0.5})
    for trials in (3, 5):
        assert voxtile(*words, *SPACE, "hydra.sweeper.sampler=random", f"hydra.sweeper.trials={trials}").code == 0
    assert len(asked) == 5
    assert len({tuple(each) for each in asked}) == 5
    assert [trial.number for trial in study_of(tmp_path / "runs").trials] == [0, 1, 2, 3, 4]
    said = voxtile(*words, *SPACE, "seed=1", f"hydra.sweeper.name={study_of(tmp_path / 'runs').study_name}")
    assert said.code == 2
    assert "searches something else" in said.text


def test_failed_and_undefined_trials_are_failed_with_their_reason_and_stopped_ones_are_taken_up_again(
    words: list[str], tmp_path: Path, voxtile: Command, pretended: Callable
) -> None:
    ends = iter([4, {"dice": None}, {"dice": 0.7}, STOPPED])
    asked = pretended(lambda given: next(ends))
    said = voxtile(*words, *SPACE, "hydra.sweeper.trials=5")
    assert said.code == 130
    states = [trial.state for trial in study_of(tmp_path / "runs").trials]
    assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE, TrialState.RUNNING]
    assert "trial 0: it was told to" in said.text
    assert "trial 1: dice came out undefined" in said.text
    left = asked[-1]
    study = study_of(tmp_path / "runs")
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    optuna.trial.Trial(study, study.trials[3]._trial_id).set_user_attr("owner", {
        "host": os.uname().nodename, "pid": gone.pid, "started": "1",
    })  # fmt: skip
    asked = pretended(lambda given: {"dice": 0.9})
    said = voxtile(*words, *SPACE, "hydra.sweeper.trials=5")
    assert said.code == 0
    assert asked[0] == left
    states = [trial.state for trial in study_of(tmp_path / "runs").trials]
    assert states[3:] == [TrialState.COMPLETE, TrialState.COMPLETE]


def test_a_search_in_which_nothing_can_be_trained_fails(words: list[str], voxtile: Command, pretended: Callable) -> None:
    pretended(lambda given: 4)
    assert voxtile(*words, *SPACE, "hydra.sweeper.trials=2").code == 4


def test_several_objectives_give_a_front(words: list[str], tmp_path: Path, voxtile: Command, pretended: Callable) -> None:
    pretended(lambda given: {"dice": float(given["optimizer.lr"]), "iou": -float(given["optimizer.lr"])})
    said = voxtile(*words, *SPACE, "hydra.sweeper.objectives=[dice,iou,-seconds_per_step]",
                   "hydra.sweeper.trials=3", "hydra.sweeper.sampler=nsga2")  # fmt: skip
    assert said.code == 0
    assert "best (none is better in all objectives): trial 0, trial 1, trial 2" in said.text
    assert len(list((tmp_path / "runs").glob("studies/*/experiment/best_*.yaml"))) == 3
    assert [trial.values[2] for trial in study_of(tmp_path / "runs").trials] == [0.5] * 3


def test_settings_of_the_best_trials_replace_earlier_ones_and_no_file_of_the_user_s(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["maximize", "maximize"])
    for values in ([1.0, 0.0], [0.0, 1.0]):
        study.add_trial(optuna.trial.create_trial(values=values))
    (tmp_path / "experiment").mkdir()
    for name in ("best", "best_7", "best_with_my_edits", "best_1_old", "bestiary"):
        (tmp_path / "experiment" / f"{name}.yaml").write_text("")
    searching.report(study, {"dice": "maximize", "iou": "maximize"}, [], tmp_path, console())
    left = sorted(path.stem for path in (tmp_path / "experiment").iterdir())
    assert left == ["best_0", "best_1", "best_1_old", "best_with_my_edits", "bestiary"]
    assert "# Trial 1 of the study in this folder: 0.0000, 1.0000.\n" in (tmp_path / "experiment" / "best_1.yaml").read_text()


def test_a_grid_is_gone_through_once(words: list[str], tmp_path: Path, voxtile: Command, pretended: Callable) -> None:
    asked = pretended(lambda given: {"dice": 0.1})
    space = "hydra.sweeper.space=['model.depth=choice(2,3)','optimizer.lr=range(0.1,0.4,0.1)']"
    assert voxtile(*words, space, "hydra.sweeper.sampler=grid").code == 0
    assert len({tuple(each) for each in asked}) == len(asked) == 6


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_of_few_combinations_each_is_tried_once(
    words: list[str], tmp_path: Path, voxtile: Command, pretended: Callable, sampler: str
) -> None:
    asked = pretended(lambda given: {"dice": 0.1})
    space = ["model.depth=choice(2,3)", "training.batch_size=range(1,4)", f"hydra.sweeper.sampler={sampler}"]
    said = voxtile(*words, *space, "hydra.sweeper.trials=4")
    assert said.code == 0
    assert ": 0 of 4 trials begun before; " in said.text
    assert len(asked) == 4
    assert voxtile(*words, *space, "hydra.sweeper.trials=20").code == 0
    first, later = {tuple(each) for each in asked[:4]}, {tuple(each) for each in asked[4:]}
    assert len(first | later) == 6
    assert len(later) == len(asked[4:])
    assert not first & later
    assert voxtile(*words, *space, "hydra.sweeper.trials=30").code == 0
    assert len(asked) == 4 + len(later)


def test_what_an_option_has_not_is_left_out_of_its_trials(
    words: list[str], tmp_path: Path, voxtile: Command, pretended: Callable
) -> None:
    asked = pretended(lambda given: {"dice": 0.9 if given["model"] == "segnet" else 0.1})
    space = [
        "model=choice(unet,segnet)",
        "model.depth=choice(2,3)",
        "optimizer=choice(adamw,sgd)",
        "optimizer.momentum=choice(0.5,0.9)",
    ]
    said = voxtile(*words, *space, "hydra.sweeper.trials=20")
    assert said.code == 0
    of_networks = [["model=unet", "model.depth=2"], ["model=unet", "model.depth=3"], ["model=segnet"]]
    of_optimizers = [["optimizer=adamw"], ["optimizer=sgd", "optimizer.momentum=0.5"], ["optimizer=sgd", "optimizer.momentum=0.9"]]
    keys = ("model=", "model.depth=", "optimizer")
    found = [sorted(word for word in each if word.startswith(keys)) for each in asked]
    expected = [sorted((*network, *optimizer)) for network in of_networks for optimizer in of_optimizers]
    assert sorted(found) == sorted(expected)
    assert all(trial.state == TrialState.COMPLETE for trial in study_of(tmp_path / "runs").trials)
    (file, *_) = (tmp_path / "runs").glob("studies/*/experiment/best*.yaml")
    assert voxtile(*file.read_text().splitlines()[1].removeprefix("# voxtile ").split(), "--cfg", "job").code == 0


def test_without_few_combinations_too_an_option_is_not_asked_for_what_it_has_not(
    words: list[str], voxtile: Command, pretended: Callable
) -> None:
    asked = pretended(lambda given: {"dice": 0.1})
    space = ["model.depth=range(2,5)", "model=choice(unet,segnet)", "optimizer.lr=interval(0.1,0.2)"]
    assert voxtile(*words, *space, "hydra.sweeper.trials=6", "hydra.sweeper.sampler=random").code == 0
    assert {("model=unet" in each, any(word.startswith("model.depth=") for word in each)) for each in asked} == {
        (True, True), (False, False),
    }  # fmt: skip


def test_a_trial_that_was_left_with_what_its_option_has_not_goes_on(
    words: list[str], tmp_path: Path, voxtile: Command, pretended: Callable
) -> None:
    asked = pretended(lambda given: {"dice": 0.1})
    words += ["model=choice(unet,segnet)", "model.depth=choice(2,3)"]
    assert voxtile(*words, "hydra.sweeper.trials=1", "hydra.sweeper.sampler=grid").code == 0
    study, before = study_of(tmp_path / "runs"), len(asked)
    for depth in ("2", "3"):
        study.enqueue_trial({"model": "segnet", "model.depth": depth})
    choices = optuna.distributions.CategoricalDistribution
    study.ask({"model": choices(["unet", "segnet"]), "model.depth": choices(["2", "3"])})  # by a command that is gone
    assert voxtile(*words, "hydra.sweeper.trials=3", "hydra.sweeper.sampler=random").code == 0
    assert len(asked) > before
    assert all(trial.state == TrialState.COMPLETE for trial in study_of(tmp_path / "runs").trials)
    assert not any("model=segnet" in each and "model.depth=2" in each for each in asked)


@pytest.mark.parametrize("models", ["unet,segnet", "segnet,unet"])
@pytest.mark.parametrize("optimizers", ["adamw,sgd", "sgd,adamw"])
def test_settings_that_do_not_go_together_are_a_failed_trial_and_the_search_goes_on(
    words: list[str], tmp_path: Path, voxtile: Command, pretended: Callable, monkeypatch: pytest.MonkeyPatch,
    models: str, optimizers: str,
) -> None:  # fmt: skip
    asked = pretended(lambda given: {"dice": 0.1})
    composed = TrialMaker.composed

    def at_odds(maker: TrialMaker, params: Mapping[str, Any]) -> Any:
        if params.get("model") == "segnet" and params.get("optimizer") == "sgd":
            raise ConfigCompositionException("they are at odds")
        return composed(maker, params)

    monkeypatch.setattr(TrialMaker, "composed", at_odds)
    said = voxtile(*words, f"model=choice({models})", f"optimizer=choice({optimizers})", "hydra.sweeper.trials=4")
    assert said.code == 0
    assert len(asked) == 3
    assert [trial.state for trial in study_of(tmp_path / "runs").trials].count(TrialState.FAIL) == 1
    assert re.search(r"trial [0-3]: The configuration cannot be composed: they are at odds", said.text)
    assert "best: trial" in said.text


def test_an_option_that_goes_with_no_other_is_told_before_there_is_a_study(
    words: list[str], tmp_path: Path, voxtile: Command, pretended: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = TrialMaker.composed

    def at_odds(maker: TrialMaker, params: Mapping[str, Any]) -> Any:
        if params.get("model") == "segnet":
            raise ConfigCompositionException("segnet is at odds with all")
        return composed(maker, params)

    pretended(lambda given: {"dice": 0.1})
    monkeypatch.setattr(TrialMaker, "composed", at_odds)
    said = voxtile(*words, "model=choice(segnet,unet)", "optimizer=choice(adamw,sgd)", "hydra.sweeper.trials=4")
    assert (said.code, "segnet is at odds with all" in said.text) == (2, True)
    assert not (tmp_path / "runs" / "studies").exists()


def test_an_error_that_ends_a_search_leaves_its_table(words: list[str], voxtile: Command, pretended: Callable) -> None:
    ends = iter([{"dice": 0.4}, {"no": 0.1}])
    pretended(lambda given: next(ends))
    said = voxtile(*words, *SPACE, "hydra.sweeper.trials=3")
    assert said.code == 2
    assert "'hydra.sweeper.objectives' names 'dice', which is no score" in said.text
    assert "best: trial 0" in said.text


def test_bad_trials_are_pruned_by_their_validations(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, voxtile: Command
) -> None:
    stopped: list[Job] = []

    def run_jobs(take: Any, slots: Any, place: Any, ended: Any, look: Any, count: Any) -> bool:
        """Five good trials, then one whose first validations are bad."""
        for number in range(6):
            job = take()
            home = tmp_path / "pretended" / str(number)
            home.mkdir(parents=True)
            score = 0.1 if number == 5 else 0.8
            rows = "".join(f"{step},val/dice,{score}\n" for step in (10, 20, 30)) + "40,val/di"
            (home / "metrics.csv").write_text(f"step,name,value\n5,train/loss,1\n{rows}")
            (home / "status.json").write_text(json.dumps({"state": "x", "step": 30, "best": {"scores": {"dice": score}}}))
            (home / "manifest.json").write_text("{}")
            job.outcome.home = str(home)
            monkeypatch.setattr(job, "stop", lambda job=job: stopped.append(job))
            monkeypatch.setattr(searching, "LOOK", 0.0)
            look(job)
            job.outcome.code = STOPPED if job in stopped else 0
            ended(job)
        return False

    monkeypatch.setattr(searching, "run_jobs", run_jobs)
    said = voxtile(*words, *SPACE, "hydra.sweeper.pruner=median", "hydra.sweeper.trials=6")
    assert said.code == 0
    trials = study_of(tmp_path / "runs").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED]
    assert trials[0].intermediate_values == {10: 0.8, 20: 0.8, 30: 0.8}
    assert trials[5].intermediate_values == {10: 0.1}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "'sweep=optuna' searches nothing"),
        (
            ["model.width=chioce(0.1,0.2)"],
            "'model.width=chioce(0.1,0.2)' is one value, a text: did you mean 'model.width=choice(0.1,0.",
        ),
        (["model.width=choice()"], "'model.width=choice()' cannot be read as several values: expected some in the brackets"),
        (["optimizer.lr=intervall(1e-4, 1)"], "did you mean 'optimizer.lr=interval(1e-4, 1)'? Say among what"),
        (["model.width=choice(0.5)"], "searched among one value, 0.5"),
        ([*SPACE, "hydra.sweeper.sampler=tpee"], "'hydra.sweeper.sampler=tpee' is unknown. Did you mean 'tpe'?"),
        ([*SPACE, "hydra.sweeper.sampler_options=[startup=3]"], "do not fit Optuna's TPESampler"),
        ([*SPACE, "launch=local"], "'launch=local' is for sweeps over typed values"),
        ([*SPACE, "hydra.sweeper.trials=0"], "must be a whole number from 1 up"),
        ([*SPACE, "hydra.sweeper.objectives=dice"], "must be a list of scores"),
        (["optimizer.lr=range(1,4,0)"], "'optimizer.lr=range(1,4,0)' cannot be searched"),
        (["training.batch_size=range(8,4)"], "'training.batch_size=range(8,4)' cannot be searched: the range is empty"),
        (["model=glob(u*)"], "'model=glob(u*)' cannot be searched: expected choice(…), range(…) or interval(…)"),
        ([*SPACE, "hydra.sweeper.jobs=0"], "'hydra.sweeper.jobs=0' must be auto or a whole number"),
        ([*SPACE, "hydra.sweeper.objectives=[dice,iou]", "hydra.sweeper.pruner=median"], "one objective only"),
        (["hydra.sweeper.space=['optimizer.lr=0.1']"], "holds 'optimizer.lr=0.1', which is one value"),
        (["hydra.sweeper.space=[optimizer]"], "must be a list of words"),
        ([*SPACE, "fold=0,1"], "'fold' is given several values, and a search would choose among them: the trial on the easiest"),
        ([*SPACE, "seed=range(3,6)"], "Set one value for all trials, such as 'seed=3', and"),
        ([*SPACE, "split.seed=choice(0,1)"], "'split.seed' is given several values"),
        ([*SPACE, "+split.fold=interval(0,4)"], "'+split.fold' is given several values"),
        ([*SPACE, "hydra.sweeper.space=['split=choice(groups,kfold)']"], "'split' is given several values"),
        ([*SPACE, "hydra.sweeper.sampler=grid"], "A grid needs steps, and 'optimizer.lr' has none"),
    ],
)
def test_what_cannot_be_searched_is_said_and_leaves_no_study(
    words: list[str], tmp_path: Path, voxtile: Command, more: list[str], message: str
) -> None:
    said = voxtile(*words, *more)
    assert said.code == 2
    assert message in said.text
    assert not (tmp_path / "runs" / "studies").exists()


def test_a_misspelt_search_leaves_no_study(words: list[str], tmp_path: Path, voxtile: Command) -> None:
    said = voxtile(*words, "optimizer.lrr=interval(1e-4,1e-1)")
    assert said.code == 2
    assert "Did you mean 'optimizer.lr'?" in said.text
    assert not (tmp_path / "runs" / "studies").exists()


def test_an_objective_that_is_no_score_is_said(words: list[str], voxtile: Command, pretended: Callable) -> None:
    pretended(lambda given: {"dice": 0.5})
    said = voxtile(*words, *SPACE, "hydra.sweeper.objectives=[dise]", "hydra.sweeper.trials=1")
    assert said.code == 2
    assert "'dise', which is no score. Did you mean 'dice'?" in said.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["optimizer.lr=interval(-1,-0.5)"], "'optimizer.lr=-1.0' must be"),
        (["optimizer.lr=interval(-1,0.5)"], "This is of a trial with optimizer.lr=-1.0; none was begun."),
        (["training.steps=interval(5,10)"], "An interval's values are not: type 'training.steps=range(5,11)'."),
        (["workers=choice(0,1,abc)", "optimizer.lr=interval(0.1,0.2)"], "'workers=abc' must be a whole number"),
        (["model=choice(segnet,unet)", "model.depth=choice(2,none)"], "This is of a trial with model=unet model.depth=none"),
        (["model=choice(unet,unett)"], "'model=unett' does not exist. Did you mean 'unet'?"),
        (["model=choice(unet,segnet)", "model.depht=choice(2,3)"], "has no 'model.depht'"),
        (["model=choice(unet,segnet)", "model.depth=3"], "A network that was chosen has no 'model.depth'"),
    ],
)
def test_what_no_trial_can_have_is_refused_before_the_first(
    words: list[str], tmp_path: Path, voxtile: Command, more: list[str], message: str
) -> None:
    said = voxtile(*words, *more)
    assert said.code == 2
    assert message in said.text
    assert not (tmp_path / "runs" / "studies").exists()


@pytest.mark.parametrize("space", ["optimizer.lr=interval(1e-3,1e-3)", "training.batch_size=range(2,3)"])
def test_a_single_combination_is_tried_once(words: list[str], voxtile: Command, pretended: Callable, space: str) -> None:
    asked = pretended(lambda given: {"dice": 0.1})
    assert voxtile(*words, space).code == 0
    assert len(asked) == 1


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_run_that_it_was_at(tmp_path: Path, voxtile: Command) -> None:
    runs = tmp_path / "runs"
    words = ["-m", "sweep=optuna", *scene_words(tmp_path), "training.steps=200", "training.val_every=200",
             "optimizer.lr=interval(0.001,0.01)", "hydra.sweeper.trials=1"]  # fmt: skip
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not list(runs.glob("*/resume.pt")):
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (home,) = homes(runs)
    holder = json.loads((home / "lease.json").read_text())["pid"]
    while Path(f"/proc/{holder}").exists():
        time.sleep(0.05)
    said = voxtile("train", *words)
    assert said.code == 0
    assert "continuing at step" in said.text
    assert homes(runs) == [home]
    assert not list((runs / "studies").glob("*/jobs/*"))
    (trial,) = study_of(runs).trials
    assert trial.state == TrialState.COMPLETE
    assert trial.values[0] == json.loads((home / "status.json").read_text())["best"]["score"]


@pytest.mark.parametrize("written", [False, True], ids=["typed", "in the space"])
def test_nothing_is_one_of_several_choices(
    words: list[str], tmp_path: Path, voxtile: Command, pretended: Callable, written: bool
) -> None:
    asked = pretended(lambda given: {"dice": 0.5})
    word = "training.clip=choice(null,1.0)"
    said = voxtile(*words, f'hydra.sweeper.space=["{word}"]' if written else word, "hydra.sweeper.trials=2")
    assert said.code == 0, said.text
    assert {word for each in asked for word in each if word.startswith("training.clip")} == {
        "training.clip=null",
        "training.clip=1.0",
    }


@pytest.mark.parametrize("name", ["lr?", "{lr}"])
def test_a_study_whose_name_means_something_else_in_an_address_is_refused(
    words: list[str], tmp_path: Path, voxtile: Command, name: str
) -> None:
    said = voxtile(*words, *SPACE, f"hydra.sweeper.name='{name}'")
    assert (said.code, "'hydra.sweeper.name=…'" in said.text) == (2, True), said.text
    assert not (tmp_path / "runs" / "studies").exists()
