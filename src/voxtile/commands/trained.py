"""A trained run, opened from its folder: what evaluating and predicting have in common."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from yaml import YAMLError

from voxtile.cases.windowing import AXES
from voxtile.commands.allowed import build_network, targets_of, without_weights
from voxtile.commands.build import Parts, parts
from voxtile.commands.crf import crf_of
from voxtile.commands.devices import check_precision, device_called, torch_type
from voxtile.data.normalise import Intensity
from voxtile.errors import AbsentError, ConfigError, DataError, RunError, counted, did_you_mean, listed, reason
from voxtile.inference.field import reach_of
from voxtile.inference.predictor import Predictor
from voxtile.inference.procedure import Procedure
from voxtile.models.network import dims_of
from voxtile.studies.manifest import segment, trusted
from voxtile.training.run_folder import RunFolder
from voxtile.training.weights import file_digest, load_weights, saved_at
from voxtile.values import check_whole_number, is_number, is_whole

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.cases.case import Case
    from voxtile.data.prepared import Prepared

MOST_SEEN = 2**25  # pixels of a window with its halo: feature maps of 16 channels then take 2 GB
# What a manifest says of a run's data.
DATA = ("channels", "classes", "background", "colors", "intensity", "test_fingerprint", "test_files")


@dataclass(frozen=True)
class Trained:
    """A run with weights.

    Attributes:
        home: its folder.
        built: its parts, built anew from its configuration.
        manifest: what it was made from.
        network: with the weights asked for.
        file: what tells its weights from others: `weights_sha256`, and `weights_step`, at which they were saved (None: not known).
        code: digests of the trusted packages that the network is of, as they were when it was opened.
    """

    home: RunFolder
    built: Parts
    manifest: Mapping[str, Any]
    network: torch.nn.Module
    file: Mapping[str, Any]
    code: Mapping[str, str | None]

    @classmethod
    def of(
        cls, config: Mapping[str, Any], path: str, weights: str, *, bundles: bool = False, changed: bool = False
    ) -> Trained:  # fmt: skip
        """Opens a run folder as a command's settings say; what it holds is checked, and nothing in it is executed.

        Args:
            config: of the command: its `trust` names modules whose classes may be built although they are not on the allow-list,
                its `root`, where it has one, the folder in which the run's data lie now; its `paths.cache` where surveys are kept.
            path: the run folder.
            weights: "best" or "last".
            bundles: whether an exported bundle will do.
            changed: whether weights, and a manifest, will do that are not those with which the run was finished.

        Raises:
            RunError: The folder is no run of this version, or holds no such weights, or others, or another manifest, than it was
                finished with.
            ConfigError: Its configuration wants to build what is not allowed.
            DataError: The data set's folder does not exist.
        """
        trust = config["trust"]
        if not isinstance(trust, list):
            raise ConfigError(f"'trust={trust}' must be a list of modules. Type 'trust=[{trust}]'.")
        home = RunFolder.existing(path, bundles=bundles)
        built = _parts_of(home, config)
        manifest = home.read("manifest.json", "data", "versions")
        data = manifest["data"]
        if missing := [key for key in DATA if not isinstance(data, dict) or key not in data]:
            raise RunError(
                f"{home.path / 'manifest.json'} says nothing of {listed(missing)}. The run folder is damaged; "
                "move it away and train the run again."
            )
        if not changed and other_data(home):
            raise RunError(
                f"{home.path / 'manifest.json'} says other things of the data than when the run was finished: their digest is not "
                f"that in {home.path / 'status.json'}. Copy the file anew from where the run was trained, or train the run again."
            )
        # Weights from elsewhere, with which the run may have started, are not asked for again: its own replace them.
        model, inputs = built.config["model"], len(data["channels"]) * (1 + 2 * built.windowing.neighbours)
        network = build_network(without_weights(model), trust, inputs, len(data["classes"]))
        file, digest = _weights_of(home, weights, changed)
        load_weights(network, file)
        packages = {name.partition(".")[0] for _, name in targets_of(model, "model")}
        code = trusted([each for each in trust if each.partition(".")[0] in packages])
        return cls(home, built, manifest, network, {"weights_sha256": digest, "weights_step": saved_at(file)}, code)

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """Its recipe.json, read once."""
        return self.home.read("recipe.json", "settings", "identity")

    @property
    def identity(self) -> str:
        """The digest of all that can change its numbers."""
        found: str = self.recipe["identity"]
        return found

    @property
    def changed_modules(self) -> list[str]:
        """Packages of the network that are others than when it was trained, so that its weights may be in another network."""
        known = segment(self.manifest).get("code", {}).get("trusted", {})
        return [name for name, digest in self.code.items() if known.get(name, digest) != digest]

    def warn(self, out: Console) -> None:
        """Says what may make the weights others than those that are meant, before anything is made with them."""
        status = self.home.status
        if status["state"] != "finished":
            step = f"step {max(status.get('step', 0), self.file['weights_step'] or 0)} of {self.built.settings.steps}"
            out.print(
                f"{self.home.path} is {status['state']} and stands at {step}: its weights may still change, and what is made with "
                "them now is not of the finished run",
                style="yellow", soft_wrap=True,
            )  # fmt: skip
        if names := self.changed_modules:
            out.print(
                f"{self.home.path} was trained before the trusted code of {listed(names)} changed: its weights may be in a network "
                "that they do not belong to, and what is made of it of no worth. Bring that code back to have what the run was "
                "scored with.",
                style="yellow", soft_wrap=True,
            )  # fmt: skip

    @property
    def bare(self) -> Parts:
        """Its parts, with a configuration that builds the network without weights from elsewhere: it has its own."""
        return replace(self.built, config={**self.built.config, "model": without_weights(self.built.config["model"])})

    @property
    def intensity(self) -> Intensity | None:
        """The training set's intensities; None where each case is normalised by its own."""
        stored = self.manifest["data"]["intensity"]
        return None if stored is None else Intensity.from_dict(stored)

    def ordered(self, case: Case) -> Case:
        """A case with the channels that the run was trained on: found by name, or by their order where names are others.

        Raises:
            DataError: It has others.
        """
        channels = self.manifest["data"]["channels"]
        if len(case.channels) != len(channels):
            doubts = "".join(f" {sentence}" for sentence in case.image.doubts())
            raise DataError(
                f"{case.image.path} has {counted(len(case.channels), 'channel')} ({', '.join(case.channels)}), and the run "
                f"{self.home.path} was trained on {len(channels)} ({', '.join(channels)}). Expected the same: name an "
                f"image like those of the training, no map or heatmap, with all its channels.{doubts}"
            )
        if sorted(case.channels) == sorted(channels):
            return case.with_channels(channels)
        moved = [name for place, name in enumerate(channels) if name in case.channels and case.channels[place] != name]
        if moved:
            raise DataError(
                f"{case.image.path} has the channels {', '.join(case.channels)}, and the run {self.home.path} was trained on "
                f"{', '.join(channels)}: {listed(moved)} stands in another place, so neither names nor their order say which "
                "is which. Expected the same names, in any order; or the same order, under other names."
            )
        return case

    def ledger(self, config: Mapping[str, Any]) -> Path:
        """The folder of the ledger of looks at test splits: `paths.runs`, or the folder that the run lies in."""
        return Path(config["paths"]["runs"] or self.home.path.resolve().parent).expanduser()

    def predictor(
        self, config: Mapping[str, Any], members: Sequence[Trained] | None = None, together: int = 1
    ) -> Predictor:  # fmt: skip
        """A predictor with the run's window and the settings of a command.

        Args:
            config: of the command.
            members: several runs whose networks' probabilities are averaged; this one where None.
            together: how many runs predict together, where others than these do.

        Raises:
            ConfigError: A setting is out of range.
        """
        members = members or [self]
        networks = [member.network for member in members]
        check_precision("precision", config["precision"])
        overlap = config["overlap"]
        if not is_number(overlap, 0, 1) or overlap == 1:
            raise ConfigError(f"'overlap={config['overlap']}' is the share of a window's side; give 0 or more and less than 1.")
        for name, least in (("workers", 0), ("samples", 0), ("rotations", 1)):
            check_whole_number(name, config[name], least)
        if config["batch_size"] is not None and not is_whole(config["batch_size"], 1):
            raise ConfigError(f"'batch_size={config['batch_size']}' must be a whole number from 1 up, or null.")
        uncertain = config.get("uncertainty", False)
        wanted = [f"samples={config['samples']}"] * bool(config["samples"]) + ["uncertainty=true"] * uncertain
        disagreement = bool(uncertain and max(len(members), together) > 1 and not config["samples"])
        if wanted and not disagreement and not all(getattr(network, "stochastic", False) for network in networks):
            raise ConfigError(
                f"'{' '.join(wanted)}' asks for Monte-Carlo dropout, and this network is not made for it. Leave it out "
                f"({'heatmaps=true writes probabilities' if uncertain else 'samples=0'}), or train a network that is: "
                f"'model=bayesian_segnet'.{' Several runs (runs=) need none: their variance is taken.' if uncertain else ''}"
            )
        if uncertain and not config["samples"] and not disagreement:
            raise ConfigError("'uncertainty=true' needs samples to take the variance of. Type 'samples=40' too.")
        if config["rotations"] > 1 and dims_of(self.network) != 2:
            raise ConfigError("'rotations' turns slices, and this network sees volumes. Type 'rotations=1'.")
        crf = crf_of(config["crf"], self.home, self.manifest["data"]["channels"])
        mirrors, halo = self._mirrors(config["mirrors"]), self._halo(config["halo"], networks)
        symmetries = tuple(member.built.symmetry for member in members) if mirrors else ()
        procedure = Procedure(config["samples"], config["rotations"], mirrors, halo, crf, symmetries, disagreement)
        own = list(self.built.windowing.size)
        window = own if config["window"] is None else config["window"]
        if not isinstance(window, list) or len(window) != len(own) or not all(is_whole(side, 1) for side in window):
            raise ConfigError(
                f"'window={window}' must be {len(own)} whole numbers of pixels from 1 up, like that of the training, {own}."
            )
        size = (1, *window) if len(window) == 2 else tuple(window)
        _check_seen(window, procedure.halo)
        depth, height, width = (max(sides) for sides in zip(*(each.built.windowing.box for each in members), strict=True))
        return Predictor(
            networks, size, config["overlap"], config["batch_size"],
            device=device_called(config["device"]), precision=torch_type(config["precision"]), workers=config["workers"],
            procedure=procedure, regions=list(self.built.dataset.regions.values()), trained_on=(depth, height, width),
        )  # fmt: skip

    def _mirrors(self, axes: Any) -> tuple[str, ...]:
        windowing = self.built.windowing
        known = [axis for axis in AXES if dims_of(self.network) == 3 or axis != windowing.axis]
        if not isinstance(axes, list) or not set(axes) <= set(known) or len(set(axes)) < len(axes):
            given = f"[{','.join(map(str, axes))}]" if isinstance(axes, list) else axes
            raise ConfigError(
                f"'mirrors={given}' must be a list of axes among {listed(known)}, for example 'mirrors=[{','.join(known)}]'."
            )
        return tuple(windowing.axis_of(axis) for axis in axes)

    def _halo(self, halo: Any, networks: Sequence[torch.nn.Module]) -> int:
        if halo == "field":
            inputs = len(self.manifest["data"]["channels"]) * (1 + 2 * self.built.windowing.neighbours)
            return max(reach_of(network.eval(), inputs) for network in networks)
        if not is_whole(halo, 0):
            raise ConfigError(
                f"'halo={halo}' must be a number of pixels from 0 up, or 'field' for half the network's receptive field."
            )
        return int(halo)


def prepared_for(trained: Trained, split: str, out: Console, anew: bool = False) -> Prepared:
    """The data of a run, which must be those that it was trained on.

    Args:
        trained: the run.
        split: the side that is looked at.
        out: where it prints.
        anew: whether all is read again, and nothing taken from the cache, by which files are known by their dates.

    Raises:
        DataError: They are other data, or cannot be read.
    """
    from voxtile.commands.assemble import prepare_data
    from voxtile.studies.manifest import other_contents

    root = trained.built.dataset.layout.root
    try:
        prepared = prepare_data(trained.built, out, anew, trained.home.path.parent)
    except DataError as error:
        said = error.found if isinstance(error, AbsentError) else error
        raise DataError(
            f"The data in {root} cannot be scored as those of the run {trained.home.path}: {said} If the run's data lie elsewhere "
            "now, say where with 'root=<folder>'."
        ) from error
    recipe = trained.recipe
    same = prepared.split.digest == recipe["split"] and prepared.fingerprint == recipe["data"]
    if split == "test":
        same = same and prepared.test_fingerprint == trained.manifest["data"]["test_fingerprint"]
    if not same:
        which = other_contents(trained.manifest["data"], prepared) or "files or split have changed"
        raise DataError(
            f"The data in {root} are not what the run {trained.home.path} was trained on: {which}. Put them back as they were "
            "(manifest.json lists the split), say with 'root=<folder>' where they are, or train a new run; so, too, where it is "
            "this version of voxtile that reads them otherwise (CHANGELOG.md)."
        )
    return prepared


def other_data(home: RunFolder) -> bool:
    """Whether a run's manifest says other things of the data than when it was finished; an older run does not tell."""
    recorded = home.status.get("data")
    return recorded is not None and recorded != home.data_digest()


def configuration(home: RunFolder) -> Any:
    """What a run's config.yaml holds, as it is written.

    Raises:
        RunError: It cannot be read.
    """
    path = home.path / "config.yaml"
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except PermissionError as error:
        raise RunError(f"{path} cannot be read: {reason(error)}. Give yourself the right to read it.") from error
    except (OSError, ValueError, YAMLError) as error:
        raise RunError(
            f"{path} cannot be read: {reason(error)}. The run folder is damaged; move it away and train the run again."
        ) from error


def _parts_of(home: RunFolder, given: Mapping[str, Any]) -> Parts:
    """The parts of a run, built from its configuration with what a command's settings (`given`) have in its place.

    Raises:
        RunError: What the folder holds is no configuration.
        ConfigError: It wants to build what is not allowed.
        DataError: The data set's folder does not exist.
    """
    config, root, cache = configuration(home), given.get("root"), given["paths"]["cache"]
    try:
        config["trust"] = list(given["trust"])  # what the run itself was trusted with counts for nothing here
        if root is not None:
            if not Path(root).expanduser().is_dir():  # made-up data would else be made there
                raise DataError(f"The folder 'root={root}' does not exist. Name the one in which the run's data lie now.")
            config["data"]["layout"]["root"] = str(root)
        if cache is not None:  # the run's own folder for surveys may be somebody else's
            config["paths"]["cache"] = cache
        if config["data"].get("spacing") == "median":
            config["data"]["spacing"] = home.read("manifest.json", "data")["data"]["spacing"]
        return parts(config, trained=True)
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError(
            f"{home.path / 'config.yaml'} is no configuration of a run: {error!r}. The run folder is damaged; move it away and "
            "train the run again."
        ) from error


def _weights_of(home: RunFolder, name: str, changed: bool) -> tuple[Path, str]:
    """The file of a run's weights `name`, and its SHA-256.

    Raises:
        RunError: There is none, or, unless `changed` ones will do, another one than the run was finished with.
    """
    file = home.weights / f"{name}.safetensors"
    if not file.exists():
        there = sorted(p.stem for p in home.weights.glob("*.safetensors"))
        status = home.status
        failed = f": it failed at step {status.get('step', '?')}, and said: {status.get('reason')}" if "reason" in status else "."
        if status["state"] == "finished" and not there:
            raise RunError(
                f"{home.path} is finished, and its weights are gone: {home.weights} holds none. Copy them back from where the "
                "run was trained, or move the folder away and train the run again."
            )
        hint = (
            f" It has {listed(there)}.{did_you_mean(name, there)}"
            if there
            else f" The run has not come to its first validation{failed}"
        )
        raise RunError(f"{home.path} holds no weights '{name}'.{hint}")
    recorded, digest = (home.status.get("weights") or {}).get(name), file_digest(file)
    if recorded and not changed and digest != recorded:
        raise RunError(
            f"{file} has changed since the run was finished: its SHA-256 is not that in {home.path / 'status.json'}. Copy the "
            "file anew from where the run was trained, or train the run again."
        )
    return file, digest


def _check_seen(window: Sequence[int], halo: int) -> None:
    """Refuses a halo with which a single window would take gigabytes.

    Raises:
        ConfigError: A window with this halo has more than `MOST_SEEN` pixels.
    """

    def seen(halo: int) -> int:
        return math.prod(side + 2 * halo for side in window)

    if halo and seen(halo) > MOST_SEEN:
        fitting = bisect_left(range(halo), True, key=lambda wide: seen(wide) > MOST_SEEN) - 1
        sides = "x".join(map(str, window))
        raise ConfigError(
            f"'halo' is {halo} pixels on each side of windows of {sides}, so that the network sees {seen(halo):,} at once, more "
            f"than {MOST_SEEN:,}. Type 'halo={max(0, fitting)}' or less, or smaller windows ('window=[…]')."
        )
