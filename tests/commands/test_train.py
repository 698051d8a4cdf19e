"""voxtile train: what a run leaves, what makes it another run, and what the options do."""

from tests.commands.conftest import Command, Run


def test_first(scene_run: Run, volume_run: Run, voxtile: Command) -> None:
    print(scene_run.said)
    print(sorted(p.relative_to(scene_run.home) for p in scene_run.home.rglob("*")))
    r = voxtile("train", *scene_run.words)
    print(r)
    r = voxtile("train", *scene_run.words, "training.stepz=1")
    print(r)
    r = voxtile("train", *volume_run.words)
    print(r)
    assert 0
