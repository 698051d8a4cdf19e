"""Looks at test cases by those who predict them, told by what the files hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
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
    """Those of one command: one for each test split, however many of its cases are predicted, by however many runs.

    Attributes:
        runs: by which cases are predicted.
        config: of the command.
        out: where it prints.
    """

    runs: Ensemble
    config: Mapping[str, Any]
    out: Console
    _recorded: set[tuple[Path, str]] = field(default_factory=set)  # test splits, by ledger and fingerprint

    @cached_property
    def _splits(self) -> dict[tuple[Path, str], tuple[list[str], set[str]]]:
        """Of each test split the identities of its runs, and the digests by which its cases are known."""
        found: dict[tuple[Path, str], tuple[list[str], set[str]]] = {}
        for run in self.runs.members:
            data = run.manifest["data"]
            split = run.ledger(self.config).resolve(), data["test_fingerprint"]
            identities, digests = found.setdefault(split, ([], set()))
            identities.append(run.identity)
            digests.update(data["test_files"])
        return found

    def record(self, name: str, measured: Survey, files: CaseFiles | None, tested: bool = False) -> None:
        """Records a look at each test split that a case is of, or is a part of a case of, unless it was recorded before.

        Args:
            name: the case's.
            measured: its survey.
            files: its files; None where it is known by its pixels alone.
            tested: whether it is known to be a test case.
        """
        new = {split: about for split, about in self._splits.items() if split not in self._recorded}
        if not any(digests for _, digests in new.values()):
            return
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
        for (ledger, fingerprint), (identities, digests) in new.items():
            if tested or known_by & digests:
                look = record_look(ledger, fingerprint, "+".join(identities), "predict")
                self._recorded.add((ledger, fingerprint))
                whose = "this run" if len(identities) == 1 else "these runs"
                said = f"{name} is a test case of {whose}, or a part of one: look number {look} at this test split, recorded"
                self.out.print(said, soft_wrap=True)
