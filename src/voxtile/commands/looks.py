"""Looks at test cases by those who predict them, told by what the files hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.cases.cache import content_hash
from voxtile.cases.scene import OutsideAreaError
from voxtile.data.survey import Survey, survey
from voxtile.errors import DataError
from voxtile.training.ledger import record_look

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.cases.layouts import CaseFiles
    from voxtile.commands.ensemble import Ensemble


@dataclass(frozen=True)
class Looks:
    """Those of one command: one for each run, however many of its test cases are predicted.

    Attributes:
        runs: by which cases are predicted.
        config: of the command.
        out: where it prints.
    """

    runs: Ensemble
    config: Mapping[str, Any]
    out: Console
    _numbers: dict[Path, int] = field(default_factory=dict)  # under which they were recorded, by the run's folder

    def record(self, name: str, measured: Survey, files: CaseFiles | None) -> None:
        """Records a look at the test split of each run of which a case is a test case, or a part of one.

        Args:
            name: the case's.
            measured: its survey.
            files: its files; None where it is known by its pixels alone.
        """
        known_by, dataset = {measured.image_digest}, self.runs.first.built.dataset
        if files and dataset.format == "picture":  # slices of a stack are told by their files
            known_by |= {content_hash(path) for path in files.images}
        if files and dataset.scene.area is not None:  # of which the data set knows a part of each scene
            try:
                part = survey(self.runs.open_case(files, in_area=True), len(dataset.classes), label=False)
                known_by.add(part.image_digest)
            except OutsideAreaError:
                pass
            except DataError as error:  # such as an area whose file is not on this machine
                said = f"{name} could not be compared with the run's test cases, which lie in an area of interest: {error}"
                self.out.print(said, style="yellow", soft_wrap=True)
        for run in self.runs.members:
            data = run.manifest["data"]
            if not known_by & set(data["test_files"]):
                continue
            if (look := self._numbers.get(run.home.path)) is None:
                look = record_look(run.ledger(self.config), data["test_fingerprint"], run.identity, "predict")
                self._numbers[run.home.path] = look
            self.out.print(f"{name} is a test case of this run, or a part of one: look number {look} at this test split, recorded")
