"""What the shapes of a vector file mean as labels: the settings under `data.vectors`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from voxtile.errors import ConfigError, listed
from voxtile.values import check_switch, is_number, is_whole, refuse_unknown

VECTOR_SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".parquet")
REST = "*"  # as an attribute value: every other one, and none at all
Stored = int | None  # a stored label value; None for what is not to be judged


@dataclass(frozen=True)
class VectorSettings:
    """How shapes become label values. Values are stored ones, which `data.labels` gives a class.

    Attributes:
        layer: the layer of a file that has several.
        crs: coordinate reference system, where the file names none or a wrong one.
        attribute: the attribute that decides a shape's value; every shape is 1 where None.
        values: (attribute value as text, stored value); where empty, the attribute's numbers are the stored values.
        outside: stored value of what no shape covers.
        priority: stored values, the first of which wins where shapes overlap; those not listed come after, see `rank`.
        buffer: metres on the ground by which every shape is grown.
        all_touched: whether every pixel that a shape reaches into belongs to it, instead of those whose centre lies inside.
        border: pixels at most this many pixels (centre to centre) from one of another value are not judged.
        repair: whether invalid polygons are made valid instead of refused.
        empty: whether a file may hold no shape.
    """

    layer: str | None = None
    crs: str | None = None
    attribute: str | None = None
    values: tuple[tuple[str, Stored], ...] = ()
    outside: Stored = 0
    priority: tuple[Stored, ...] = ()
    buffer: float = 0.0
    all_touched: bool = False
    border: float = 0.0
    repair: bool = True
    empty: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> VectorSettings:
        """Builds the settings from plain values, as a configuration holds them; null stands for the default.

        Raises:
            ConfigError: A key is unknown, or a value is of the wrong kind.
        """
        refuse_unknown("data.vectors", given, [field.name for field in fields(cls)])
        parsers = {"values": _values, "outside": _stored, "priority": _priority, "buffer": _length, "border": _length}
        switches = ("all_touched", "repair", "empty")
        parsed: dict[str, Any] = {
            key: parsers.get(key, _switch if key in switches else _text)(key, value)
            for key, value in given.items()
            if value is not None
        }
        if parsed.get("values") and not parsed.get("attribute"):
            raise ConfigError("'data.vectors.values' needs the attribute that they are values of: type 'data.vectors.attribute=…'.")
        return cls(**parsed)

    def check_labels(self, named: Collection[int]) -> None:
        """Refuses stored values that `data.labels`, which maps `named`, does not know.

        Raises:
            ConfigError: A stored value is not in `data.labels`.
        """
        uses = {"outside": [self.outside], "priority": list(self.priority), "values": [stored for _, stored in self.values]}
        for key, used in uses.items():
            for value in used:
                if value is not None and value not in named:
                    other = ", or 'data.vectors.outside=ignore' where it is unknown what lies there" if key == "outside" else ""
                    raise ConfigError(
                        f"'data.vectors.{key}' uses the stored value {value}, which 'data.labels' does not know: it maps "
                        f"{listed(sorted(named))}. Type '+data.labels.{value}=<class>'{other}."
                    )

    def rank(self, stored: Stored) -> tuple[int, float]:
        """Sorts stored values so that the later one wins.

        Those listed in `priority` win over others, of these "ignore" over numbers, and large numbers over small ones.
        """
        if stored in self.priority:
            return 1, -self.priority.index(stored)
        return 0, float("inf") if stored is None else stored


def as_text(value: object) -> str:
    """An attribute value as text: 3 for 3.0, since tables with a gap hold whole numbers as fractions; true for True."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _text(key: str, value: Any) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
        return str(value)
    raise ConfigError(f"'data.vectors.{key}={value}' must be a text, or null.")


def _switch(key: str, value: Any) -> bool:
    check_switch(f"data.vectors.{key}", value)
    return bool(value)


def _length(key: str, value: Any) -> float:
    if is_number(value, 0) and value < 1e7:
        return float(value)
    unit = "metres" if key == "buffer" else "pixels"
    raise ConfigError(f"'data.vectors.{key}={value}' must be a number of {unit}, 0 or more.")


def _stored(key: str, value: Any) -> Stored:
    if value == "ignore":
        return None
    if is_whole(value):
        return value
    raise ConfigError(f"'data.vectors.{key}' holds '{value}'. Expected stored label values: whole numbers, or 'ignore'.")


def _values(key: str, value: Any) -> tuple[tuple[str, Stored], ...]:
    if isinstance(value, str) and value.lstrip().startswith("{"):  # Hydra takes for a text what its grammar has no keys for
        raise ConfigError(
            f"'data.vectors.values={value}' has a key that cannot be typed: keys there are of plain letters, digits and spaces, "
            "without quotes. Write the values into the data set's configuration file, under 'vectors': 'values: {\"Wälder\": 1}'."
        )
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"'data.vectors.values={value}' must give a stored label value for each value of the attribute, for example "
            "{forest: 1, lake: 2}."
        )
    return tuple((as_text(name), _stored(key, stored)) for name, stored in value.items())


def _priority(key: str, value: Any) -> tuple[Stored, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(set(value)) < len(value):
        raise ConfigError(f"'data.vectors.priority={value}' must be a list of different stored label values, for example [2,1].")
    return tuple(_stored(key, stored) for stored in value)
