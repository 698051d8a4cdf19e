"""One run, or several that predict together: the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.cases.cache import content_hash
from voxtile.cases.layouts.folder import check_partners
from voxtile.commands.bundle import without_area
from voxtile.commands.folders import differences, home_of
from voxtile.commands.trained import Trained
from voxtile.data.normalise import Intensity
from voxtile.data.survey import Survey
from voxtile.errors import ConfigError, RunError, listed
from voxtile.inference.predictor import Predictor
from voxtile.models.network import dims_of

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.cases.case import Case
    from voxtile.cases.layouts import CaseFiles
    from voxtile.training.run_folder import RunFolder


@dataclass(frozen=True)
class Ensemble:
    """Runs that answer the same question of the same kind of image.

    Attributes:
        members: the runs; the first one says how files are opened, and what colours classes have, and of each kind the first one
            how large windows are.
    """

    members: tuple[Trained, ...]

    @classmethod
    def open(cls, config: Mapping[str, Any], folders: Sequence[str], out: Console) -> Ensemble:
        """Opens the run, or the several, in the folders that `run_folders` has found.

        Raises:
            RunError: One cannot be opened, or two differ in their classes, channels, regions or the way in which images are read.
        """
        members = tuple(Trained.of(config, folder, config["weights"], bundles=True) for folder in folders)
        for member in members:
            member.warn(out)
        for other in members[1:]:
            for what, mine, its in zip(
                ("classes", "channels", "reading", "regions"), _asked(members[0]), _asked(other), strict=True
            ):
                if mine != its:
                    across = what == "reading" and mine["axis"] != its["axis"]
                    remedy = (
                        " Slices across two axes meet in whole maps only: name runs of one axis, and with boxes those of z."
                        * across
                    )
                    where = "data" if what == "reading" else what
                    raise RunError(
                        f"{members[0].home.path} and {other.home.path} cannot predict together: they differ in "
                        f"{listed(differences(mine, its, where))}. Expected runs on the same kind of data.{remedy}"
                    )
        return cls(members)

    def open_case(self, files: CaseFiles, in_area: bool = False) -> Case:
        """An image, or its part in the data set's area of interest, with the channels that the runs were trained on.

        Raises:
            DataError: A file is not there or cannot be read, or the case has not these channels.
        """
        if len(files.images) > 1:
            check_partners(files.images)
        return self.first.ordered(self.first.built.dataset.open(replace(files, labels=()), grouped=False, in_area=in_area))

    @cached_property
    def kinds(self) -> list[Ensemble]:
        """The runs by kinds, see `kinds_of`."""
        return [Ensemble(tuple(self.members[place] for place in places)) for places in kinds_of(self.members)]

    @property
    def first(self) -> Trained:
        """The run that says how files are opened."""
        return self.members[0]

    @property
    def identity(self) -> str:
        """The runs' identities."""
        return "+".join(member.identity for member in self.members)

    @property
    def homes(self) -> list[RunFolder]:
        """The runs' folders."""
        return [member.home for member in self.members]

    def home(self, config: Mapping[str, Any]) -> Path:
        """Where evaluate keeps what belongs to the run, or to these runs together."""
        return home_of(config, self.homes)

    def weights(self, name: str) -> str:
        """Digests of the weights called `name`, and of trusted code in which they are used."""
        weights = [content_hash(member.home.weights / f"{name}.safetensors") for member in self.members]
        code = {name: digest for member in self.members for name, digest in member.code.items()}
        return " ".join([*weights, *(f"{name} {digest}" for name, digest in code.items())])

    def intensities(self, measured: Survey) -> list[Intensity]:
        """How a case is normalised for each run."""
        return [member.intensity or member.built.normalisation.of_case(measured.sample) for member in self.members]

    def predictors(self, config: Mapping[str, Any]) -> list[Predictor]:
        """That of each kind, see `predictors_of`."""
        return [predictor for _, predictor in predictors_of(self.members, config)]


# What decides how an image is read, and what stands for it where a run does not say.
READING = {"nodata": None, "scene": None, "axis": "z"}


def kinds_of(runs: Sequence[Trained]) -> list[list[int]]:
    """Places of the runs of each kind: those that see slices, with as many neighbours, or boxes, on a grid of one spacing."""
    found: dict[object, list[int]] = {}
    for place, run in enumerate(runs):
        data = run.built.config["data"]
        spacing = data.get("spacing")
        seen = dims_of(run.network), spacing and tuple(spacing), data.get("neighbours", 0), data.get("axis", "z")
        found.setdefault(seen, []).append(place)
    return list(found.values())


def predictors_of(runs: Sequence[Trained], config: Mapping[str, Any]) -> list[tuple[list[int], Predictor]]:
    """What averages the probabilities of each kind of some runs that predict together, and the places of its runs.

    Raises:
        ConfigError: A setting is out of range, or several kinds are to refine by a CRF, or to predict scenes: their maps are joined
            slice by slice, and a scene is one slice, which memory may not hold.
    """
    kinds = kinds_of(runs)
    if len(kinds) > 1 and runs[0].built.dataset.format == "geotiff":
        raise ConfigError(
            f"Runs that see slices and runs that see boxes share no windows on a scene: {runs[0].home.path} and "
            f"{runs[kinds[1][0]].home.path}. Name those of one kind."
        )
    found = [(own, runs[own[0]].predictor(config, [runs[place] for place in own], len(runs))) for own in kinds]
    if len(found) > 1 and any(predictor.procedure.crf for _, predictor in found):
        raise ConfigError(
            f"'crf={config['crf']}' refines what networks say on the grid that they see, and {runs[0].home.path} and "
            f"{runs[kinds[1][0]].home.path} see slices and boxes, other neighbours or other spacings. Type 'crf=null', or name "
            "runs that see images alike."
        )
    return found


def _asked(run: Trained) -> tuple[Any, Any, Any, Any]:
    """Classes, channels, how an image is read, and regions."""
    data = run.manifest["data"]
    own = run.built.config["data"]
    reading = {name: own.get(name, plain) for name, plain in READING.items()}
    reading["scene"] = without_area(reading["scene"])
    # A format has had two names.
    return data["classes"], data["channels"], {"format": run.built.dataset.format, **reading}, run.built.dataset.regions
