"""Networks, losses, augmentations and layouts of the user's own, with and without the mistakes that are made in them."""

from pathlib import Path

import pytest

from tests.commands.conftest import Command, homes
from tests.testers.tiny import scene_words


def own(folder: Path, group: str, name: str, **settings: object) -> list[str]:
    """Writes a configuration that builds a class of `tests.testers.own`, and returns the words that choose and trust it."""
    conf = folder / "conf" / group
    conf.mkdir(parents=True, exist_ok=True)
    lines = [f"_target_: tests.testers.own.{name}", *(f"{key}: {value}" for key, value in settings.items())]
    (conf / "own.yaml").write_text("\n".join(lines) + "\n")
    return [f"{group}=own", "trust=[tests.testers.own]"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [word for word in scene_words(tmp_path) if not word.startswith("model.")]


def test_a_network_that_shares_weights_is_trained_evaluated_and_started_from(
    words: list[str], tmp_path: Path, voxtile: Command
) -> None:
    words += [*own(tmp_path, "model", "Tied"), "training.ema=0.9"]
    assert voxtile("train", *words).code == 0
    (home,) = homes(tmp_path / "runs")
    assert voxtile("evaluate", f"run={home}", words[-2]).code == 0
    said = voxtile("train", *words, f"init_from={home}", "seed=1")
    assert said.code == 0
    assert "starting from" in said.text
    assert "new:" not in said.text
