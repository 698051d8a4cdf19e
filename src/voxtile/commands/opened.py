"""A run in a program of one's own, or a notebook: its network, its cases, and what it says of files and arrays."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import nn

from voxtile.cases.arrays import ArraySource
from voxtile.cases.case import Case
from voxtile.cases.grid import WorkingGrid
from voxtile.cases.raster import block_cache
from voxtile.cases.window import IGNORE, Window
from voxtile.commands.compose import folder_of
from voxtile.commands.console import console
from voxtile.commands.ensemble import Ensemble
from voxtile.commands.folders import run_folders
from voxtile.commands.inputs import find_inputs
from voxtile.commands.looks import Looks
from voxtile.commands.postprocess import made_with, postprocess_of
from voxtile.commands.trained import prepared_for
from voxtile.data.survey import survey
from voxtile.errors import ConfigError, DataError, listed
from voxtile.inference.native import native_bands
from voxtile.inference.postprocess import check_size, pixel_size
from voxtile.values import is_number, refuse_unknown

if TYPE_CHECKING:
    from voxtile.cases.layouts import CaseFiles
    from voxtile.data.prepared import Prepared

Image = str | Path | Case | NDArray[Any]
Scalar = TypeVar("Scalar", bound=np.generic)
SIDES = ("train", "val", "test")
# Settings of `voxtile predict` that say how a map is made, and not which files are read and written.
SETTINGS = (
    "window", "overlap", "crf", "postprocess", "rotations", "mirrors", "halo", "samples", "uncertainty", "batch_size", "device",
    "precision", "workers",
)  # fmt: skip
_TURN = threading.Lock()  # a prediction takes all processors, sets how many threads torch has, and may turn the network's layout
OWN = ("runs", "paths")  # those that this module looks at beside them


@dataclass(frozen=True)
class Prediction:
    """What a run says of an image.

    Arrays are [H, W] where the image is a scene or a single picture, and [D, H, W] of volumes; those of files lie in the order
    and direction of `grid`: of volumes slices from the feet up, rows from back to front, columns from the patient's left to right.

    Attributes:
        labels: uint8, the index of each pixel's class; 255 where the image holds no data.
        probabilities: float32 [K, …], or None where they were not asked for; NaN where the image holds no data.
        uncertainty: float32, the variance over samples, or None.
        classes: names in the order of their indices.
        grid: where pixels lie: `transform` and `crs` of scenes, `matrix` of volumes (index (x, y, z) to mm), `spacing` (z, y, x).
    """

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
    uncertainty: NDArray[np.float32] | None
    classes: tuple[str, ...]
    grid: WorkingGrid


class Run:
    """A trained run, or an exported bundle; see `voxtile.open_run`."""

    def __init__(self, path: str | Path, weights: str, root: str | Path | None, trust: Sequence[str]) -> None:
        """Opens it.

        Args:
            path: the folder.
            weights: "best" or "last".
            root: the folder in which the run's data lie now; None for where they lay.
            trust: modules outside voxtile's allow-list whose classes may be built.
        """
        given = {"run": str(path), "weights": weights, "root": root and str(root), "trust": list(trust)}
        self._settings, self._out = _defaults() | given, console()
        self._runs = Ensemble.open(self._settings, run_folders(self._settings, self._out), self._out)
        self._looks = Looks(self._runs, self._settings, self._out)
        self._trained = self._runs.first
        self._about: Mapping[str, Any] = self._trained.manifest["data"]
        self._prepared: dict[bool, Prepared] = {}

    def __repr__(self) -> str:
        """What a notebook shows."""
        return f"<run {self.path}: {', '.join(self.channels)} to {', '.join(self.classes)}>"

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._trained.home.path

    @property
    def network(self) -> nn.Module:
        """The network with its weights, in evaluation mode: normalised windows [B, C, H, W] or [B, C, D, H, W] to logits."""
        return self._trained.network.eval()

    @property
    def config(self) -> Mapping[str, Any]:
        """What the run was composed of, as its `config.yaml` holds it."""
        return self._trained.built.config

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their indices."""
        return tuple(self._about["classes"])

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the image's channels in the order in which the network sees them."""
        return tuple(self._about["channels"])

    def cases(self, side: str = "val") -> list[Case]:
        """The cases of one side of the run's split.

        Args:
            side: "train", "val" or "test".

        Raises:
            ConfigError: There is no such side.
            DataError: The data are not there, or are not those that the run was trained on.
        """
        if side not in SIDES:
            raise ConfigError(f"'{side}' is no side of a split; choose from {listed(SIDES)}.")
        locked = side == "test"  # only then is it asked whether these cases are what they were
        if locked not in self._prepared:
            self._prepared[locked] = prepared_for(self._trained, side, self._out)
        return list(self._prepared[locked].split.sides[side])

    def read(self, case: Case) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """The pixels [C, …] of a case as they come from its files, on the grid of its map, and its label; see `Prediction`.

        Raises:
            DataError: A file cannot be read.
        """
        native = case.native
        whole = Window.whole(native.shape)
        return self._shaped(native.read(whole)[0]), self._shaped(native.read_label(whole))

    def predict(
        self,
        image: Image,
        *,
        probabilities: bool = False,
        spacing: Sequence[float] | None = None,
        **settings: Any,
    ) -> Prediction:
        """Predicts an image as `voxtile predict` does, into memory; of several threads one after the other.

        Args:
            image: a file or folder of one case; a case of `cases`; or pixels [C, H, W], [C, D, H, W] with the run's channels in
                their order, of whole or real numbers, where what is not finite holds no data.
            probabilities: whether these are wanted too, of all classes at each pixel: 4 K bytes for each.
            spacing: of an array that is a volume: distance between its pixels along (z, y, x) in mm.
            settings: any of those of `voxtile predict` that say how a map is made, such as `overlap=0.5` or `mirrors=["y", "x"]`.

        Raises:
            ConfigError: A setting is unknown or out of range.
            DataError: The image cannot be read, or is not of the kind that the run was trained on.
        """
        refuse_unknown("predict", settings, SETTINGS)
        case, files = self._case(image, spacing)
        with _TURN:
            return self._predicted(case, files, self._settings | settings, probabilities)

    def _predicted(self, case: Case, files: CaseFiles | None, config: Mapping[str, Any], probabilities: bool) -> Prediction:
        predictor = self._runs.predictor(config)
        post = postprocess_of(config["postprocess"], self.path, self._about, made_with(config, predictor))
        if post is not None:
            check_size(case.native)
        shape, count = case.native.shape, len(self.classes)
        labels = np.full(shape, IGNORE, dtype=np.uint8)
        maps = np.full((count, *shape), np.nan, dtype=np.float32) if probabilities else None
        variance = np.full(shape, np.nan, dtype=np.float32) if predictor.procedure.varies else None
        with block_cache(predictor.decoding_threads):
            measured = survey(case, count, label=False)
            self._looks.record(case.id, measured, files)
            for band in native_bands(predictor, case, self._runs.intensities(measured)):
                labels[band.window.slices] = band.classes()
                if maps is not None:
                    maps[:, *band.window.slices] = band.probabilities.cpu().numpy()
                if variance is not None and band.variance is not None:
                    variance[band.window.slices] = band.variance.cpu().numpy()
        if post is not None:
            post.apply(labels, pixel_size(case.native))
        shaped = [None if each is None else self._shaped(each) for each in (maps, variance)]
        return Prediction(self._shaped(labels), shaped[0], shaped[1], self.classes, case.native.grid)

    def _case(self, image: Image, spacing: Sequence[float] | None) -> tuple[Case, CaseFiles | None]:
        """What is to be predicted, and its files where they are named by a path."""
        if isinstance(image, np.ndarray):
            return self._of_array(image, spacing), None
        if spacing is not None:
            raise ConfigError("'spacing' is that of an array; a file says its own.")
        if isinstance(image, Case):
            return image, None
        found, _ = find_inputs(Path(image).expanduser(), self._trained.built.dataset, len(self.channels))
        if len(found) > 1:
            raise DataError(f"{image} holds {len(found)} cases: {listed(files.id for files in found)}. Name one of them.")
        return self._runs.open_case(found[0]), found[0]

    def _of_array(self, pixels: NDArray[Any], spacing: Sequence[float] | None) -> Case:
        dataset = self._trained.built.dataset
        if spacing is not None and (len(spacing) != 3 or not all(is_number(each, 0) and each for each in spacing)):
            raise ConfigError(f"'spacing={spacing}' must be three numbers of mm above 0, along (z, y, x).")
        if spacing is None and dataset.spacing is not None:
            raise ConfigError(
                f"{self.path} was trained on volumes at {dataset.spacing} mm along (z, y, x). Say how far apart the pixels of the "
                "array are, as 'spacing=(z, y, x)'."
            )
        at = None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        source = ArraySource(pixels[:, None] if pixels.ndim == 3 else pixels, self.channels, at)
        return dataset.placed(Case("array", "array", source, neighbours=dataset.windowing.neighbours))

    def _shaped(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Maps [..., D, H, W]; without D where they are of a scene or of a single picture."""
        planar = self._trained.built.dataset.format in ("geotiff", "picture") and array.shape[-3] == 1
        return array[..., 0, :, :] if planar else array


def _defaults() -> dict[str, Any]:
    """The settings of `voxtile predict` where nothing is typed."""
    written = OmegaConf.load(folder_of("predict") / "predict.yaml")
    assert isinstance(written, DictConfig)
    found = OmegaConf.to_container(OmegaConf.masked_copy(written, [*OWN, *SETTINGS]), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
