"""What `voxtile predict` makes of a finished map: polygons, objects, areas, a quick-look picture."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.cases.atomic import atomic_text, claimed, discard_half, stable_names
from voxtile.cases.formats import MAP_SUFFIXES, open_map, tags_of, write_id_map
from voxtile.cases.maps import MADE_FROM
from voxtile.cases.regions import structures_of
from voxtile.cases.window import IGNORE
from voxtile.errors import ConfigError, DataError, did_you_mean, listed, reason
from voxtile.values import check_switch, check_whole_number, is_number

if TYPE_CHECKING:
    from voxtile.cases.case import Case
    from voxtile.cases.dataset import Dataset
    from voxtile.inference.areas import Place, Places
    from voxtile.inference.finished import FinishedMap
    from voxtile.inference.instances import Instances

VERSION = 3  # of how results are made of maps: raise it when results of the same map change
TILTED = "voxels of a sheared grid"  # what earlier versions measured otherwise
POLYGONS = ("gpkg", "geojson")
MANY, SPECK = 100_000, 10  # objects, of which the user is told; pixels of one that is hardly meant, in times of 'min_pixels'
HEATMAPS = {False: None, True: "float32", "float16": "float16", "uint8": "uint8"}  # how they are stored


@dataclass(frozen=True)
class Results:
    """The results that a command asks for, checked.

    Attributes:
        dataset: format, class names, background and colours.
        polygons: ending of the vector file, or None.
        simplify: metres, or None.
        instances: whether objects are numbered and listed.
        objects: indices of the classes that have polygons and objects.
        corners: whether pixels that meet at corners only are one object.
        min_pixels: smaller objects and polygons are left out.
        areas: whether hectares are wanted.
        places: vector file with polygons of interest, or None.
        place_name: its attribute that names them, or None.
        place_layer: its layer, where it has several, or None.
        volumes: whether millilitres are wanted.
        quicklook: whether a picture is wanted.
        itksnap: whether names and colours of the classes are wanted as a file of label descriptions.
        rgb: names of the channels shown in the quick-look, or None.
        values: the number that stands for each class in maps; its index where empty.
    """

    dataset: Dataset
    polygons: str | None
    simplify: float | None
    instances: bool
    objects: tuple[int, ...]
    corners: bool
    min_pixels: int
    areas: bool
    places: Path | None
    place_name: str | None
    place_layer: str | None
    volumes: bool
    quicklook: bool
    itksnap: bool
    rgb: tuple[str, ...] | None
    values: tuple[int, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any], dataset: Dataset) -> Results:
        """Takes the settings of `predict.yaml`.

        Raises:
            ConfigError: A setting is out of range, or the data's format has no such result.
        """
        for name in ("instances", "volumes", "quicklook", "itksnap"):
            check_switch(name, config[name])
        polygons, simplify = config["polygons"], config["simplify"]
        if polygons not in (None, *POLYGONS):
            raise ConfigError(f"'polygons={polygons}' is no vector format; choose from {listed(POLYGONS)}, or null for none.")
        if simplify is not None and not (is_number(simplify) and simplify > 0):
            raise ConfigError(f"'simplify={simplify}' must be metres above 0, or null for polygons that follow the pixels.")
        if config["connectivity"] not in (4, 8):
            raise ConfigError(
                f"'connectivity={config['connectivity']}' must be 4 (pixels that share sides; 6 neighbours in a "
                "volume) or 8 (also corners; 26 in a volume)."
            )
        check_whole_number("min_pixels", config["min_pixels"])
        areas = config["areas"]
        wanted = areas not in (None, False, "false")
        places = None if not wanted or areas in (True, "true") else Path(str(areas)).expanduser()
        for name, value in (("polygons", polygons), ("areas", wanted)):
            if value and dataset.format != "geotiff":
                raise ConfigError(
                    f"'{name}={config[name]}' needs scenes on the ground, and the data of this run are of format "
                    f"'{dataset.format}'. Take it out; 'instances=true' numbers and lists the objects of any map."
                )
        if config["volumes"] and dataset.format not in ("volume", "dicom"):
            raise ConfigError(
                f"'volumes=true' lists millilitres, and the data of this run are of format '{dataset.format}'. Take it out; of "
                "scenes 'areas=true' lists hectares."
            )
        if config["itksnap"] and dataset.format not in ("volume", "dicom"):
            raise ConfigError(
                f"'itksnap=true' describes the labels of volumes, and the data of this run are of format '{dataset.format}'. Take "
                "it out; their maps hold names and colours themselves."
            )
        classes = _classes(config["object_classes"], dataset)
        objects = (polygons or config["instances"], "instances=true" + "' or 'polygons=gpkg" * (dataset.format == "geotiff"))
        for name, usual, there, needed in (
            ("simplify", None, polygons, "polygons=gpkg"),
            ("object_classes", None, *objects),
            ("connectivity", 8, *objects),
            ("min_pixels", 1, *objects),
            ("area_name", None, places, "areas=<vector file>"),
            ("areas_layer", None, places, "areas=<vector file>"),
            ("rgb", None, config["quicklook"], "quicklook=true"),
        ):
            if config[name] != usual and not there:
                raise ConfigError(f"'{name}={config[name]}' is of no effect without '{needed}'. Type that too, or take it out.")
        rgb = config["rgb"]
        if rgb is not None and (not isinstance(rgb, list) or len(rgb) not in (1, 3)):
            raise ConfigError(f"'rgb={rgb}' must name three channels, for example 'rgb=[red,green,blue]', or one to show in grey.")
        return cls(
            dataset=dataset, polygons=polygons, simplify=simplify, instances=config["instances"],
            objects=classes, corners=config["connectivity"] == 8,
            min_pixels=config["min_pixels"], areas=wanted, places=places,
            place_name=None if config["area_name"] is None else str(config["area_name"]),
            place_layer=None if config["areas_layer"] is None else str(config["areas_layer"]),
            volumes=config["volumes"], quicklook=config["quicklook"],
            itksnap=config["itksnap"], rgb=None if rgb is None else tuple(map(str, rgb)),
            values=_values(config["values"], dataset),
        )  # fmt: skip

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files of the user's that are read."""
        return () if self.places is None else (self.places,)

    def paths(self, path: Path) -> dict[str, Path]:
        """The file of each result that is wanted, beside the map `path`, by the result's name."""
        wanted = {
            f"polygons.{self.polygons}": True, "instances": self.instances, "table": self.instances, "areas": self.areas,
            "volumes": self.volumes,
            "quicklook": self.quicklook, "itksnap": self.itksnap,
        }  # fmt: skip
        return {kind.partition(".")[0]: file for kind, file in self._files(path).items() if wanted.get(kind)}

    def forget(self, path: Path) -> None:
        """Takes the results of an earlier map away, before another one has its name `path`: they would stand beside it.

        These are files that are noted as results, and what has the name of one that is asked for; others are the user's.
        """
        kept = [file.resolve() for file in self.inputs]
        noted, wanted = _read_notes(path), self.paths(path).values()
        for file in (*self._files(path).values(), notes_of(path)):
            ours = file.name in noted or file in wanted or file == notes_of(path)
            if ours and file.resolve() not in kept:
                file.unlink(missing_ok=True)

    def _files(self, path: Path) -> dict[str, Path]:
        """The file of each result that a map can have."""
        from voxtile.cases.id_maps import id_map_name

        stem = next((path.name[: -len(ending)] for ending in MAP_SUFFIXES if path.name.lower().endswith(ending)), path.name)
        names = {
            **{f"polygons.{kind}": f"{stem}_polygons.{kind}" for kind in POLYGONS},
            "instances": id_map_name(f"{stem}_instances", path), "table": f"{stem}_instances.csv",
            "areas": f"{stem}_areas.csv", "volumes": f"{stem}_volumes.csv",
            "quicklook": f"{stem}_quicklook.png", "itksnap": f"{stem}_itksnap.txt",
        }  # fmt: skip
        return {kind: path.with_name(name) for kind, name in names.items()}

    def check(self, case: Case) -> list[Place]:
        """Refuses, before anything is predicted, what this case cannot have.

        Returns:
            The places of interest on the case.

        Raises:
            DataError: The case has no CRS, none of the places, or not the channels to show.
        """
        if self.rgb and (missing := [name for name in self.rgb if name not in case.channels]):
            raise DataError(
                f"{case.image.path} has no channel {listed(missing)} to show; it has {listed(case.channels, 20)}."
                f"{did_you_mean(missing[0], case.channels)} The channels of the quick-look are chosen by 'rgb'."
            )
        if (self.polygons or self.areas) and case.grid.crs is None:
            raise DataError(
                f"{case.image.path} has no coordinate reference system of a place on Earth, so neither polygons nor hectares can "
                "be made of its map. Write one into it, for example by 'gdal_edit.py -a_srs EPSG:… scene.tif', or take 'polygons' "
                "and 'areas' out."
            )
        return self.interest.on(case.grid) if self.interest else []

    @cached_property
    def interest(self) -> Places | None:
        """The polygons of `places`, read once for all cases.

        Raises:
            DataError: The file cannot be read, or does not hold what the settings say.
        """
        from voxtile.inference.areas import Places

        return None if self.places is None else Places(self.places, self.place_name, self.place_layer)

    def foreign(self, case: Case, path: Path, heatmaps: bool, confusion: Mapping[str, Any] | None) -> list[Path]:
        """Files under the names of results that are not noted as made of this map with these settings.

        Args:
            case: what was predicted, on the grid of its file.
            path: the map; where it is not there, nothing can be of it.
            heatmaps: whether the results are made with heatmaps.
            confusion: see `voxtile.inference.areas.write_areas`.
        """
        there = {kind: file for kind, file in self.paths(path).items() if file.exists()}
        if not there:
            return []
        noted, wanted = _read_notes(path), self._made_from(case, path, heatmaps, confusion)
        return [file for kind, file in there.items() if noted.get(file.name) != wanted[kind]]

    def is_unadjusted(self, case: Case, path: Path, heatmaps: bool) -> bool:
        """Whether the table of areas is noted as made of this map with these settings when there was no evaluation to adjust it by.

        Args:
            case: what was predicted.
            path: the map.
            heatmaps: see `foreign`.
        """
        file = self.paths(path).get("areas")
        return file is not None and _read_notes(path).get(file.name) == self._made_from(case, path, heatmaps, None)["areas"]

    def _made_from(self, case: Case, path: Path, heatmaps: bool, confusion: Mapping[str, Any] | None) -> dict[str, str]:
        """A digest of what each result is made from, by its name: the map, and the settings that change this result."""
        objects = (self.objects, self.min_pixels, heatmaps)
        table = (*objects, self.corners, *([TILTED] if is_tilted(case) else []))
        polygons = (*objects, self.simplify, *(["in pixels"] if self.simplify else []))  # earlier versions made invalid ones
        read = [(file.stat().st_size, file.stat().st_mtime_ns) for file in self.inputs]
        areas = (read, self.place_name, confusion, *([self.place_layer] if self.place_layer else []))
        settings = {
            "polygons": polygons, "instances": (*objects, self.corners), "table": table,
            "areas": areas, "volumes": (), "quicklook": (self.rgb,), "itksnap": (),
        }  # fmt: skip
        made_of = dict(tags_of(path, self.dataset.format))
        return {
            kind: hashlib.sha256(json.dumps([VERSION, made_of, kind, used], sort_keys=True).encode()).hexdigest()[:16]
            for kind, used in settings.items()
        }

    def write(
        self,
        case: Case,
        path: Path,
        heat: Path | None,
        places: Sequence[Place],
        confusion: Mapping[str, Any] | None,
        say: Callable[[str], None],
    ) -> list[Path]:
        """Makes the results of one finished map, but for those that are there.

        Args:
            case: what was predicted.
            path: its map.
            heat: its heatmap, or None.
            places: what `check` returned.
            confusion: see `voxtile.inference.areas.write_areas`.
            say: tells the user a sentence.

        Returns:
            The files that were made.

        Raises:
            DataError: One cannot be written; the map and the results before it are there.
            BusyError: Another process makes them.
        """
        wanted = self.paths(path)
        if not (lacking := [each for each in wanted.values() if not each.exists()]):
            return []
        file = lacking[0]
        try:
            with _noted(path) as note, stable_names(path.parent):
                for each in self._files(path).values():
                    discard_half(each)
                missing = {kind: each for kind, each in wanted.items() if not each.exists()}
                made_from = self._made_from(case, path, heat is not None, confusion)
                makers = self._makers(case, path, heat, places, confusion, say)
                for kind, file in missing.items():
                    note(file.name, made_from[kind])
                    makers[kind](file)
        except OSError as error:
            raise DataError(
                f"{file} could not be written: {reason(error)}. Nothing was left under that name; the map {path} is finished. See "
                "that this user may write to the folder and that there is room, and give the same command again; or name another "
                "output."
            ) from error
        return list(missing.values())

    def _makers(
        self,
        case: Case,
        path: Path,
        heat: Path | None,
        places: Sequence[Place],
        confusion: Mapping[str, Any] | None,
        say: Callable[[str], None],
    ) -> dict[str, Callable[[Path], None]]:
        """What writes each result, by its name."""
        found = self._reopened(path, heat, case)

        @cache
        def objects(corners: bool) -> Instances:
            from voxtile.inference.instances import find_instances

            objects = find_instances(found, self.objects, corners, self.min_pixels)
            if (number := len(objects.index)) > MANY:
                speck = SPECK * self.min_pixels
                say(
                    f"{case.id}: {number:,} objects, which take long to write; {int((objects.pixels < speck).sum()):,} of them "
                    f"have fewer than {speck} pixels, and 'min_pixels={speck}' leaves those out"
                )
            return objects

        def polygons(making: Path) -> None:
            from voxtile.inference.polygons import write_polygons

            write_polygons(found, objects(False), making, self.simplify)

        def instances(making: Path) -> None:
            write_id_map(objects(self.corners).ids(found), found.source, self.dataset.format, making)

        def table(making: Path) -> None:
            from voxtile.inference.instances import write_table

            write_table(objects(self.corners), found, making)

        def areas(making: Path) -> None:
            from voxtile.inference.areas import write_areas

            write_areas(found, making, case.id, places, confusion)

        def volumes(making: Path) -> None:
            from voxtile.inference.volumes import write_volumes

            dataset = self.dataset
            write_volumes(found, making, case.id, structures_of(dataset.classes, dataset.background, dataset.regions))

        def quicklook(making: Path) -> None:
            from voxtile.inference.quicklook import write_quicklook

            write_quicklook(found, case, making, self.dataset.colors, self.rgb, self.dataset.background)

        def itksnap(making: Path) -> None:
            atomic_text(making, label_descriptions(self.dataset, self.values))

        return {
            "polygons": polygons, "instances": instances, "table": table, "areas": areas, "volumes": volumes,
            "quicklook": quicklook, "itksnap": itksnap,
        }  # fmt: skip

    def _reopened(self, path: Path, heat: Path | None, case: Case) -> FinishedMap:
        """The map through a source of its format."""
        from voxtile.inference.finished import FinishedMap

        source, probable = open_map(self.dataset.format, path, heat, case.image)
        return FinishedMap(source, self.dataset.classes, probable, values=self.values)


def _values(asked: Any, dataset: Dataset) -> tuple[int, ...]:
    """The number that stands for each class in maps; none where these are the classes' indices.

    Raises:
        ConfigError: Stored values are asked for, and a class has not exactly one that a map can hold.
    """
    if asked not in ("classes", "stored"):
        raise ConfigError(f"'values={asked}' is unknown; choose from classes, stored.")
    if asked == "classes":
        return ()
    if dataset.label_map.colored:
        raise ConfigError(
            "'values=stored' writes the numbers that labels hold into maps, and these labels hold colours (data.labels). Leave the "
            "setting out: maps hold class indices, and have the colours of the labels as their colour table."
        )
    stored: dict[str, list[int]] = {name: [] for name in dataset.classes}
    for value, name in dataset.label_map.meaning.items():
        stored.get(name, []).append(value)  # not those of "ignore"
    for name, of_class in stored.items():
        if len(of_class) != 1 or not 0 <= of_class[0] < IGNORE:
            has = "no stored value" if not of_class else f"the stored value{'s' * (len(of_class) > 1)} {listed(of_class)}"
            raise ConfigError(
                f"'values=stored' writes the stored value of each class into maps of 8 bits in which {IGNORE} is no data, and "
                f"class '{name}' has {has} (data.labels). Expected one from 0 to {IGNORE - 1} for each class; leave the setting "
                "out for class indices from 0."
            )
    values = tuple(value for (value,) in stored.values())
    return () if values == tuple(range(len(values))) else values


def is_tilted(case: Case) -> bool:
    """Whether a case is a volume whose grid is sheared."""
    return case.grid.unit == "mm" and case.grid.is_sheared


def label_descriptions(dataset: Dataset, values: Sequence[int] = ()) -> str:
    """Names and colours of the classes as ITK-SNAP and 3D Slicer read them; the background is clear.

    Args:
        dataset: its classes.
        values: the number that stands for each of them; its index where empty.
    """
    rows = ["# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"]
    for index, (name, (red, green, blue)) in enumerate(zip(dataset.classes, dataset.colors, strict=True)):
        seen = int(index != dataset.background)
        number = values[index] if values else index
        rows.append(f'{number:5d} {red:5d} {green:4d} {blue:4d} {seen:8d} {seen:2d} {seen:2d}    "{name}"')
    return "\n".join(rows) + "\n"


def notes_of(path: Path) -> Path:
    """The file beside a map in which it is noted, one JSON line each, what its results are made from.

    Not every format of a result has room for that. A line is written before its result is made: what has the result's name
    afterwards is complete, also where the command was killed in between.
    """
    return path.with_name(path.name + ".results")


def _read_notes(path: Path) -> dict[str, str]:
    """What each result of a map is noted to be made from, by its file's name; the last line of a name counts."""
    noted = {}
    try:
        lines = notes_of(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    for line in lines:
        try:
            entry = json.loads(line)
            noted[str(entry["result"])] = str(entry[MADE_FROM])
        except (ValueError, KeyError, TypeError):  # cut off when a command was killed
            continue
    return noted


@contextmanager
def _noted(path: Path) -> Iterator[Callable[[str, str], None]]:
    """What notes a result's file name and what it is made from, while no other process makes results of this map.

    Raises:
        BusyError: Another process makes them.
    """
    side = notes_of(path)
    with claimed(side, path) as file:
        if (before := file.read()) and not before.endswith(b"\n"):
            file.write(b"\n")

        def note(name: str, made_from: str) -> None:
            file.write(json.dumps({"result": name, MADE_FROM: made_from}).encode() + b"\n")
            os.fsync(file.fileno())

        try:
            yield note
        finally:
            if not any(path.with_name(name).exists() for name in _read_notes(path)):
                side.unlink()


def _classes(names: Any, dataset: Dataset) -> tuple[int, ...]:
    """Indices of the classes that have objects; all but the background where none are named."""
    if names is None:
        return tuple(index for index in range(len(dataset.classes)) if index != dataset.background)
    if not isinstance(names, list) or not names:
        raise ConfigError(f"'object_classes={names}' must be a list of classes of {listed(dataset.classes, 30)}, or null.")
    named = {str(name) for name in names}
    if unknown := sorted(named - set(dataset.classes)):
        raise ConfigError(
            f"'object_classes' names {listed(unknown)}; the classes of this run are {listed(dataset.classes, 30)}."
            f"{did_you_mean(unknown[0], dataset.classes)}"
        )
    return tuple(index for index, name in enumerate(dataset.classes) if name in named)
