"""voxtile train: one run, from its configuration to its scores; the same command again continues or reports it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose, elastic
from voxtile.commands.devices import torchrun_world
from voxtile.commands.guard import guarded, no_memory
from voxtile.commands.own import blaming
from voxtile.commands.standing import changed_since, interrupted_on_other_data, refuse_or_finished, run_home
from voxtile.commands.sweep import UNDER_WAY, Outcome, collected, collecting
from voxtile.commands.words import command_line, word
from voxtile.errors import RunError, VoxtileError, counted

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.commands.parents import Learned, Parent
    from voxtile.data.datamodule import VoxtileData
    from voxtile.data.prepared import Prepared
    from voxtile.studies.manifest import Devices
    from voxtile.training.module import SegmentationModule
    from voxtile.training.run_folder import RunFolder


def main(argv: Sequence[str]) -> int:
    """Composes and trains; see `python train.py --help`. Several runs are reported in one table at the end."""
    if elastic.follows():
        return elastic.follow()
    with collecting() as outcomes:
        code = guarded(lambda: _led(argv))
    if len(outcomes) > 1 and not any(outcome.told for outcome in outcomes):
        code = max(code, guarded(lambda: _table(outcomes)))
    return max(code, *(outcome.code for outcome in outcomes), 0)


def _table(outcomes: Sequence[Outcome]) -> int:
    from voxtile.commands.console import console
    from voxtile.commands.tables import print_jobs

    print_jobs(console(), outcomes)
    return 0


def _led(argv: Sequence[str]) -> int:
    with elastic.leading(argv):
        return train_all(argv)


def train_all(argv: Sequence[str], begun: Callable[[Outcome], object] = lambda outcome: None, patient: bool = False) -> int:
    """Composes and trains, collecting what becomes of each job that this process does itself.

    Args:
        argv: the user's words.
        begun: given a job's outcome as far as it is known once its run folder is.
        patient: whether a run that another process trains is waited for, rather than refused.
    """
    return compose.run("train", argv, lambda config: train_one(config, begun, patient))


def train_one(config: Mapping[str, Any], begun: Callable[[Outcome], object], patient: bool = False) -> int:
    """Trains one run, collecting what becomes of it; see `train_all`."""
    from voxtile.commands.console import console

    outcome = Outcome(compose.current_words(), UNDER_WAY)
    collected(outcome)

    def here(home: RunFolder) -> None:
        outcome.home = str(home.path)
        begun(outcome)

    try:
        with blaming(config["trust"]):
            train_to_end(config, console(), begun=here, patient=patient)
        outcome.code = 0
    except Exception as error:
        outcome.code = error.exit_code if isinstance(error, VoxtileError) else 1
        outcome.reason = no_memory(error) or str(error) or type(error).__name__
        raise
    return 0


def train_to_end(
    config: Mapping[str, Any],
    out: Console,
    check_successor: Callable[[Sequence[Learned]], object] | None = None,
    begun: Callable[[RunFolder], object] | None = None,
    patient: bool = False,
) -> RunFolder:
    """Trains a run to its end, from wherever it stands, and reports it.

    Args:
        config: resolved.
        out: where progress is shown.
        check_successor: given where another run starts from this one; called with what this one learns from, before it is trained.
            A run that another process is training is then waited for, since several runs of a sweep may start from the same one.
        begun: given the run's folder, once it is known.
        patient: also then a run that another process trains is waited for.
    """
    from voxtile.commands.assemble import assembled, check_before_data, check_fit, check_trainer, devices_of, lists_of, prepare_data
    from voxtile.commands.build import parts
    from voxtile.commands.parents import check_leaks, learned_from, parent_of

    check_trainer(config["trainer"])
    built = parts(config)
    check_before_data(built)
    devices = devices_of(config["trainer"])  # takes seconds to import, and comes after what can be refused without it
    waive, lists = config["data"]["waive"] or (), lists_of(config)
    read = cache(lambda: prepare_data(built, out))

    def fitting() -> tuple[SegmentationModule, VoxtileData]:
        prepared = read()
        module, data = assembled(built, prepared)
        check_fit(module, built, prepared, devices.count)
        module.configure_optimizers()
        return module, data

    def check(learned: Sequence[Learned]) -> None:
        if check_successor is not None:
            check_successor(learned)
        check_leaks(learned, read(), waive, lists)
        fitting()

    parent = parent_of(config, lambda changed: train_to_end(changed, out, check))
    prepared = read()
    if parent is not None:
        prepared = replace(prepared, waived=(*prepared.waived, *check_leaks(parent.learned, prepared, waive, lists)))
    home = run_home(built, prepared, parent)
    if begun is not None:
        begun(home)
    if refuse_or_finished(home, config, devices):
        changed = changed_since(home, devices)
        out.print(f"This run is finished; nothing was trained.{changed and ' Since then:' + changed}", highlight=False)
        if config["trainer"].get("profiler"):
            out.print("Nothing was profiled either: type another 'seed', and what is trained then is profiled.", style="yellow")
        report(home, prepared, built.trust, out)
        return home
    if check_successor is not None:
        check_successor(learned_from(prepared, parent))
    module, data = fitting()  # what does not fit together shows here, before there is a run folder
    if not home.path.exists() and (told := interrupted_on_other_data(home)):
        out.print(told, style="yellow", soft_wrap=True)
    if parent is not None:
        parent.hand_down(module, config["model"], out)
    with home.lease((lambda said: out.print(said, highlight=False)) if check_successor or patient else None):
        # Another process may have trained it, or failed, since the first look.
        if not refuse_or_finished(home, config, devices, held=True):
            from voxtile.data.leakage import shared_fields
            from voxtile.data.pixel_sizes import mixed, squeezed

            remarks = built.remarks + module.remarks + shared_fields(prepared.split, prepared.dataset.ungrouped)
            remarks += mixed(prepared.split.train, prepared.split.val, built.windowing, built.sampling.scales)
            for remark in remarks + squeezed(prepared.split.train, built.augment.symmetry):
                out.print(remark, style="yellow", soft_wrap=True)
            _train(config, prepared, parent, module, data, home, devices, out)
    report(home, prepared, built.trust, out)
    return home


def _train(
    config: Mapping[str, Any], prepared: Prepared, parent: Parent | None, module: SegmentationModule, data: VoxtileData,
    home: RunFolder, devices: Devices, out: Console,
) -> None:  # fmt: skip
    """Trains a run, whose lease is held, from what is saved of it, and records in its folder how."""
    from voxtile.cases.atomic import atomic_text
    from voxtile.commands.ranks import train_in_processes
    from voxtile.commands.worker import fit_here
    from voxtile.studies.meter import forget_peak_memory

    written = _taken_up(module, home, config["retry"], out)
    facts = _facts(config, prepared, parent, home, devices)
    atomic_text(home.path / "config.yaml", _kept(config))
    home.write("manifest.json", facts)
    reached = {key: value for key, value in home.status.items() if key in ("step", "best")} if home.resume.exists() else {}
    home.set_status("running", **({"step": 0, "steps": module.settings.steps} | reached))
    _announce(prepared, module, home, devices, out)
    with _recording(home, module, devices, facts) as measured:
        if devices.count > 1 and not module.done:  # what is trained to its end needs no others to say so
            began_from = None if parent is None else str(parent.home.path.absolute())
            order = {"config": config, "home": str(home.path), "parent": began_from, "command": command_line()}
            by_torchrun = torchrun_world() > 1
            measured |= elastic.train_together(home, order) if by_torchrun else train_in_processes(home, order, devices)
        else:
            with blaming(config["trust"]):
                forget_peak_memory()
                fit_here(config, module, data, home, out, command_line(), measured, written)
            for path in home.path.glob("*-profile.txt"):
                out.print(path.read_text(encoding="utf-8"), markup=False, soft_wrap=True)


def _facts(
    config: Mapping[str, Any], prepared: Prepared, parent: Parent | None, home: RunFolder, devices: Devices
) -> dict[str, Any]:  # fmt: skip
    """The manifest of a run that begins, or goes on."""
    from voxtile.commands.parents import learned_from
    from voxtile.studies.manifest import continued, manifest

    facts = manifest(command_line(), prepared, devices, config["trust"], config["data"]["sampling"]["scales"])
    facts["data"]["learned"] = [asdict(case) for case in learned_from(prepared, parent)]
    facts["parent"] = None if parent is None else {"run": str(parent.home.path.absolute()), "weights": parent.digest}
    if home.resume.exists() and (home.path / "manifest.json").exists():
        facts = continued(home.read("manifest.json"), facts)
    return facts


def _kept(config: Mapping[str, Any]) -> str:
    """The text of config.yaml: paths are named from the top, so that evaluating from another folder finds them."""
    from omegaconf import OmegaConf

    kept = OmegaConf.create(dict(config))
    for place in ("data.layout.root", "data.group.csv", "split.file", "data.scene.area", "model.weights"):
        path = OmegaConf.select(kept, place)
        if not path or not isinstance(path, str):  # an area may also be numbers
            continue
        absolute = Path(path).expanduser().absolute()
        if place != "model.weights" or absolute.is_file():  # which may also be a name
            OmegaConf.update(kept, place, str(absolute))
    return OmegaConf.to_yaml(kept)


def _announce(prepared: Prepared, module: SegmentationModule, home: RunFolder, devices: Devices, out: Console) -> None:
    """Says what is about to be trained, on what."""
    for waived in prepared.waived:
        out.print(f"waived: {waived}", style="yellow")
    split = prepared.split
    out.print(
        f"run {home.path}\n{len(split.train)} training, {len(split.val)} validation, {len(split.test)} locked test cases; "
        f"{counted(prepared.channels, 'channel')}; {len(prepared.dataset.classes)} classes; "
        f"{sum(p.numel() for p in module.network.parameters()):,} parameters"
        f"{f'; {devices.count} processes' if devices.count > 1 else ''}",
        highlight=False,
    )


@contextmanager
def _recording(
    home: RunFolder, module: SegmentationModule, devices: Devices, facts: dict[str, Any]
) -> Iterator[dict[str, float]]:  # fmt: skip
    """While this is open, the run is trained; then its status says what went wrong, and its manifest what it took.

    Args:
        home: the run's folder.
        module: what is trained.
        devices: on which.
        facts: the manifest.

    Yields:
        What is to be measured, by name; it is filled in meanwhile.
    """
    from voxtile.studies.manifest import segment
    from voxtile.studies.meter import Meter
    from voxtile.training.stopping import InterruptedRunError
    from voxtile.training.weights import load_resume

    began, meter, measured = time.monotonic(), Meter(), dict[str, float]()
    try:
        yield measured
    except Exception as error:
        if home.status["state"] == "finished":  # all is saved: what failed came after it
            raise
        with suppress(OSError, RunError):  # the disk that is full, or a run taken over, may be the reason
            reached = {"step": module.step, "best": module.best}
            if devices.count > 1:  # others have trained it, and saved how far they came
                reached = {name: (load_resume(home.resume) or reached)[name] for name in reached}
            why = (
                {} if isinstance(error, InterruptedRunError) else {"reason": no_memory(error) or str(error) or type(error).__name__}
            )
            home.set_status("failed" if why else "interrupted", **reached, steps=module.settings.steps, **why)
        raise
    finally:
        took = {name: round(value, 2) for name, value in measured.items()} | meter.read()
        segment(facts).update(took, seconds=round(time.monotonic() - began, 1))
        with suppress(OSError, RunError):
            home.write("manifest.json", facts)


def _taken_up(module: SegmentationModule, home: RunFolder, retry: bool, out: Console) -> int:
    """As `take_up`, before anything of the run is written; with `retry`, a damaged state is put aside and the run begins anew.

    Raises:
        RunError: The state cannot be read, or is not the module's.
    """
    from voxtile.training.fit import take_up
    from voxtile.training.weights import DamagedStateError

    try:
        return take_up(module, home)
    except DamagedStateError:
        if not retry:
            raise
        aside = home.resume.replace(home.path / "resume.damaged")
        out.print(f"{home.resume} is damaged and now called {aside.name}: the run is trained from its start", style="yellow",
                  soft_wrap=True)  # fmt: skip
        return 0


def report(home: RunFolder, prepared: Prepared, trusted: Sequence[str], out: Console) -> None:
    """Prints Dice and IoU per class of the best validation, and what to do next."""
    from voxtile.commands.tables import print_scores

    best, dataset = home.read("status.json", "best")["best"], prepared.dataset
    print_scores(out, f"validation at step {best['step']}", best["scores"], dataset.classes, list(dataset.regions))
    if best["scores"]["dice"] == 0:
        out.print(
            "no foreground was predicted where there is any: train longer, at another rate, or with class weights", style="yellow"
        )
    for waived in prepared.waived:
        out.print(f"waived: {waived}", style="yellow")
    path, run = home.path, word("run", home.path)
    tested = {
        file for case in prepared.split.test for file in case.image.files
    }  # predicting these would be a look at the test split
    files = next((case.image.files for case in prepared.split.val if not tested.intersection(case.image.files)), ())
    example = word("input", files[0]) if len(files) == 1 else "input=…"  # no "<folder>", which a shell reads as a redirection
    # What a run was trusted with counts for nothing when it is opened: the user says it again.
    trust = f" 'trust=[{','.join(trusted)}]'" if trusted else ""
    lines = (
        f"run folder   {path}",
        f"pictures     {path / 'pictures' / 'validation.png'}   (input, label, prediction, error)",
        f"next         voxtile evaluate {run} split=val{trust}",
        f"             voxtile predict {run} {example} output=predictions{trust}",
    )
    out.print("\n".join(lines), soft_wrap=True)
