"""The run that a run starts from: found, trained first where it is not there, checked for leaks, and copied from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose
from voxtile.errors import ConfigError, DataError, RunError, counted, listed, reason

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.data.prepared import Prepared
    from voxtile.training.module import SegmentationModule
    from voxtile.training.run_folder import RunFolder


@dataclass(frozen=True)
class Parent:
    """A finished run whose best weights another starts from.

    Attributes:
        home: its folder.
        digest: SHA-256 of the weights.
        training: names of groups and digests of images that it, or one that it started from, was trained on.
    """

    home: RunFolder
    digest: str
    training: Mapping[str, list[str]]

    @classmethod
    def of(cls, home: RunFolder) -> Parent:
        """Reads a finished run.

        Raises:
            RunError: It is not finished, or its weights are gone.
        """
        file = home.weights / "best.safetensors"
        if home.status["state"] != "finished" or not file.is_file():
            raise RunError(
                f"{home.path} cannot be started from: it is {home.status['state']}, and its best weights are "
                f"{'there' if file.is_file() else 'not there'}. Train it to its end first."
            )
        found = home.read("manifest.json", "data")["data"]
        return cls(home, hashlib.sha256(file.read_bytes()).hexdigest(), found.get("training", {"groups": [], "images": []}))

    def check_leaks(self, prepared: Prepared) -> None:
        """Refuses a parent that has been trained on what this run is judged by.

        Raises:
            DataError: A group or an image of its training is in this run's validation or test.
        """
        judged = [*prepared.split.val, *prepared.split.test]
        groups, images = (set(self.training[key]) for key in ("groups", "images"))
        shared = [case for case in judged if group_name(prepared, case.group) in groups or prepared.images[case.id] in images]
        if shared:
            raise DataError(
                f"The run {self.home.path}, which this one is to start from, was trained on {counted(len(shared), 'case')} that "
                f"this one is judged by: {listed(case.id for case in shared)}. Start from a run with the same split ('init_from="
                "{model: …}' trains one), or from nothing with 'init_from=null'."
            )

    def hand_down(self, module: SegmentationModule, out: Console) -> None:
        """Copies what has the same name and shape into a network, and into its average; the rest stays as it was initialised.

        Raises:
            ConfigError: Nothing fits.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            given = load_file(self.home.weights / "best.safetensors")
        except (OSError, SafetensorError) as error:
            raise RunError(f"The weights of {self.home.path} cannot be read: {reason(error)}. Train that run again.") from error
        own = module.network.state_dict()
        fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
        if not any(value.ndim > 1 for value in fitting.values()):  # counters and biases alone are nothing to start from
            raise ConfigError(
                f"No weight of {self.home.path} fits this network: it holds {listed(given, 4)}, the network {listed(own, 4)}. "
                "Start from a network with layers of the same names and sizes."
            )
        for each in filter(None, (module.network, module.average)):
            each.load_state_dict(fitting, strict=False)
        new = [name for name in own if name not in fitting]
        out.print(
            f"starting from {self.home.path}: {len(fitting)} of {len(own)} tensors{f'; new: {listed(new)}' if new else ''}",
            highlight=False,
        )


def training_of(prepared: Prepared, parent: Parent | None) -> dict[str, list[str]]:
    """For the manifest: what a run, and those that it started from, are trained on."""
    cases = prepared.split.train
    groups, images = {group_name(prepared, case.group) for case in cases}, {prepared.images[case.id] for case in cases}
    if parent is not None:
        groups |= set(parent.training["groups"])
        images |= set(parent.training["images"])
    return {"groups": sorted(groups), "images": sorted(images)}


def group_name(prepared: Prepared, group: str) -> str:
    """A group's name among all data sets."""
    return f"{prepared.dataset.name}/{group}"


def parent_of(config: Mapping[str, Any], train: Callable[[Mapping[str, Any]], RunFolder]) -> Parent | None:
    """The run that `init_from` names, None where it names none.

    Args:
        config: of the run that starts; `init_from` is a run folder, or overrides of this same configuration.
        train: trains a configuration to its end, unless that is done, and returns its folder.

    Raises:
        ConfigError: `init_from` is something else.
        RunError: The folder is no finished run.
    """
    from voxtile.training.run_folder import RunFolder

    wanted = config["init_from"]
    if wanted is None:
        return None
    if isinstance(wanted, str):
        return Parent.of(RunFolder.existing(wanted))
    if not isinstance(wanted, Mapping) or not wanted:
        raise ConfigError(
            f"'init_from={wanted}' is neither a run folder nor overrides. Type, for example, 'init_from={{model: fcn32s}}'."
        )
    return Parent.of(train(compose.again({"init_from": None, **wanted})))
