"""Whole cases scored by one run, or by several whose probabilities are averaged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from voxtile.cases.case import Case
from voxtile.cases.window import IGNORE, Window
from voxtile.cases.working import OnWorkingGrid
from voxtile.commands.console import progress
from voxtile.commands.ensemble import predictors_of
from voxtile.commands.measures import Collector, Measure
from voxtile.commands.trained import Trained
from voxtile.data.prepared import Prepared
from voxtile.data.survey import survey
from voxtile.inference.postprocess import Postprocess, class_bands
from voxtile.inference.postprocess_search import KeptMap
from voxtile.inference.predictor import Predictor
from voxtile.inference.rows import Row
from voxtile.inference.together import Sight
from voxtile.scores.confusion import confusion_matrix, summarise
from voxtile.scores.labels import MODULUS, label_sum

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.commands.given_maps import GivenMaps


@dataclass(frozen=True)
class Job:
    """A case that is to be scored.

    Attributes:
        case: the case.
        runs: places of the runs that predict it together.
        columns: further columns of its row in cases.csv.
    """

    case: Case
    runs: tuple[int, ...] = (0,)
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """What was counted on a whole case.

    Attributes:
        case: the case.
        matrix: confusion matrix int64 [K, K]: rows are label classes, columns predicted ones; ignored pixels are left out.
        measured: further columns of its row in cases.csv, of each measure.
        columns: further columns of its row in cases.csv.
        labels: by which its judged labels are known again, see `label_sum`.
    """

    case: Case
    matrix: NDArray[np.int64]
    measured: Sequence[Mapping[str, float]] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: int = 0


class Scorer:
    """Predicts cases as a command's settings say, and counts.

    Args:
        runs: the runs, and the data of each.
        config: of the command.
        measures: what is measured beside confusion matrices.
        post: post-processing of whole maps.
        maps: of another program, which are counted in the place of predictions.
    """

    def __init__(
        self,
        runs: Sequence[tuple[Trained, Prepared]],
        config: Mapping[str, Any],
        measures: Sequence[Measure],
        post: Postprocess | None = None,
        maps: GivenMaps | None = None,
    ) -> None:
        self.runs, self.config, self.measures, self.post, self.maps = runs, config, measures, post, maps
        self.dataset = runs[0][1].dataset
        self._kinds: dict[tuple[int, ...], list[tuple[list[int], Predictor]]] = {}

    def kinds(self, numbers: tuple[int, ...] = (0,)) -> list[tuple[list[int], Predictor]]:
        """What averages the probabilities of each kind of some of the runs, and the numbers of its runs.

        Raises:
            ConfigError: See `predictors_of`.
        """
        if numbers not in self._kinds:
            found = predictors_of([self.runs[number][0] for number in numbers], self.config)
            for _, predictor in found if self.measures else ():
                predictor.widest = None  # objects are counted in bands as wide as their case
            self._kinds[numbers] = [([numbers[place] for place in places], predictor) for places, predictor in found]
        return self._kinds[numbers]

    def bands(self, job: Job, skipped: Collection[Window] = ()) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """The map of a case in bands, but for those that are skipped; see `class_bands`."""
        if self.maps is not None:
            return self.maps.bands(job.case)
        return class_bands([self._sight(job, *kind) for kind in self.kinds(job.runs)], self.post, skipped)

    def _sight(self, job: Job, numbers: Sequence[int], predictor: Predictor) -> Sight:
        """A case as the runs of one kind see it."""
        case, found, own = self._case(job, numbers), None, [self.runs[number][1] for number in numbers]
        if any(prepared.intensity is None and case.id not in prepared.surveys for prepared in own):  # a test case
            found = survey(case, len(self.dataset.classes), label=False)
        return Sight(predictor, case, [prepared.intensity_of(case, found) for prepared in own])

    def _case(self, job: Job, numbers: Sequence[int]) -> Case:
        """A case on the working grid of one kind of runs; it comes on that of its first run."""
        if numbers[0] == job.runs[0]:
            return job.case
        dataset = self.runs[numbers[0]][1].dataset
        return dataset.placed(replace(job.case.native, neighbours=dataset.windowing.neighbours))

    def rows(self, job: Job) -> list[Row]:
        """The rows of windows of a case, in order; where the case may be cut, the bands that they end in partition it."""
        plans = (predictor.plan(self._case(job, numbers)) for numbers, predictor in self.kinds(job.runs))
        return [row for plan in plans for strip in plan for row in strip]

    def may_cut(self, job: Job) -> bool:
        """Whether bands of a case may be counted apart, since nothing looks at its map as a whole."""
        first, *others = self.kinds(job.runs)
        whole = self.measures or self.post or first[1].procedure.crf or others or isinstance(job.case.image, OnWorkingGrid)
        return not whole

    def score(
        self, job: Job, rows: tuple[int, int] | None = None, look: Callable[[], object] = lambda: None
    ) -> Scored:  # fmt: skip
        """Counts a case, on the grid of its file.

        Args:
            job: the case.
            rows: the first of its rows that are counted, and the one after the last; all where None.
            look: is called after each band.
        """
        outside = [] if rows is None else [row.band for n, row in enumerate(self.rows(job)) if not rows[0] <= n < rows[1]]

        def watched() -> Iterator[tuple[Window, NDArray[np.uint8]]]:
            for band in self.bands(job, frozenset(outside)):
                yield band
                look()

        return self._counted(job.case.native, watched(), job.columns, self.measures)

    def kept(self, jobs: Sequence[Job], out: Console, title: str) -> list[KeptMap]:
        """The maps of cases, to be counted several times."""
        maps = []
        with progress(out) as start:
            tick = start(len(jobs), title)
            for job in jobs:
                maps.append(KeptMap.of(job.case.native, self.bands(job)))
                tick()
        return maps

    def score_kept(
        self,
        kept: Sequence[KeptMap],
        posts: Sequence[Postprocess | None],
        columns: Sequence[Mapping[str, str]] | None = None,
        measured: bool = True,
    ) -> list[Scored]:
        """Counts cases whose maps are kept, each with a post-processing of its own, and measures them where asked for."""
        further = columns or [{}] * len(kept)
        measures = self.measures if measured else ()
        return [
            self._counted(each.case, each.bands(post), more, measures)
            for each, post, more in zip(kept, posts, further, strict=True)
        ]

    def _counted(
        self,
        case: Case,
        bands: Iterable[tuple[Window, NDArray[np.uint8]]],
        columns: Mapping[str, str],
        measures: Sequence[Measure],
    ) -> Scored:
        collectors = [measure.collector(case) for measure in measures]
        matrix, labels = _counts(case, bands, len(self.dataset.classes), collectors)
        return Scored(case, matrix, [collector.columns() for collector in collectors], columns, labels)


def _counts(
    case: Case, bands: Iterable[tuple[Window, NDArray[np.uint8]]], classes: int, collectors: Sequence[Collector]
) -> tuple[NDArray[np.int64], int]:
    """The confusion matrix [K, K] of a case, and the sum of its labels, see `Scored`.

    Args:
        case: the case, with a label.
        bands: its map, 255 where there are no data, and where each part lies; in reading order.
        classes: K.
        collectors: are given the same bands.
    """
    total, labels = np.zeros((classes, classes), dtype=np.int64), 0
    for window, prediction in bands:
        label = case.read_label(window)
        label[prediction == IGNORE] = IGNORE
        total += confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(label), classes).numpy()
        for collector in collectors:
            collector.add(window, prediction, label)
        labels += label_sum(label, window)
    return total, labels % MODULUS


def mean_dice(scored: Sequence[Scored], data: Mapping[str, Any]) -> float:
    """The score `dice` of cases."""
    return summarise(np.stack([each.matrix for each in scored]), data["classes"], data["background"], data.get("regions"))["dice"]
