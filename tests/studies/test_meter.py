import threading
import time
from pathlib import Path

import pytest

from voxtile.studies import meter as module
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


def test_a_counter_that_cannot_be_read_once_is_not_lost(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1"):
        counter(tmp_path, name, 0)
    meter = Meter(tmp_path)
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("busy")
    counter(tmp_path, "intel-rapl:0", 1_000_000)
    meter._add()
    for name in ("intel-rapl:0", "intel-rapl:1"):
        counter(tmp_path, name, 3_000_000)
    assert meter.read()["cpu_joules"] == pytest.approx(3.0 + 3.0)


def test_a_look_under_way_is_waited_for_when_counting_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter(tmp_path, "intel-rapl:0", 0)
    monkeypatch.setattr(module, "OFTEN", 0.0)
    looking, original = threading.Event(), Meter._counters

    def slowly(meter: Meter) -> dict[Path, int]:
        found = original(meter)
        if threading.current_thread().name == "meter" and any(found.values()):
            looking.set()
            time.sleep(0.2)
        return found

    monkeypatch.setattr(Meter, "_counters", slowly)
    meter = Meter(tmp_path)
    counter(tmp_path, "intel-rapl:0", 2_000_000)
    assert looking.wait(10)
    assert meter.read()["cpu_joules"] == 2.0
    assert "meter" not in [thread.name for thread in threading.enumerate()]  # which would add to what was read


def test_without_counters_there_are_processor_seconds_alone(tmp_path: Path) -> None:
    meter = Meter(tmp_path / "none")
    sum(number * number for number in range(2_000_000))
    found = meter.read()
    assert set(found) == {"cpu_seconds"}
    assert found["cpu_seconds"] > 0
