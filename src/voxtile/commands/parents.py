"""The run that a run starts from: found, trained first where it is not there, checked for leaks, and copied from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from voxtile.cases.names import whole_id
from voxtile.commands import compose
from voxtile.errors import ConfigError, DataError, RunError, counted, listed, reason

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from torch import Tensor

    from voxtile.cases.case import Case
    from voxtile.cases.dataset import Dataset
    from voxtile.data.leakage import Leak
    from voxtile.data.prepared import Prepared
    from voxtile.training.module import SegmentationModule
    from voxtile.training.run_folder import RunFolder


@dataclass(frozen=True)
class Learned:
    """A case that weights were trained on, as a manifest keeps it.

    Attributes:
        data: name of its data set.
        id: its name there.
        region: (z, y, x, depth, height, width) of a block in its image, None for a whole case.
        group: its group; "" in manifests of older versions.
        image: digest of its image; "" likewise.
    """

    data: str
    id: str
    region: tuple[int, ...] | None
    group: str = ""
    image: str = ""

    @classmethod
    def read(cls, data: str, row: Mapping[str, Any]) -> Learned:
        """From a row of a manifest, whose cases are of the data set `data` where the row does not say."""
        return cls(**{"data": data, **row, "region": row["region"] and tuple(row["region"])})

    @property
    def file(self) -> str:
        """The name of the case that it is, or that it is a block of."""
        return whole_id(self.id, self.region)


@dataclass(frozen=True)
class Parent:
    """A finished run whose best weights another starts from.

    Attributes:
        home: its folder.
        digest: SHA-256 of the weights.
        learned: what it, or one that it started from, was trained on.
    """

    home: RunFolder
    digest: str
    learned: Sequence[Learned]

    @classmethod
    def of(cls, home: RunFolder) -> Parent:
        """Reads a finished run.

        Raises:
            RunError: It is not finished, its weights are gone, or it does not say what it was trained on.
        """
        from voxtile.training.weights import file_digest

        file = home.weights / "best.safetensors"
        if home.status["state"] != "finished" or not file.is_file():
            raise RunError(
                f"{home.path} cannot be started from: it is {home.status['state']}, and its best weights are "
                f"{'there' if file.is_file() else 'not there'}. Train it to its end first."
            )
        if home.status.get("data") not in (None, home.data_digest()):
            raise RunError(
                f"{home.path} cannot be started from: what its manifest.json says of its data has changed since it was finished, "
                "so what its weights were trained on cannot be told. Copy the folder anew, or train that run again."
            )
        return cls(home, file_digest(file), learned_by(home))

    def hand_down(self, module: SegmentationModule, model: Mapping[str, Any], out: Console) -> None:
        """Copies what has the same name and shape into a network, and into its average; the rest stays as it was initialised.

        Args:
            module: with the network.
            model: the settings that it was built from.
            out: where it prints.

        Raises:
            ConfigError: Nothing fits.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from voxtile.models.network import second_names
        from voxtile.training.schedules import parameter_groups

        try:
            given = load_file(self.home.weights / "best.safetensors")
        except (OSError, SafetensorError) as error:
            raise RunError(f"The weights of {self.home.path} cannot be read: {reason(error)}. Train that run again.") from error
        shared = second_names(module.network)
        own = {name: value for name, value in module.network.state_dict().items() if name not in shared}
        fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
        if not any(value.ndim > 1 for value in fitting.values()):  # counters and biases alone are nothing to start from
            theirs, ours = (3 if any(value.ndim == 5 for value in each.values()) else 2 for each in (given, own))
            if theirs != ours:
                seen = {2: "slices", 3: "boxes"}
                raise ConfigError(
                    f"The network of {self.home.path} sees {seen[theirs]} ({theirs}D), and this one {seen[ours]} ({ours}D): no "
                    f"weight of the one fits the other. Start from a run of a {ours}D network, or train a {theirs}D one, for "
                    f"example with 'model=unet model.dims={theirs}'."
                )
            self._refuse_sizes(given, own, model)
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
        groups = parameter_groups(module.network, module.settings.groups, 1.0)
        frozen = {id(parameter) for group in groups if group["lr"] == 0 for parameter in group["params"]}
        if still := [name for name, value in module.network.named_parameters() if name in new and id(value) in frozen]:
            out.print(
                f"{listed(still)} begin anew, and 'training.groups' gives them the rate 0: they stay as they were initialised. "
                "Leave them out of the pattern.", style="yellow", soft_wrap=True,
            )  # fmt: skip

    def _refuse_sizes(self, given: Mapping[str, Tensor], own: Mapping[str, Tensor], model: Mapping[str, Any]) -> None:
        """Refuses weights of layers that have the same names and other sizes.

        Raises:
            ConfigError: There are some.
        """
        from voxtile.commands.folders import differences
        from voxtile.commands.trained import configuration

        unlike = [name for name, value in own.items() if value.ndim > 1 and name in given and given[name].shape != value.shape]
        if unlike:
            there, here = ("x".join(map(str, each[unlike[0]].shape)) for each in (given, own))
            found = configuration(self.home)
            settings = differences(found["model"], model, "model") if isinstance(found, Mapping) and "model" in found else []
            raise ConfigError(
                f"No weight of {self.home.path} fits this network: layers of the same names have other sizes, such as "
                f"'{unlike[0]}', {there} there and {here} here."
                + (f" The two differ in {listed(settings)}: type what that run was trained with." if settings else "")
                + (" Start from a run of this network on images with as many channels." if not settings else "")
            )


def learned_by(home: RunFolder) -> list[Learned]:
    """What a finished run, and those that it started from, were trained on.

    Raises:
        RunError: The manifest does not say.
    """
    data, recipe = home.read("manifest.json", "data")["data"], home.read("recipe.json", "settings")
    try:
        if "learned" not in data and recipe.get("parent"):
            raise RunError(
                f"{home.path} cannot be started from: it started from another run itself, and its manifest.json does not say what "
                "that one was trained on. Train it again."
            )
        rows = data["learned"] if "learned" in data else data["split"]["train"]  # older versions kept the split alone
        return [Learned.read(recipe["settings"]["data.name"], row) for row in rows]
    except (KeyError, TypeError) as error:
        raise RunError(
            f"{home.path / 'manifest.json'} does not say what the run was trained on. The run folder is damaged; train it again."
        ) from error


def learned_from(prepared: Prepared, parent: Parent | None = None) -> list[Learned]:
    """What a run is trained on, itself and through its parent, for its manifest."""
    own = [
        Learned(prepared.dataset.name, case.id, tuple(case.region) if case.region else None, case.group, prepared.images[case.id])
        for case in prepared.split.train
    ]
    return list(dict.fromkeys([*own, *(parent.learned if parent else ())]))


def check_leaks(
    learned: Iterable[Learned], prepared: Prepared, waive: Sequence[str], lists: Path | None = None
) -> list[str]:  # fmt: skip
    """Refuses to start from weights that were trained on what a run is judged by.

    Args:
        learned: what the weights were trained on.
        prepared: the data of the run that starts from them.
        waive: ids of cases whose leaks are accepted, as in `gate`.
        lists: folder of lists of cases, as in `gate`.

    Returns:
        Sentences about waived leaks, as of `gate`.

    Raises:
        DataError: A case of validation or test is not independent of what was learned, or that cannot be told.
    """
    from voxtile.data.leakage import clauses, settle

    def told(left: Sequence[Leak], waiver: str) -> str:
        last = {leak.case: leak for leak in left}  # one for each case says enough
        return (
            "The run that this one is to start from ('init_from') is trained on what this one is judged by, "
            f"{counted(len(last), 'case')}: {listed(clauses(last.values()), 4)}. Start from a run with the same split "
            "('init_from={model: …}' trains one), or from nothing with 'init_from=null'. To accept the leaks, which every report "
            f"will then say, type '{waiver}'."
        )

    leaks = [replace(leak, other_side="the parent's training") for leak in leaks_of(learned, prepared)]
    return settle(leaks, waive, told, lists=lists)


def leaks_of(learned: Iterable[Learned], prepared: Prepared) -> list[Leak]:
    """What of the validation and test cases of some data is not independent of what weights were trained on.

    Raises:
        DataError: That cannot be told.
    """
    from voxtile.data.leakage import SAME_GROUP, SAME_IMAGE, Leak, find_leaks, of_one_file
    from voxtile.data.places import by_place
    from voxtile.data.prepared import copies
    from voxtile.data.splits import Split

    dataset, split, own = prepared.dataset, prepared.split, set(learned_from(prepared))
    others = [case for case in learned if case not in own]  # of what it is trained on itself, the split's gate has judged
    here = _opened(dataset, others)
    if lost := [case.id for case in others if case not in here and not case.image]:
        raise DataError(
            "Whether the weights were trained on what is to judge them cannot be told: the manifest.json of their run keeps no "
            f"digests of images, and names {listed(lost)}, which this data set does not hold. Train that run again, or do without "
            "it."
        )
    sides = [[*here.values()], split.val, split.test]
    if not any(case.region for side in sides for case in side):
        everyone = iter(by_place([case for side in sides for case in side], dataset.grouping.place))
        sides = [[next(everyone) for _ in side] for side in sides]
    known = copies([case for side in sides for case in side], len(dataset.classes), prepared.cache)
    every = find_leaks(Split(tuple(sides[0]), tuple(sides[1]), tuple(sides[2])), {}, known)
    leaks = [leak for leak in every if leak.other_side == "train"]
    gone = [other for other in others if other not in here and other.data == dataset.name]
    images: dict[str, list[tuple[str, Case | None]]] = {}
    for other in others:
        images.setdefault(other.image, []).append((other.id, here.get(other)))
    groups: dict[str, list[str]] = {}
    for other in gone:
        groups.setdefault(other.group, []).append(other.id)
    holders = {image: tuple(name for name, _ in held) for image, held in images.items()}
    framed = {image: {path for _, view in held if view for path in view.image.framing} for image, held in images.items()}
    for side in ("val", "test"):
        for case in split.sides[side]:
            image = prepared.images[case.id]
            alike = holders.get(image, ())
            if alike and not framed[image].isdisjoint(case.image.framing):  # views of one file are compared by their regions only
                alike = tuple(name for name, view in images[image] if view is None or not of_one_file(view, case))
            if alike:
                leaks.append(Leak(case.id, side, alike, "train", SAME_IMAGE, image))
            if related := groups.get(case.group):
                leaks.append(Leak(case.id, side, tuple(related), "train", SAME_GROUP))
    return leaks


def _opened(dataset: Dataset, learned: Sequence[Learned]) -> dict[Learned, Case]:
    """The learned cases that a data set holds, also those that it leaves out, with the groups that it gives them."""
    from voxtile.cases.window import Window

    found = {}
    wanted = {case.file for case in learned if case.data == dataset.name}
    files = {each.id: each for each in dataset.layout.find() if each.id in wanted} if wanted else {}
    for case in learned:
        if case.data == dataset.name and case.file in files:
            with suppress(DataError):  # left out because it cannot be read, or has no group
                whole, block = dataset.open(files[case.file]), case.id.removeprefix(case.file)
                # A block of a grid on the ground belongs to its cell, any other to its place in its scene.
                group = case.group if block.startswith("#x") and case.group else whole.group + block
                found[case] = whole
                if case.region:
                    found[case] = replace(whole.view(Window(*case.region), block), group=group, within=whole.group)
    return found


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
        return Parent.of(RunFolder.existing(wanted, "init_from"))
    if not isinstance(wanted, Mapping) or not wanted:
        raise ConfigError(
            f"'init_from={wanted}' is neither a run folder nor overrides. Type, for example, 'init_from={{model: fcn32s}}'."
        )
    return Parent.of(train(compose.again({"init_from": None, **wanted})))
