"""How the pixels of a scene are read: the settings under `data.scene`, parsed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from voxtile.cases.bands import PRESETS, Derived, Mask
from voxtile.cases.cache import Stamp
from voxtile.errors import ConfigError, DataError, did_you_mean, listed
from voxtile.values import is_number, is_whole, refuse_unknown

RESAMPLINGS = ("bilinear", "cubic", "nearest")
Bounds = tuple[float, float, float, float]
_AREA_VERSION = 2  # of which pixels an area holds: part of the key under which what was read is kept


class MissingBandError(DataError):
    """A scene lacks a band that the configuration names."""


class OutsideAreaError(DataError):
    """A scene does not touch the area of interest."""


@dataclass(frozen=True)
class Scene:
    """The settings.

    Attributes:
        resolution: side of a pixel of the working grid in metres on the ground; that of the first file where None.
        resampling: how a file as coarse as the working grid or coarser is brought onto it, one of `RESAMPLINGS`. A finer one is
            averaged; of masks and labels see `voxtile.cases.finer`.
        scale: see `linear`; by name of band, "" for all.
        offset: likewise.
        decibel: names of bands of linear power that are read as 10 log10 of it.
        derived: channels that are formulas of bands.
        masks: what makes pixels invalid.
        area: a vector file, or (left, bottom, right, top) in degrees of longitude and latitude; left is larger than right where it
            lies across the antimeridian.
    """

    resolution: float | None = None
    resampling: str = "bilinear"
    scale: tuple[tuple[str, float], ...] = ()
    offset: tuple[tuple[str, float], ...] = ()
    decibel: tuple[str, ...] = ()
    derived: tuple[Derived, ...] = ()
    masks: tuple[Mask, ...] = ()
    area: str | Bounds | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> Scene:
        """Parses what the configuration holds.

        Raises:
            ConfigError: A key is unknown or a value wrong.
        """
        given = {key: value for key, value in (settings or {}).items() if value is not None}
        refuse_unknown("data.scene", given, [field.name for field in fields(cls)])
        parsers: Mapping[str, Callable[[Any], Any]] = {
            "resolution": _resolution, "resampling": _resampling, "decibel": _names, "derived": _derived, "masks": _masks,
            "scale": lambda value: _by_band("scale", value), "offset": lambda value: _by_band("offset", value), "area": _area,
        }  # fmt: skip
        return cls(**{key: parsers[key](value) for key, value in given.items()})

    def linear(self, band: str) -> tuple[float, float] | None:
        """(gain, bias) with value = stored * gain + bias, from (stored + offset) * scale; None where nothing is set."""
        scale, offset = (dict(pairs) for pairs in (self.scale, self.offset))
        gain, shift = scale.get(band, scale.get("")), offset.get(band, offset.get(""))
        if gain is None and shift is None:
            return None
        gain = 1.0 if gain is None else gain
        return gain, (shift or 0.0) * gain

    @property
    def key(self) -> str:
        """Text that changes with what is read; "" where nothing is set."""
        if self == Scene():
            return ""
        file = Path(self.area).expanduser() if isinstance(self.area, str) else None
        stamps: list[Stamp] = []
        if file and file.exists():
            from voxtile.cases.vector_files import stamps_of

            stamps = [stamp for _, stamp in stamps_of(file)]
        version = "" if self.area is None else f" {_AREA_VERSION}"
        return f"{self} {stamps or ''}{version}"


def _wrong(key: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"'data.scene.{key}={value}' must be {expected}.")


def _resolution(value: Any) -> float:
    if not is_number(value) or value <= 0:
        raise _wrong("resolution", value, "a number of metres above 0, for example 20")
    return float(value)


def _resampling(value: Any) -> str:
    if value not in RESAMPLINGS:
        raise _wrong("resampling", value, f"one of {listed(RESAMPLINGS)}")
    return str(value)


def _by_band(key: str, value: Any) -> tuple[tuple[str, float], ...]:
    pairs = dict(value) if isinstance(value, Mapping) else {"": value}
    if not pairs or not all(is_number(number) for number in pairs.values()) or (key == "scale" and 0 in pairs.values()):
        what = "a number other than 0" if key == "scale" else "a number"
        raise _wrong(key, value, f"{what}, or one for each band as in {{B04: {'0.0001' if key == 'scale' else '-1000'}}}")
    return tuple((str(band), float(number)) for band, number in pairs.items())


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong("decibel", value, "a list of bands, for example [VV, VH]")
    return tuple(str(name) for name in value)


def _derived(value: Any) -> tuple[Derived, ...]:
    if not isinstance(value, Mapping):
        raise _wrong("derived", value, "formulas by name, for example {ndvi: 'ndvi(B08, B04)'}")
    return tuple(Derived(str(name), str(text)) for name, text in value.items())


def _masks(value: Any) -> tuple[Mask, ...]:
    example = "[{band: SCL, values: [3, 8, 9, 10]}, {band: QA_PIXEL, bits: [3, 4]}, {band: SCL, preset: scl_clouds}]"
    if not isinstance(value, list | tuple) or not all(isinstance(each, Mapping) for each in value):
        raise _wrong("masks", value, f"a list such as {example}")
    return tuple(_mask(each, example) for each in value)


def _mask(each: Mapping[str, Any], example: str) -> Mask:
    if not each.get("band") or len(each) != 2 or not {*each} & {"values", "bits", "preset"}:
        raise _wrong("masks", [dict(each)], f"entries with a band and either values, bits or a preset, as in {example}")
    if "preset" in each:
        if each["preset"] not in PRESETS:
            raise ConfigError(
                f"'data.scene.masks.preset={each['preset']}' must be one of {listed(PRESETS)}."
                f"{did_you_mean(str(each['preset']), PRESETS)}"
            )
        return Mask(str(each["band"]), **PRESETS[each["preset"]])
    kind = "values" if "values" in each else "bits"
    numbers = each[kind]
    whole = isinstance(numbers, Sequence) and bool(numbers) and all(map(is_whole, numbers))
    if not whole or (kind == "bits" and not all(0 <= number < 32 for number in numbers)):
        raise _wrong(f"masks.{kind}", numbers, "a list of whole numbers" + (" from 0 to 31" if kind == "bits" else ""))
    return Mask(str(each["band"]), **{kind: tuple(numbers)})


def _area(value: Any) -> str | Bounds:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and len(value) == 4 and all(is_number(number) for number in value):
        left, bottom, right, top = (float(number) for number in value)
        if -180 <= left <= 180 and -180 <= right <= 180 and left != right and -90 <= bottom < top <= 90:
            return left, bottom, right, top
    raise _wrong(
        "area",
        value,
        "a vector file, or [left, bottom, right, top] in degrees: longitude (-180 to 180) first, then latitude (-90 to 90), twice",
    )
