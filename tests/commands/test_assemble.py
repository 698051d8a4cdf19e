"""What the parts of a run are made from."""

import pytest

from voxtile.commands.assemble import check_trainer, trainer_options
from voxtile.errors import ConfigError


def test_operations_without_a_deterministic_form_are_warned_of_and_used() -> None:
    options = {"accelerator": "cpu", "precision": "32-true"}
    for wanted, given in ((True, "warn"), (False, False)):
        assert trainer_options({**options, "deterministic": wanted}, 1)["deterministic"] == given


@pytest.mark.parametrize("devices", [1, 2, "all"])
def test_a_gpu_that_is_asked_for_and_is_not_there_is_said_by_the_word_that_asks(
    devices: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    options = {"accelerator": "gpu", "devices": devices, "strategy": "auto", "precision": "32-true", "sync_batchnorm": False}
    with pytest.raises(ConfigError, match=r"'trainer\.accelerator=gpu' asks for a GPU, and PyTorch finds none here"):
        check_trainer(options)
