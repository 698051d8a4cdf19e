"""What the parts of a run are made from."""

from voxtile.commands.assemble import trainer_options


def test_operations_without_a_deterministic_form_are_warned_of_and_used() -> None:
    options = {"accelerator": "cpu", "precision": "32-true"}
    for wanted, given in ((True, "warn"), (False, False)):
        assert trainer_options({**options, "deterministic": wanted}, 1)["deterministic"] == given
