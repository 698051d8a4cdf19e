"""A run in a program of one's own, or a notebook: its network, its cases, and what it says of files and arrays."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

import voxtile
from voxtile.cases.case import Case
from voxtile.cases.layouts import SPLITS
from voxtile.cases.maps import MADE_FROM, MapSpec
from voxtile.cases.raster import block_cache
from voxtile.cases.window import IGNORE, Window
from voxtile.commands.compose import folder_of
from voxtile.commands.doubts import doubts_of
from voxtile.commands.ensemble import Ensemble
from voxtile.commands.given_images import Image, case_of, plain
from voxtile.commands.looks import Looks
from voxtile.commands.postprocess import made_with, postprocess_of
from voxtile.commands.trained import prepared_for
from voxtile.data.normalise import normalise
from voxtile.data.survey import survey
from voxtile.errors import ConfigError, DataError, listed
from voxtile.inference.native import native_bands
from voxtile.inference.postprocess import check_size, pixel_size
from voxtile.values import refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from voxtile.cases.grid import WorkingGrid
    from voxtile.cases.layouts import CaseFiles
    from voxtile.data.prepared import Prepared

AnyPath = str | os.PathLike[str]
Scalar = TypeVar("Scalar", bound=np.generic)
OWN = ("runs", "uncertainty", "paths")  # settings of `voxtile predict` that this module looks at beside `Settings`
_TURN = threading.Lock()  # a prediction takes all processors, sets how many threads torch has, and may turn the network's layout


class Settings(TypedDict, total=False):
    """Those of `voxtile predict` that say how a map is made; `voxtile predict --help` explains them."""

    window: Sequence[int] | None
    overlap: float
    crf: str | Mapping[str, Any] | None
    postprocess: str | Mapping[str, Any] | None
    rotations: int
    mirrors: Sequence[str]
    halo: int | str
    samples: int
    batch_size: int | None
    device: str
    precision: str
    workers: int


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run says of an image.

    Arrays are [H, W] where the image is a scene or a single picture, and [D, H, W] of volumes: those of files lie in the order and
    direction of `grid`, slices from the feet up, rows from back to front, columns from the patient's left to right.

    Attributes:
        labels: uint8, the index of each pixel's class; 255 where the image holds no data.
        probabilities: float32 [K, …], or None where they were not asked for; NaN where the image holds no data.
        uncertainty: float32, the variance over `samples`, or None without.
        classes: names in the order of their indices.
        grid: where pixels lie: `transform` and `crs` of scenes, `matrix` of volumes (index (x, y, z) to mm), `spacing` (z, y, x).
    """

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
    uncertainty: NDArray[np.float32] | None
    classes: tuple[str, ...]
    grid: WorkingGrid
    _case: Case | None = field(repr=False)  # of a file
    _spec: MapSpec = field(repr=False)

    def save(self, path: AnyPath, overwrite: bool = False) -> None:
        """Writes the map of a file or case as `voxtile predict` does: in the image's format, grid and geometry.

        Args:
            path: the file, or of a stack of pictures the folder.
            overwrite: whether a file of this name is replaced.

        Raises:
            DataError: The image was an array, which has no format; the name's ending is not the format's; or it exists.
        """
        file = Path(path).expanduser()
        if self._case is None:
            raise DataError(f"{file} cannot be written: the image was an array, which has no file format. Predict the file itself.")
        native = self._case.native
        ending = native.image.map_name("", self._spec)
        if not file.name.lower().endswith(ending):
            raise DataError(f"{file} is a map of {native.image.path}, and such maps end in '{ending}'. Name it so.")
        with _told():
            if file.exists() and (not overwrite or file.is_dir() == bool(ending)):
                raise DataError(f"{file} exists already. Name another one, or, of a file of its kind, give 'overwrite=True'.")
            file.parent.mkdir(parents=True, exist_ok=True)
            with native.open_map(file, self._spec) as writer:
                try:
                    writer.write(native.box, self._spec.encoded(self.labels.reshape(native.shape)))
                    writer.make()
                except BaseException:
                    writer.discard()
                    raise
                writer.close()


class Run:
    """A trained run, or an exported bundle; see `voxtile.open_run`.

    What is to be said of an image or of the run comes as a warning of Python's, and nothing is printed.
    """

    def __init__(self, path: AnyPath, weights: str, root: AnyPath | None, trust: Sequence[str]) -> None:
        """Opens it; see `voxtile.open_run`."""
        trusted = [trust] if isinstance(trust, str) else list(trust)
        if not all(isinstance(each, str) for each in (weights, *trusted)):
            raise ConfigError(f"'weights={weights!r}' must be text, and 'trust={trust!r}' names of modules.")
        home = Path(path).expanduser().absolute()
        given = {"run": str(home), "weights": weights, "root": root and str(Path(root).expanduser().absolute()), "trust": trusted}
        self._settings = _defaults() | given
        with torch.random.fork_rng(devices=[]):  # weights are drawn before those that were learned take their place
            self._runs = Ensemble.open(self._settings, [str(home)], _AsWarnings())
        self._looks = Looks(self._runs, self._settings, _AsWarnings())
        self._doubts: set[str] = set()  # that were said
        self._trained = self._runs.first
        self._trained.network.float()  # the program's default type may be another
        self._about: Mapping[str, Any] = self._trained.manifest["data"]
        self._prepared: dict[bool, Prepared] = {}

    def __repr__(self) -> str:
        """What a notebook shows."""
        return f"<run {self.path}: {', '.join(self.channels)} to {', '.join(self.classes)}>"

    def __reduce__(self) -> tuple[Callable[[], Run], tuple[()]]:
        """Other processes open it anew."""
        given = self._settings
        return partial(voxtile.open_run, self.path, given["weights"], root=given["root"], trust=given["trust"]), ()

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._trained.home.path

    @property
    def network(self) -> nn.Module:
        """The network with its weights, in evaluation mode: windows of `normalised` [B, C, H, W] or [B, C, D, H, W] to logits.

        It lies where the last prediction was made, see `device`.
        """
        return self._trained.network.eval()

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self._trained.network.parameters()).device

    @property
    def config(self) -> dict[str, Any]:
        """What the run was composed of, as its `config.yaml` holds it."""
        return deepcopy(dict(self._trained.built.config))

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
        if side not in SPLITS:
            raise ConfigError(f"'{side}' is no side of a split; choose from {listed(SPLITS)}.")
        locked = side == "test"  # only then is it asked whether these cases are what they were
        if locked not in self._prepared:
            self._prepared[locked] = prepared_for(self._trained, side, Console(quiet=True))
        return list(self._prepared[locked].split.sides[side])

    def read(self, case: Case) -> tuple[np.ma.MaskedArray[Any, np.dtype[Any]], NDArray[np.uint8]]:
        """The pixels [C, …] of a case on the grid of its map, masked where they hold no data, and its label; see `Prediction`.

        The label is 255 where nothing is judged, which is so where there are no data.

        Raises:
            DataError: A file cannot be read, or the case has no label.
        """
        native = case.native
        whole = Window.whole(native.shape)
        pixels, valid = native.read(whole)
        label = native.read_label(whole)
        label[~valid] = IGNORE
        image = self._shaped(pixels)
        return np.ma.MaskedArray(image, mask=np.broadcast_to(self._shaped(~valid), image.shape).copy()), self._shaped(label)

    def normalised(self, image: Image, *, spacing: Sequence[float] | None = None) -> NDArray[np.float32]:
        """What the network sees of an image: on the run's own grid and normalised, 0 where there are no data.

        Args:
            image: as for `predict`. Cut windows out of large ones by hand: all of it comes.
            spacing: as for `predict`.

        Returns:
            [C, H, W] of a scene or a single picture, else [C, D, H, W], with D along the axis across which slices lie, and a
            channel for each of the slices that the network sees together.

        Raises:
            ConfigError: An array needs a spacing, or the one given is none.
            DataError: The image cannot be read, or is not of the kind that the run was trained on.
        """
        case, _ = case_of(self._runs, image, spacing)
        with _TURN:
            intensity = self._runs.intensities(survey(case, len(self.classes), label=False))[0]
        pixels = np.empty((case.inputs, *case.shape), dtype=case.dtype)
        valid = case.read_into(pixels, Window.whole(case.shape))
        numbers = {name: torch.from_numpy(row)[None] for name, row in intensity.arrays().items()}
        seen: NDArray[np.float32] = normalise(torch.from_numpy(pixels)[None], torch.from_numpy(valid.copy())[None], **numbers)[
            0
        ].numpy()
        return self._shaped(seen)

    def predict(
        self,
        image: Image,
        *,
        probabilities: bool = False,
        spacing: Sequence[float] | None = None,
        **settings: Unpack[Settings],
    ) -> Prediction:
        """Predicts an image as `voxtile predict` does, into memory; of several threads one after the other.

        Args:
            image: a file, address or folder of one case; a case; or an array of pixels, whole or real numbers [C, H, W] or, of
                volumes and stacks of pictures, [C, D, H, W], with the run's channels in their order. What is masked or not finite
                holds no data.
            probabilities: whether these are wanted too, of all classes at each pixel: 4 K bytes for each.
            spacing: of an array that is a volume: distance between its pixels along (z, y, x) in mm.
            settings: see `Settings`.

        Raises:
            ConfigError: A setting is unknown or out of range.
            DataError: The image cannot be read, or is not of the kind that the run was trained on.
        """
        refuse_unknown("predict", settings, [*Settings.__annotations__, "probabilities", "spacing"])
        config = self._settings | {name: plain(value) for name, value in settings.items()}
        with _TURN, _told():
            case, files = case_of(self._runs, image, spacing)
            return self._predicted(case, files, config, probabilities)

    def _predicted(self, case: Case, files: CaseFiles | None, config: Mapping[str, Any], probabilities: bool) -> Prediction:
        (predictor,) = self._runs.predictors(config)
        post = postprocess_of(config["postprocess"], self.path, self._about, made_with(config, predictor))
        if post is not None:
            check_size(case.native)
        shape, count = case.native.shape, len(self.classes)
        labels = np.full(shape, IGNORE, dtype=np.uint8)
        maps = np.full((count, *shape), np.nan, dtype=np.float32) if probabilities else None
        variance = np.full(shape, np.nan, dtype=np.float32) if predictor.procedure.varies else None
        with block_cache(predictor.decoding_threads):
            measured = survey(case, count, label=False)
            for sentence in doubts_of(self._runs, case, measured, self._doubts):
                _warn(sentence)
            self._looks.record(case.id, measured, files, self._is_tested(case))
            for band in native_bands(predictor, case, self._runs.intensities(measured)):
                labels[band.window.slices] = band.classes()
                if maps is not None:
                    maps[:, *band.window.slices] = band.probabilities.cpu().numpy()
                if variance is not None and band.variance is not None:
                    variance[band.window.slices] = band.variance.cpu().numpy()
        if post is not None:
            post.apply(labels, pixel_size(case.native))
        shaped = [None if each is None else self._shaped(each) for each in (maps, variance)]
        dataset = self._trained.built.dataset
        tags = [("software", f"voxtile {voxtile.__version__}"), ("run", self._runs.identity), ("weights", config["weights"])]
        made_from = repr((self._runs.weights(config["weights"]), sorted(config.items(), key=str), measured.image_digest))
        tags.append((MADE_FROM, hashlib.sha256(made_from.encode()).hexdigest()[:16]))  # by which a map is known as one
        spec = MapSpec(self.classes, colors=dataset.colors, tags=tuple(tags), background=dataset.background)
        saved = case if case.image.files else None
        return Prediction(self._shaped(labels), shaped[0], shaped[1], self.classes, case.native.grid, saved, spec)

    def _is_tested(self, case: Case) -> bool:
        """Whether a case is a block of the test split, of which digests of whole images tell nothing."""
        tested = [(row["id"], row["region"]) for row in self._about["split"]["test"]] if case.region else []
        return case.region is not None and (case.id, list(case.region)) in tested

    def _shaped(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Maps [..., D, H, W]; without D where they are of a scene or of a single picture."""
        planar = self._trained.built.dataset.format in ("geotiff", "picture") and array.shape[-3] == 1
        return array[..., 0, :, :] if planar else array


class _AsWarnings(Console):
    """Takes what commands print of runs and images, and warns of it."""

    def print(self, *said: Any, **_: Any) -> None:
        _warn(" ".join(map(str, said)))


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)


@contextmanager
def _told() -> Iterator[None]:
    """Makes what the system refuses an error of voxtile's.

    Raises:
        DataError: A file cannot be read or written.
    """
    try:
        yield
    except OSError as error:
        if not error.filename:
            raise
        raise DataError(
            f"{error.filename} cannot be read or written: {error.strerror}. Maps lie where they are saved, the ledger of looks at "
            "test splits where the environment variable VOXTILE_RUNS says, and decoded files where VOXTILE_CACHE does."
        ) from error


def _defaults() -> dict[str, Any]:
    """The settings of `voxtile predict` where nothing is typed."""
    written = OmegaConf.load(folder_of("predict") / "predict.yaml")
    assert isinstance(written, DictConfig)
    found = OmegaConf.to_container(OmegaConf.masked_copy(written, [*OWN, *Settings.__annotations__]), resolve=True)
    assert isinstance(found, dict)
    # A variable may be set, and empty; and the program may go to another folder.
    paths = {name: place and str(Path(place).expanduser().absolute()) for name, place in found["paths"].items()}
    return {str(key): value for key, value in found.items()} | {"paths": paths}
