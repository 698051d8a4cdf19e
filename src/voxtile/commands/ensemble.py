"""One run, or several that predict together: the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
        members: the runs; the first one says how files are opened, how large windows are, and what colours classes have.
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
            for what, mine, its in zip(("classes", "channels", "reading", "regions"), _kind(members[0]), _kind(other), strict=True):
                if mine != its:
                    grids = what == "reading" and mine["spacing"] != its["spacing"]
                    remedy = " Train them with one 'data.spacing', such as the one that 'voxtile plan' proposes." if grids else ""
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

    def predictor(self, config: Mapping[str, Any]) -> Predictor:
        """See `Trained.predictor`.

        Raises:
            ConfigError: A setting is out of range, or some runs see slices and others volumes.
        """
        dims = [dims_of(member.network) for member in self.members]
        if len(set(dims)) > 1:
            kinds = {2: "slices", 3: "boxes"}
            found = [f"{member.home.path} {kinds[each]}" for member, each in zip(self.members, dims, strict=True)]
            raise ConfigError(
                f"Runs that see slices and runs that see boxes share no windows: {listed(found, 10)}. Name those of one kind."
            )
        return self.first.predictor(config, self.members)


# What decides how an image is read, and what stands for it where a run does not say.
KIND = {"nodata": None, "scene": None, "spacing": None, "axis": "z", "neighbours": 0}


def _kind(run: Trained) -> tuple[Any, Any, Any, Any]:
    """Classes, channels, how an image is read, and regions."""
    data = run.manifest["data"]
    own = run.built.config["data"]
    reading = {name: own.get(name, plain) for name, plain in KIND.items()}
    reading["scene"] = without_area(reading["scene"])
    # A format has had two names.
    return data["classes"], data["channels"], {"format": run.built.dataset.format, **reading}, run.built.dataset.regions
