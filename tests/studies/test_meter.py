from pathlib import Path

import pytest

from voxtile.studies.meter import Meter


def counter(folder: Path, name: str, value: int, kind: str = "package-0", largest: int = 999_999_999) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "name").write_text(f"{kind}\n")
    (folder / name / "energy_uj").write_text(f"{value}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{largest}\n")


def test_joules_are_those_of_all_packages_also_where_a_counter_begins_anew(tmp_path: Path) -> None:
    counter(tmp_path, "intel-rapl:0", 1_000_000)
    counter(tmp_path, "intel-rapl:1", 999_000_000)
    for place, kind in (("intel-rapl:0:0", "core"), ("intel-rapl:2", "psys")):  # a part of the first, and all of the machine
        counter(tmp_path, place, 0, kind)
    meter = Meter(tmp_path)
    counter(tmp_path, "intel-rapl:0", 3_500_000)
    counter(tmp_path, "intel-rapl:1", 1_000_000)
    for place, kind in (("intel-rapl:0:0", "core"), ("intel-rapl:2", "psys")):
        counter(tmp_path, place, 9_000_000, kind)
    assert meter.read()["cpu_joules"] == pytest.approx(2.5 + 2.0)


def test_without_counters_there_are_processor_seconds_alone(tmp_path: Path) -> None:
    meter = Meter(tmp_path / "none")
    sum(number * number for number in range(2_000_000))
    found = meter.read()
    assert set(found) == {"cpu_seconds"}
    assert found["cpu_seconds"] > 0
