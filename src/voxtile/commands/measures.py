"""What `voxtile evaluate` measures of whole cases beside their confusion matrices: objects, lesions, surfaces."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from voxtile.commands import compose
from voxtile.commands.tables import print_lesions, print_objects, print_surfaces
from voxtile.errors import ConfigError, listed
from voxtile.values import is_number, refuse_unknown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from voxtile.cases.case import Case
    from voxtile.cases.window import Window
    from voxtile.scores.lesions import LesionCounter
    from voxtile.scores.objects import ObjectCounter

TOLERANCE_MM = 1.0  # where the user names none
LEAST_IOU = 0.5  # of matched objects, where the user names none
MEASURES = ("surface", "lesions", "objects")  # as settings and notes are called
LESIONS: Mapping[str, Any] = {"least": 0.0, "overlap": 0.0, "connectivity": 26}
CORNERS = {4: False, 6: False, 8: True, 26: True}  # by connectivity


class Collector(Protocol):
    """Takes the bands of one case, in reading order, and then says what it measured."""

    def add(self, window: Window, prediction: NDArray[np.uint8], label: NDArray[np.uint8]) -> None:
        """Takes the class indices [d, h, w] of a band; the label's are `IGNORE` where nothing is judged."""

    def columns(self) -> dict[str, float]:
        """The columns of `cases.csv`."""


class OfRegions:
    """Shows each region to a collector of its own, as class 1 of a map with nothing else."""

    def __init__(self, regions: Mapping[str, Sequence[int]], make: Callable[[Mapping[int, str]], Collector]) -> None:
        """Makes the collectors.

        Args:
            regions: class indices by name of region.
            make: builds the collector of some classes, names by index.
        """
        import numpy as np

        from voxtile.cases.window import IGNORE

        self._parts: list[tuple[NDArray[np.uint8], Collector]] = []
        for name, members in regions.items():
            table = np.zeros(256, dtype=np.uint8)
            table[list(members)], table[IGNORE] = 1, IGNORE
            self._parts.append((table, make({1: name})))

    def add(self, window: Window, prediction: NDArray[np.uint8], label: NDArray[np.uint8]) -> None:
        """See `Collector.add`."""
        for table, collector in self._parts:
            collector.add(window, table[prediction], table[label])

    def columns(self) -> dict[str, float]:
        """See `Collector.columns`."""
        return {name: value for _, collector in self._parts for name, value in collector.columns().items()}


class Measure(ABC):
    """Scores of one kind, of every case of a split: of its regions where there are some, else of its foreground classes.

    Attributes:
        names: of these.
    """

    def __init__(self, classes: Mapping[int, str], regions: Mapping[str, Sequence[int]]) -> None:
        """Takes what is measured.

        Args:
            classes: names of the foreground classes, by index.
            regions: class indices by name of region.
        """
        self.classes, self.regions = classes, regions
        self.names = list(regions or classes.values())

    def check(self, cases: Sequence[Case]) -> None:  # noqa: B027  # most measures take any case
        """Refuses cases that cannot be measured.

        Raises:
            ConfigError: Their lengths have several units, or one for which no tolerance is known.
        """

    def collector(self, case: Case) -> Collector:
        """What is to be given the bands of a case."""
        if self.regions:
            return OfRegions(self.regions, lambda classes: self.collector_of(case, classes))
        return self.collector_of(case, self.classes)

    @abstractmethod
    def collector_of(self, case: Case, classes: Mapping[int, str]) -> Collector:
        """What is to be given the bands of a case whose map has these classes, names by index."""

    @abstractmethod
    def scores(self, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Scores of the split, by name.

        Args:
            rows: what the collector of each case measured, see `Collector.columns`.
        """

    @abstractmethod
    def note(self) -> dict[str, Any]:
        """What `summary.json` says of the settings."""

    @abstractmethod
    def show(self, out: Console, scores: Mapping[str, float]) -> None:
        """Prints the scores of the split as a table."""


class ObjectMeasure(Measure):
    """Objects that are matched by their IoU."""

    def __init__(self, classes: Mapping[int, str], regions: Mapping[str, Sequence[int]], threshold: float) -> None:
        super().__init__(classes, regions)
        self.threshold, self.connectivity = threshold, 0

    def check(self, cases: Sequence[Case]) -> None:
        """Sees how many neighbours a pixel has in these cases; see `Measure.check`."""
        from voxtile.scores.objects import neighbours

        self.connectivity = max(neighbours(case.shape) for case in cases)  # in a plane 26 are 8

    def collector_of(self, case: Case, classes: Mapping[int, str]) -> ObjectCounter:
        """Counts the objects of a case."""
        from voxtile.scores.objects import ObjectCounter

        return ObjectCounter(case.shape, classes, self.threshold)

    def scores(self, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Pooled over all cases."""
        from voxtile.scores.objects import summarise_objects

        return summarise_objects(rows, self.names)

    def note(self) -> dict[str, Any]:
        """Threshold and connectivity."""
        return {"objects": {"least_iou": self.threshold, "connectivity": self.connectivity}}

    def show(self, out: Console, scores: Mapping[str, float]) -> None:
        """Prints precision, recall, F1 and counts."""
        print_objects(out, self.threshold, scores, self.names)


class LesionMeasure(Measure):
    """Lesions that are found where the prediction overlaps them."""

    def __init__(
        self, classes: Mapping[int, str], regions: Mapping[str, Sequence[int]], least: float, overlap: float, corners: bool
    ) -> None:
        """Takes the settings.

        Args:
            classes: names of the foreground classes, by index.
            regions: class indices by name of region.
            least: volume (in a plane: area) in the unit of the case's spacing; smaller lesions are left out.
            overlap: the share of a lesion that must be predicted for it to be found.
            corners: whether voxels that meet at a corner or edge only are of one lesion.
        """
        super().__init__(classes, regions)
        self.least, self.overlap, self.corners, self.connectivity, self.unit = least, overlap, corners, 0, ""

    def check(self, cases: Sequence[Case]) -> None:
        """Refuses cases of several units; see `Measure.check`."""
        from voxtile.scores.objects import neighbours

        self.unit = _unit(cases, "lesions") + ("3" if any(case.shape[0] > 1 for case in cases) else "2")
        self.connectivity = max(neighbours(case.shape, self.corners) for case in cases)

    def collector_of(self, case: Case, classes: Mapping[int, str]) -> LesionCounter:
        """Counts the lesions of a case."""
        from voxtile.scores.lesions import LesionCounter

        least = self.least / case.grid.cell(planar=case.shape[0] == 1) * (1 - 1e-5)  # headers hold spacings in single precision
        return LesionCounter(case.shape, classes, self.corners, least, self.overlap)

    def scores(self, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means over cases, and counts."""
        from voxtile.scores.lesions import summarise_lesions

        return summarise_lesions(rows, self.names)

    def note(self) -> dict[str, Any]:
        """All settings."""
        names = ("least", "unit", "overlap", "connectivity")
        return {"lesions": {name: getattr(self, name) for name in names}}

    def show(self, out: Console, scores: Mapping[str, float]) -> None:
        """Prints sensitivity, F1 and counts."""
        print_lesions(out, scores, self.names)


class SurfaceMeasure(Measure):
    """Distances between surfaces."""

    def __init__(
        self, classes: Mapping[int, str], regions: Mapping[str, Sequence[int]], tolerances: Mapping[str, float], chosen: bool
    ) -> None:
        """Takes the settings.

        Args:
            classes: names of the foreground classes, by index.
            regions: class indices by name of region.
            tolerances: of `nsd`, by name of class or region.
            chosen: whether the user has named them; nobody can know those of maps that are not in millimetres.
        """
        super().__init__(classes, regions)
        self.tolerances, self.chosen, self.unit = tolerances, chosen, ""

    def check(self, cases: Sequence[Case]) -> None:
        """Refuses cases of several units, or without a tolerance; see `Measure.check`."""
        self.unit = _unit(cases, "surface")
        if self.unit != "mm" and not self.chosen:
            raise ConfigError(
                f"'surface=true' means a tolerance of {TOLERANCE_MM:g} mm, and distances in these data are in {self.unit}. Name "
                f"the tolerance, in {self.unit}: for example 'surface=10'."
            )

    def collector_of(self, case: Case, classes: Mapping[int, str]) -> Collector:
        """Measures the surfaces of a case."""
        from voxtile.scores.surfaces import SurfaceMeter

        return SurfaceMeter(case.shape, classes, case.grid.steps, self.tolerances)

    def scores(self, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means and medians over cases."""
        from voxtile.scores.surfaces import summarise_surfaces

        return summarise_surfaces(rows, self.names)

    def note(self) -> dict[str, Any]:
        """Tolerances, unit, and what a percentile is taken of."""
        from voxtile.scores.surfaces import PERCENTILE

        about = "the larger of the two directed percentiles"
        return {"surface": {"tolerance": dict(self.tolerances), "unit": self.unit, "percentile": PERCENTILE, "hd95": about}}

    def show(self, out: Console, scores: Mapping[str, float]) -> None:
        """Prints means, medians and what was missed."""
        print_surfaces(out, self.unit, self.tolerances, scores)


def measures_of(config: Mapping[str, Any], data: Mapping[str, Any]) -> list[Measure]:
    """What the settings `objects`, `lesions` and `surface` of `evaluate.yaml` ask for.

    Args:
        config: the settings.
        data: the manifest's `classes`, `background` and, of data with regions, `regions`.

    Raises:
        ConfigError: A setting is out of range.
    """
    classes = {index: name for index, name in enumerate(data["classes"]) if index != data["background"]}
    regions = data.get("regions") or {}
    out: list[Measure] = []
    if (threshold := _threshold(config["objects"])) is not None:
        out.append(ObjectMeasure(classes, regions, threshold))
    if (lesions := _lesions(config["lesions"])) is not None:
        out.append(LesionMeasure(classes, regions, lesions["least"], lesions["overlap"], CORNERS[lesions["connectivity"]]))
    if (tolerances := _tolerances(config["surface"], list(regions or classes.values()))) is not None:
        out.append(SurfaceMeasure(classes, regions, tolerances, config["surface"] is not True))
    return out


def measured_with(column: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a column of cases.csv depends on, as a summary.json notes them; none of what is made of the matrices alone.

    Args:
        column: as `nsd/organ`, `object_f1/organ`.
        summary: the summary.json; an older one may lack notes.
    """
    kind, _, name = column.partition("/")
    if kind in ("hd95", "assd", "nsd"):
        note = dict(summary.get("surface") or {})
        tolerances = note.pop("tolerance", {})
        return {**note, "tolerance": tolerances[name]} if kind == "nsd" and name in tolerances else note
    return dict(next((summary.get(each) or {} for each in ("lesions", "objects") if each[:-1] in kind), {}))


def as_typed(name: str, note: Mapping[str, Any]) -> str:
    """The word of the command line that measures again what a note of `summary.json` says was measured.

    Args:
        name: of the measure.
        note: see `Measure.note`.
    """
    value: Any
    if name == "objects":
        value = note["least_iou"] == LEAST_IOU or note["least_iou"]
    elif name == "lesions":
        value = {key: note[key] for key in LESIONS}
    else:
        tolerances = note["tolerance"]
        value = tolerances if len(set(tolerances.values())) > 1 else next(iter(tolerances.values()))
    return shlex.quote(f"{name}={compose.as_typed(value)}")


def _threshold(setting: object) -> float | None:
    """The least IoU of matched objects; None where objects are not scored."""
    if isinstance(setting, bool) or setting is None:
        return LEAST_IOU if setting else None
    if not is_number(setting, 0, 1) or setting == 0:
        raise ConfigError(f"'objects={setting}' must be true, false, or the least IoU of matched objects, above 0 and up to 1.")
    return float(setting)


def _lesions(setting: object) -> Mapping[str, Any] | None:
    """The settings of lesions, complete; None where they are not scored."""
    if isinstance(setting, bool) or setting is None:
        return LESIONS if setting else None
    wanted = "'lesions' must be true, false, or settings such as 'lesions={least: 3, overlap: 0.1, connectivity: 26}'"
    if not isinstance(setting, dict):
        raise ConfigError(f"'lesions={setting}' is no such setting: {wanted}.")
    refuse_unknown("lesions", setting, LESIONS)
    full = {**LESIONS, **setting}
    if not (is_number(full["least"], 0) and is_number(full["overlap"], 0, 1) and full["connectivity"] in CORNERS):
        raise ConfigError(
            f"'lesions={setting}' is out of range: {wanted}. 'least' is a volume in mm³ from 0 up (in planes an area), 'overlap' a "
            "share from 0 to 1, 'connectivity' 26 or 6 (in planes 8 or 4)."
        )
    return full


def _tolerances(setting: object, names: Sequence[str]) -> dict[str, float] | None:
    """The tolerance of each class or region; None where surfaces are not scored."""
    if setting is False or setting is None:
        return None
    if isinstance(setting, dict) and list(setting) == ["tolerance"]:
        setting = setting["tolerance"]
    each: dict[str, Any] = (
        setting if isinstance(setting, dict) else dict.fromkeys(names, TOLERANCE_MM if setting is True else setting)
    )
    if set(each) != set(names) or not all(is_number(value, 0) for value in each.values()):
        raise ConfigError(
            f"'surface={setting}' must be true, false, a tolerance in mm from 0 up (of scenes in metres, of pictures in pixels), "
            f"or one for each foreground class or region, by name: {listed(names)}."
        )
    return {name: float(each[name]) for name in names}


def _unit(cases: Sequence[Case], setting: str) -> str:
    """The unit of length of all cases."""
    units = {case.grid.unit: case for case in cases}
    if len(units) > 1:
        found = listed(f"{unit} ('{case.id}')" for unit, case in units.items())
        raise ConfigError(f"'{setting}' measures lengths, and those of these cases have several units: {found}. Take it out.")
    return next(iter(units))
