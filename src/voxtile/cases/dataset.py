"""A data set: a layout, a format and what the stored label values mean, opened as cases."""

from __future__ import annotations

import gc
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.cases.case import Case, Labels, Source
from voxtile.cases.colors import default_colors
from voxtile.cases.formats import SUFFIXES, open_image, open_label
from voxtile.cases.groups import Grouping
from voxtile.cases.label_colors import color_text, packed, red_green_blue
from voxtile.cases.layouts import CaseFiles, Layout
from voxtile.cases.regions import check_names, regions_of
from voxtile.cases.scene import MissingBandError, OutsideAreaError, Scene
from voxtile.cases.vector_settings import VECTOR_SUFFIXES, VectorSettings
from voxtile.cases.window import IGNORE
from voxtile.cases.windowing import AXES, Windowing
from voxtile.errors import ConfigError, DataError, counted, did_you_mean, listed, typed
from voxtile.values import is_number, is_whole

if TYPE_CHECKING:  # torch takes seconds to import
    from voxtile.cases.working import Kernel


@dataclass(frozen=True)
class LabelMap:
    """Classes in order, and the class index of every stored value.

    Attributes:
        classes: names; the position is the class index.
        values: stored value -> class index, or `IGNORE`.
        colored: whether the values stand for colours, see `voxtile.cases.label_colors`.
    """

    classes: tuple[str, ...]
    values: dict[int, int]
    colored: bool = False

    @property
    def meaning(self) -> dict[int, str]:
        """Class name by stored value, "ignore" for values that are not to be judged."""
        return {value: "ignore" if index == IGNORE else self.classes[index] for value, index in self.values.items()}

    @classmethod
    def of(cls, meaning: Mapping[int, str], classes: Sequence[str] | None = None) -> LabelMap:
        """Builds the map from `{stored value: class name}`; the name "ignore" marks values that are not to be judged.

        Args:
            meaning: class name by stored value, or by colour ('#804080').
            classes: all classes in their order, where values stand for some of them; in the order of the values where None.

        Raises:
            ConfigError: A stored value is no whole number and no colour, or is there twice; there are colours and numbers; there
                are fewer than two classes; or a class name cannot stand in a score's name.
        """
        values = [_stored_value(value, name) for value, name in meaning.items()]
        colored = [packed(value) is not None for value in meaning]
        if any(colored) and not all(colored):
            raise ConfigError(
                f"'data.labels' names colours and numbers ({listed(meaning)}). Expected one or the other; a label of numbers that "
                "has a palette is read by its numbers where these are named."
            )
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            known = color_text(twice[0]) if any(colored) else twice[0]
            change = "write that file, since no colour can be typed" if any(colored) else "type '~data.labels' '+data.labels={…}'"
            raise ConfigError(
                f"'data.labels' names the stored value {known} twice. Expected one class for each value; to change what a "
                f"data set's file says, {change}."
            )
        names = tuple(classes or dict.fromkeys(name for name in meaning.values() if name != "ignore"))
        if len(names) < 2:
            found = f"{len(names)} class{'' if len(names) == 1 else 'es'} ({listed(names)})"
            raise ConfigError(f"'data.labels' names {found}; a segmentation needs two or more.")
        if len(names) > IGNORE:
            raise ConfigError(
                f"'data.labels' names {len(names)} classes; a map holds at most {IGNORE}, since {IGNORE} is 'ignore'."
            )
        check_names(names, "data.labels")
        if blank := [name for name in names if name != name.strip()]:
            raise ConfigError(f"'data.labels' holds a class name that begins or ends with a blank: '{blank[0]}'. Take it out.")
        indices = [IGNORE if name == "ignore" else names.index(name) for name in meaning.values()]
        return cls(names, dict(zip(values, indices, strict=True)), any(colored))

    def color_of(self, index: int) -> tuple[int, int, int] | None:
        """The first colour that stands for a class in labels; None where numbers do."""
        found = (red_green_blue(value) for value, of in self.values.items() if self.colored and of == index)
        return next(found, None)


def _stored_value(value: object, name: object) -> int:
    """The stored value of an entry of `data.labels`; what is typed as a key of its own, '+data.labels.7=roof', is a text."""
    whole = is_whole(value) or (isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value))
    if whole and isinstance(name, str):
        return int(str(value))
    if (color := packed(value)) is not None and isinstance(name, str):
        return color
    key, said = ("null" if each is None else str(each).lower() if isinstance(each, bool) else str(each) for each in (value, name))
    wrong = f"{said} is no text" if whole or color is not None else f"{key} is no whole number and no colour"
    raise ConfigError(
        f"'data.labels' holds '{key}: {said}', and {wrong}. Expected stored value: class name, as in {{0: ground, 1: building}}, "
        'or colour: class name, as in {"#804080": road}; numbers, yes, no, on and off that are names need quotes.'
    )


def _color(name: str, values: Any) -> tuple[int, int, int]:
    numbers = isinstance(values, list | tuple) and len(values) == 3
    if not numbers or not all(is_number(value, 0, 255) for value in values):
        given = list(values) if isinstance(values, tuple) else values
        raise ConfigError(
            f"'data.colors.{name}={given}' is no colour; give red, green and blue from 0 to 255, for example [230,159,0]."
        )
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def _spacing(given: Sequence[float | None] | str | None) -> tuple[float | None, ...] | str | None:
    """Checks `data.spacing`."""
    if given is None or given == "median":
        return given if given is None else "median"
    fit = isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 3
    if not fit or not all(side is None or (is_number(side) and side > 0) for side in given):
        raise ConfigError(
            f"'data.spacing={given}' must be 'median' or three lengths in mm along (z, y, x), null where the file's own is kept, "
            "for example 'data.spacing=[3.0,1.0,1.0]'."
        )
    return tuple(None if side is None else float(side) for side in given if not isinstance(side, str))


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Has Python seldom look for garbage in cycles: among the headers of thousands of files, which stay, it finds none.

    It took a fifth of the time of reporting a finished run on 20,000 pictures. Not meant for where pixels are read: arrays that
    hang in a cycle would pile up.
    """
    before = gc.get_threshold()
    gc.set_threshold(20_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class Dataset:
    """Opens the cases of one data set. `voxtile.commands.build` makes it of a configuration such as those of `conf/data/`."""

    def __init__(
        self,
        name: str,
        format: str,
        layout: Layout | Callable[[], Layout],
        labels: Mapping[int, str],
        background: str | None = None,
        regions: Mapping[str, Sequence[str]] | None = None,
        group: Mapping[str, Any] | None = None,
        channels: Sequence[str] | None = None,
        nodata: float | None = None,
        exclude: Sequence[str] = (),
        colors: Mapping[str, Sequence[int]] | None = None,
        scene: Mapping[str, Any] | None = None,
        vectors: Mapping[str, Any] | None = None,
        spacing: Sequence[float | None] | str | None = None,
        windowing: Windowing = Windowing((1, 1)),  # noqa: B008  # frozen
        classes: Sequence[str] | None = None,
    ) -> None:
        """Remembers the settings; files are opened by `cases`.

        Args:
            name: short name, used for run folders.
            format: "geotiff", "volume" ("nifti" in older configurations), "dicom" or "picture".
            layout: which files make a case.
            labels: class name by stored label value, or by the colour of a label; "ignore" for values that are not to be judged.
            background: the class that is left out of means over foreground classes, or None.
            regions: class names by name of region: unions of classes that scores and the Dice loss are about, see `regions_of`.
            group: how the group follows from the name, see `Grouping`; each case is its own group where None.
            channels: names of the channels used, in order; all where None.
            nodata: overrides the files' nodata value.
            exclude: ids of cases that are left out.
            colors: (red, green, blue) by class name, for maps and pictures.
            scene: how the pixels of scenes are read, see `voxtile.cases.scene.Scene`.
            vectors: what the shapes of labels that are vector files mean, see `VectorSettings`.
            spacing: of the working grid of volumes in mm along (z, y, x) of the patient, None where it stays; "median" for that
                of the training cases, which `fix_spacing` is told; the files' own where None.
            windowing: the axis across which slices lie, and their neighbours.
            classes: all classes in their order, where `labels` names some of them; see `LabelMap.of`.

        Raises:
            ConfigError: A name is unknown, or a setting is for another format.
        """
        format = "volume" if format == "nifti" else format
        if format not in SUFFIXES:
            raise ConfigError(f"'data.format={format}' is unknown; choose from {listed(SUFFIXES)}.{did_you_mean(format, SUFFIXES)}")
        if nodata is not None and format != "geotiff":
            raise ConfigError(f"'data.nodata={nodata:g}' is for 'data.format=geotiff' only; take it out for format '{format}'.")
        if scene and format != "geotiff":
            raise ConfigError(f"'data.scene' is for 'data.format=geotiff' only; take it out for format '{format}'.")
        self.scene = Scene.of(scene)
        self.left_out: list[str] = []  # why scenes outside of the area of interest are no cases
        self.idle: list[str] = []  # settings that do nothing with the files that were found
        self.vectors = VectorSettings.of(vectors or {})
        if self.vectors != VectorSettings() and format != "geotiff":
            raise ConfigError(f"'data.vectors' is for 'data.format=geotiff' only; take it out for format '{format}'.")
        self.windowing, self.spacing = windowing, _spacing(spacing)
        if format == "geotiff" and (self.spacing or windowing.axis != "z" or windowing.neighbours):
            raise ConfigError(
                "'data.spacing', 'data.axis' and 'data.neighbours' are for volumes; take them out for format 'geotiff', whose "
                "pixels are resampled by 'data.scene.resolution'."
            )
        self.name, self.format = name, format
        self.layout = layout if isinstance(layout, Layout) else layout()
        self.label_map = LabelMap.of(labels, classes)
        if self.label_map.colored and format not in ("picture", "geotiff"):
            raise ConfigError(f"'data.labels' names colours, which labels of 'data.format={format}' have not. Name stored values.")
        self.classes = self.label_map.classes
        if background is not None and background not in self.classes:
            raise ConfigError(f"'data.background={background}' is no class; the classes are {listed(self.classes, 30)}.")
        self.background = None if background is None else self.classes.index(background)
        self.regions = regions_of(regions, self.classes, background)
        self.grouping, self._is_grouped = Grouping(**(group or {})), bool(group)
        self.ungrouped: dict[str, Mapping[str, str]] = {}  # what is in the names of cases of whose groups nothing is said
        self.channels, self.nodata, self.exclude = channels, nodata, tuple(exclude)
        if strange := [name for name in colors or {} if name not in self.classes]:
            raise ConfigError(
                f"'data.colors' names '{strange[0]}', which is no class.{did_you_mean(str(strange[0]), self.classes)} The classes "
                f"are {listed(self.classes, 30)}; '~data.colors' takes all colours out."
            )
        default = [self.label_map.color_of(i) or color for i, color in enumerate(default_colors(len(self.classes)))]
        self.colors = tuple(_color(name, (colors or {}).get(name, default[i])) for i, name in enumerate(self.classes))

    @_seldom_collected()
    def cases(self) -> list[Case]:
        """Opens every labelled case (headers only), in the layout's order.

        Raises:
            DataError: A file is missing or odd, two cases share an id, or their channels differ.
        """
        files = self.layout.find()
        if declared := self.layout.declared():
            named = {name: [self.classes[index] for index in members] for name, members in self.regions.items()}
            declared.check(self.label_map.meaning, named)
        excluded, ids = set(self.exclude), {found.id for found in files}
        unknown = [name for name in self.exclude if name not in ids]
        if unknown:
            raise ConfigError(
                f"'data.exclude' names {listed(unknown)}, and no case is called so.{did_you_mean(unknown[0], sorted(ids))}"
            )
        twice = [name for name, count in Counter(f.id for f in files).items() if count > 1]
        if twice:
            raise DataError(
                f"Several cases below {self.layout.root} are called {listed(twice)}: they are listed twice, or their files have "
                "one name. Expected a name of its own for each; FolderLayout makes it by '++data.layout.case=…' of patterns' names."
            )
        cases: list[Case] = []
        self.left_out = []
        self.ungrouped = {} if self._is_grouped else {found.id: found.fields for found in files if not found.group}
        for found in files:
            if found.id in excluded:
                continue
            try:
                cases.append(self.open(found))
            except OutsideAreaError as error:
                self.left_out.append(str(error))
            except MissingBandError as error:
                if not cases:
                    raise
                raise MissingBandError(
                    f"Case '{found.id}': {error} {cases[0].image.path} has {listed(cases[0].image.channels, 20)}. Leave the case "
                    f"out with 'data.exclude={typed([found.id])}', or choose bands that all have."
                ) from error
        if self.left_out and not cases:
            raise DataError(f"No scene touches the area of interest. {self.left_out[0]} Expected one that lies on the scenes.")
        if cases:
            self._check_alike(cases)
        self.idle = list(self._idle(files, cases))
        return cases

    def _idle(self, files: Sequence[CaseFiles], cases: Sequence[Case]) -> Iterator[str]:
        """Settings that do nothing with these files, which the configuration of several data sets may hold on purpose."""
        shapes = any(path.suffix.lower() in VECTOR_SUFFIXES for found in files for path in found.labels)
        if self.vectors != VectorSettings() and not shapes:
            names = [f.name for f in fields(self.vectors) if getattr(self.vectors, f.name) != f.default]
            yield (
                f"'data.vectors' says what the shapes of vector files mean, and all labels are rasters: "
                f"the {counted(len(names), 'setting').partition(' ')[2]} {listed(map(repr, names))} "
                f"{'is' if len(names) == 1 else 'are'} of no effect"
            )
        across, neighbours = AXES.index(self.windowing.axis), self.windowing.neighbours
        if neighbours and all(case.native.shape[across] == 1 for case in cases):
            yield (
                f"'data.neighbours={neighbours}' shows the slices around each one, and every case has one alone: the network sees "
                f"it {1 + 2 * neighbours} times"
            )

    def _check_alike(self, cases: Sequence[Case]) -> None:
        """Raises an error where cases have not the channels that most have."""
        most = Counter(len(case.channels) for case in cases).most_common(1)[0][0]
        usual = [case for case in cases if len(case.channels) == most]
        if odd := [case for case in cases if len(case.channels) != most]:
            shared = [name for name in usual[0].channels if all(name in case.channels for case in cases)]
            short = 0 < len(shared) <= 20  # a longer list nobody types
            choose = f"choose those that all have with 'data.channels={typed(shared)}', or " if short else ""
            lacks, besides = (
                [name for name in these.channels if name not in those.channels]
                for these, those in ((usual[0], odd[0]), (odd[0], usual[0]))
            )
            apart = [f"lacks {listed(lacks)}"] * bool(lacks) + [f"has {listed(besides)} besides"] * bool(besides)
            first = f" The first {' and '.join(apart)}." if apart else ""
            raise DataError(
                f"{odd[0].image.path} has {counted(len(odd[0].channels), 'channel')} ({listed(odd[0].channels, 20)}), and "
                f"{usual[0].image.path} has {most} ({listed(usual[0].channels, 20)}): {len(usual)} of {len(cases)} cases have "
                f"{most}, and {len(odd)} not. All need the same; {choose}leave cases out with "
                f"'data.exclude={typed([*self.exclude, *(case.id for case in odd)])}'.{first}"
            )
        orders = Counter(case.channels for case in cases).most_common()
        usual_order = {frozenset(names): (names, count) for names, count in reversed(orders)}
        for case in cases:
            names, count = usual_order[frozenset(case.channels)]
            if case.channels != names:
                path = next(each.image.path for each in cases if each.channels == names)
                raise DataError(
                    f"{case.image.path} has the channels {listed(case.channels, 20)}, and {path} has them in another order, as "
                    f"have {count} of {len(cases)} cases: {listed(names, 20)}. Say the order with 'data.channels={typed(names)}'."
                )

    def open(self, files: CaseFiles, grouped: bool = True, in_area: bool = True) -> Case:
        """Opens one case.

        Args:
            files: its files.
            grouped: whether the data set's rule for groups applies; a new file is a group of its own.
            in_area: whether the data set's area of interest does: it says what of the data set is used, and of a new file
                everything is wanted.

        Raises:
            DataError: The image or label cannot be read, has not the expected channels, or the two do not fit.
        """
        source: Source | None = None
        if files.sources is not None:
            if self.scene != Scene() or self.vectors != VectorSettings():  # which new files would follow, and these would not
                raise ConfigError(
                    f"'data.scene' and 'data.vectors' say how this package reads scenes, and {type(self.layout).__name__} has "
                    "another library read them. Take the settings out, or describe the folders with 'FolderLayout'."
                )
            if self.label_map.colored:
                raise ConfigError(
                    f"'data.labels' names colours, and {type(self.layout).__name__} has another library read labels, as numbers. "
                    "Name these, or describe the folders with 'FolderLayout'."
                )
            image, source = files.sources(self.nodata)
        else:
            scene = self.scene if in_area else replace(self.scene, area=None)
            image = open_image(self.format, files.images, self.nodata, scene, () if files.channels else self.channels or ())
        if files.channels:
            if len(files.channels) != len(image.channels):
                raise DataError(
                    f"{image.path} has {counted(len(image.channels), 'channel')} ({listed(image.channels, 20)}), and the data set "
                    f"names {len(files.channels)}: {listed(files.channels, 20)}. Expected the same number; see whether all files "
                    f"of case '{files.id}' are there, and whether the data set's description is of these files."
                )
            image.channels = files.channels
        select: tuple[int, ...] = ()
        if self.channels is not None:
            missing = [name for name in self.channels if name not in image.channels]
            # A new file may have names of its own for all of them.
            in_order = not grouped and len(missing) == len(self.channels) == len(image.channels)
            if missing and not in_order:
                raise MissingBandError(
                    f"{image.path} has no channel {listed(missing)}; it has {listed(image.channels, 20)}."
                    f"{did_you_mean(missing[0], image.channels)} The channels are chosen by 'data.channels'."
                )
            if not in_order:
                select = tuple(image.channels.index(name) for name in self.channels)
        labels = None
        if files.labels:
            if len(files.labels) > 1 and self.format != "picture":
                raise DataError(
                    f"Case '{files.id}' has {len(files.labels)} label files: {listed(files.labels)}. Only pictures are stacked as "
                    f"slices; expected one label for format '{self.format}'. Make the ids unique ('++data.layout.case=…')."
                )
            meaning, colored = self.label_map.values, self.label_map.colored
            source = open_label(self.format, files.labels, image, meaning, self.vectors, colored)
        if source is not None:
            if source.working.shape != image.working.shape:
                turned = [*image.notes(), *source.notes()][:1] if self.format == "picture" else []
                raise DataError(
                    f"{source.path} has shape {source.working.shape} (D, H, W) and its image {image.path} "
                    f"{image.working.shape}. A label must have its image's size.{''.join(f' {note}' for note in turned)}"
                )
            labels = Labels(source, self.label_map.values)
        group = self.grouping(files.id, files.fields, files.group) if grouped else files.id
        return self.placed(Case(files.id, group, image, labels, select, split=files.split, neighbours=self.windowing.neighbours))

    def placed(self, case: Case) -> Case:
        """The case on the working grid.

        Raises:
            DataError: The case is a part of another, which was cut on another grid.
        """
        if self.spacing == "median" or (self.spacing is None and self.windowing.axis == "z"):
            return case
        case.check_whole()
        native = case.native
        labels = native.labels and replace(native.labels, source=self._on_grid(native.labels.source, "label"))
        return replace(case, image=self._on_grid(native.image, "cubic"), labels=labels)

    def _on_grid(self, source: Source, kernel: Kernel) -> Source:
        if self.spacing is None and self.windowing.axis == "z":
            return source
        from voxtile.cases.working import OnWorkingGrid

        assert not isinstance(self.spacing, str)  # fixed before the first window is read
        return OnWorkingGrid(source, self.spacing, self.windowing.axis, kernel)

    def fix_spacing(self, training: Sequence[Case]) -> None:
        """Where the spacing is to be the median of the training cases: makes it that, along each axis by itself."""
        if self.spacing == "median":
            z, y, x = (statistics.median(case.native.grid.spacing[axis] for case in training) for axis in range(3))
            self.spacing = (z, y, x)

    def aligned(self, path: Path, case: Case) -> Source:
        """Opens a raster of one channel that weighs a case's pixels, as a label is opened: on its image's grid.

        Raises:
            DataError: It cannot be read, or does not fit the image.
        """
        if path.suffix.lower() in VECTOR_SUFFIXES:
            raise DataError(f"{path} is a vector file. Expected a raster; make one, for example with 'gdal_rasterize'.")
        source = self._on_grid(open_label(self.format, [path], case.image.native, {}, self.vectors), "linear")
        if source.working.shape != case.image.working.shape:
            raise DataError(
                f"{path} has shape {source.working.shape} (D, H, W) and {case.image.path} {case.image.working.shape}. Expected "
                "the image's size."
            )
        return source
