"""Everything known of a data set before training starts: cases, split, surveys, normalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.cache import check_cache_room, content_hash
from voxtile.cases.case import Case
from voxtile.cases.dataset import Dataset
from voxtile.cases.window import Size3
from voxtile.data.blank_labels import blank_labels
from voxtile.data.leakage import find_leaks, gate, single_values
from voxtile.data.normalise import Intensity, Normalisation
from voxtile.data.places import by_place
from voxtile.data.rng import digest
from voxtile.data.sampling import DEFAULT, Sampling
from voxtile.data.shapes import shapes_are_cut
from voxtile.data.splits import Split, SplitScheme, unlike_given
from voxtile.data.survey import Survey, by_threads, fingerprint, foreground_sample, survey_all
from voxtile.data.weight_map import WeightMap, open_weights
from voxtile.errors import ConfigError, DataError, counted, listed, typed

# Shows progress over `total` items: called once with their number and a title, returns what to call after each.
Progress = Callable[[int, str], Callable[[], object]]


DOUBTED = 8  # images that are asked for doubts


def silent(total: int, title: str) -> Callable[[], object]:
    """Progress that shows nothing."""
    return lambda: None


@dataclass(frozen=True)
class Prepared:
    """A data set ready to train on.

    Attributes:
        dataset: layout, format and classes.
        split: which case is where.
        cache: folder that keeps surveys.
        surveys: of the training and validation cases, by id.
        images: digests of all cases' images, test cases too, by id.
        test_files: digests by which a file that a test case is, or is a part of, is known again.
        waived: sentences about leaks that the user has accepted.
        normalisation: how intensities are brought to one scale.
        intensity: what that is for the training set as a whole; None where each case is by itself.
        weight_maps: by id of training cases, where windows are drawn by a raster of weights.
        cut_shapes: whether windows are drawn by shapes of which blocks hold parts.
        thinned: whether that was measured on a part of the sampled pixels, as there are many.
        blank: how many places of the foreground were not measured since they hold no data.
    """

    dataset: Dataset
    split: Split
    cache: Path
    surveys: Mapping[str, Survey]
    images: Mapping[str, str]
    test_files: tuple[str, ...]
    waived: tuple[str, ...]
    normalisation: Normalisation
    intensity: Intensity | None
    weight_maps: Mapping[str, WeightMap] = field(default_factory=dict)
    cut_shapes: bool = False
    thinned: bool = False
    blank: int = 0
    _own: dict[str, Intensity] = field(default_factory=dict, init=False, repr=False, compare=False)  # of cases, see `intensity_of`

    @property
    def fingerprint(self) -> str:
        """Of the training and validation data, and of the rasters of weights where windows are drawn by them."""
        own = fingerprint([*self.split.train, *self.split.val], self.surveys)
        more = [f"{name} {found.digest}" for name, found in self.weight_maps.items()]
        if self.thinned or self._measures_parts:  # at fixed steps once, which came to other numbers
            more.append("spread")
        if self.cut_shapes:  # of which each was in one block at most
            more.append("shapes by block")
        if self.blank:  # which were measured once
            more.append("valid")
        return fingerprint_of([own, *more]) if more else own

    @property
    def _measures_parts(self) -> bool:
        """Whether intensities are measured on the samples of cases of which only a part is in them."""
        cases = self.split.train if self.intensity is not None else (*self.split.train, *self.split.val)
        return self.normalisation.measures_samples and any(self.surveys[case.id].is_thinned for case in cases)

    @property
    def test_fingerprint(self) -> str:
        """Of the test cases' images: under it the ledger keeps who has looked at their scores."""
        return fingerprint_of(self.images[case.id] for case in self.split.test)

    @property
    def channels(self) -> int:
        """Channels that a network sees of every image."""
        return self.split.train[0].inputs

    @property
    def class_counts(self) -> list[int]:
        """Judged pixels per class in the training cases."""
        return [int(n) for n in np.sum([self.surveys[case.id].counts for case in self.split.train], axis=0)]

    @property
    def present_counts(self) -> list[int]:
        """Pixels with data, judged or void, of the training cases in which each class occurs, for median frequency balancing."""
        surveys = [self.surveys[case.id] for case in self.split.train]
        held = [round(found.pixels * found.valid) for found in surveys]  # of very large cases an estimate, as `valid` is
        return [
            sum(n for n, found in zip(held, surveys, strict=True) if found.counts[c] > 0) for c in range(len(self.dataset.classes))
        ]

    def intensity_of(self, case: Case, found: Survey | None = None) -> Intensity:
        """How `case` is normalised: as the training set, or by its own pixels."""
        if self.intensity is not None:
            return self.intensity
        if found is not None:
            return self.normalisation.of_case(found.sample)
        if case.id not in self._own:
            self._own[case.id] = self.normalisation.of_case(self.surveys[case.id].sample)
        return self._own[case.id]

    def intensities_of(self, cases: Sequence[Case]) -> list[Intensity]:
        """How each of `cases` is normalised; those that are by their own pixels are measured by threads."""
        return by_threads(self.intensity_of, cases)


def fingerprint_of(digests: Iterable[str]) -> str:
    """One digest of many, in no order."""
    return f"{digest(sorted(digests)):032x}"


def prepare(
    dataset: Dataset,
    scheme: SplitScheme,
    normalisation: Normalisation,
    cache: Path,
    *,
    waive: Sequence[str] = (),
    limit: int | None = None,
    window: Sequence[int] | None = None,
    sampling: Sampling = DEFAULT,
    anew: bool = False,
    progress: Progress = silent,
    say: Callable[[str], object] | None = None,
    lists: Path | None = None,
    noted: bool = False,
) -> Prepared:
    """Opens, surveys and splits a data set, and stops where the split leaks.

    Args:
        dataset: the data set.
        scheme: decides which case is where.
        normalisation: how intensities are brought to one scale.
        cache: folder that keeps surveys.
        waive: ids of cases whose leaks are accepted.
        limit: most training and most validation cases that are used; None for all.
        window: size of a training window, checked before the cases are read; None where none is drawn.
        sampling: how training windows are drawn.
        anew: whether cases are surveyed again of which the cache holds a survey, by which files are known by their dates.
        progress: shows how far reading has come.
        say: takes sentences for the user: that the data set's own split is not used, and about the disk that decoded data take,
            where that is much.
        lists: folder for lists of cases that are too long to be printed, see `to_type` in `leakage`.
        noted: whether the caller says what is noted of files, which `say` is not told then.

    Raises:
        DataError: A file is wrong, the split is empty or leaks, or a class is absent from training.
        ConfigError: The split or the window does not fit the data.
    """
    cases = by_place(dataset.cases(), dataset.grouping.place)
    classes = len(dataset.classes)
    asked = [*{case.image.paths: case.image for case in cases}.values()][:DOUBTED]  # blocks share theirs
    doubts = (doubt for image in asked for doubt in image.doubts() if not (noted and doubt in image.notes()))
    if say and (doubt := next(doubts, None)):
        say(doubt)
    counts = None
    surveyed: set[Path] | None = set() if anew else None
    if scheme.needs_counts:
        readable = scheme.readable(cases)
        found = survey_all(readable, classes, cache, tick=progress(len(readable), "reading labels"), anew=surveyed)
        first = dataset.background or 0
        counts = {name: [survey.counts[first], *np.delete(survey.counts, first)] for name, survey in found.items()}
    split = scheme(cases, counts)
    if say and (remark := unlike_given(split)):
        say(remark)
    dataset.fix_spacing(split.train)
    train, val, test = (tuple(map(dataset.placed, side)) for side in (split.train, split.val, split.test))
    split = replace(split, train=train, val=val, test=test)
    if limit is not None:
        split = replace(split, train=split.train[:limit], val=split.val[:limit])
    seen = [*split.train, *split.val]
    opened = {source.paths: source for case in (*seen, *split.test) for source in case.sources}  # blocks share theirs
    sentence = check_cache_room(sum(source.decoded_bytes for source in opened.values()))
    if sentence and say:
        say(sentence)
    if window is not None:
        window_size(window, seen)  # of thousands of blocks, before minutes of reading
    tick = progress(len(seen) + len(split.test), "reading data")
    surveys = survey_all(seen, classes, cache, tick=tick, anew=surveyed)
    # The labels of test cases stay closed; their images are looked at for duplicates only.
    locked = survey_all(split.test, classes, cache, label=False, tick=tick, anew=surveyed)
    images = {name: found.image_digest for name, found in (surveys | locked).items()}
    split = _judgeable(split, surveys, dataset.format)
    wholes = copies((*split.train, *split.val, *split.test), classes, cache, progress, surveyed)
    leaks = find_leaks(split, images, wholes)
    known = (*images, *(case.id for case in cases))
    waived = gate(leaks, waive, known, single_values(leaks, split), dataset.exclude, lists)
    intensity, thinned, blank = _intensity(normalisation, split.train, surveys, dataset.background)
    files = known_again(split.test, classes, cache, surveyed)
    maps = open_weights(dataset, sampling.weights, split.train, cases) if sampling.weights else {}
    cut = sampling.by == "polygon" and shapes_are_cut(split.train)
    ready = Prepared(
        dataset, split, cache, surveys=surveys, images=images, test_files=files, waived=tuple(waived), normalisation=normalisation,
        intensity=intensity, weight_maps=maps, cut_shapes=cut, thinned=thinned, blank=blank,
    )  # fmt: skip
    absent = [name for name, count in zip(dataset.classes, ready.class_counts, strict=True) if count == 0]
    if absent and limit is None:  # a few cases for a look need not hold all
        why = _sentences(blank_labels(split.train, surveys, dataset.format))
        raise DataError(
            f"No training case holds a pixel of class {listed(absent, 254)}; a network cannot learn it.{why} "
            f"{'Or split' if why else 'Split'} otherwise (for example 'split.seed=1' or 'split.stratify=true'), or take the class "
            "out of 'data.labels' or map it to 'ignore'."
        )
    return ready


def known_again(cases: Sequence[Case], classes: int, cache: Path, anew: set[Path] | None = None) -> tuple[str, ...]:
    """Digests of the whole images that `cases` are or are cut from and, where they are stacked of slices, of each file.

    For `anew` see `survey_all`.
    """
    whole = _digests(cases, classes, cache, anew=anew)
    slices = [path for paths in whole if len(paths) > 1 for path in paths]
    return tuple(sorted({*whole.values(), *(content_hash(path, cache) for path in slices)}))


def copies(
    cases: Sequence[Case], classes: int, cache: Path, progress: Progress = silent, anew: set[Path] | None = None
) -> dict[tuple[Path, ...], str]:
    """Digests of the whole images that `cases` are or are parts of, by their files, where one is cut and another may be its copy.

    Only of images of which another has the same size and kind: they are read once more for it. For `anew` see `survey_all`.
    """
    alike: dict[tuple[object, ...], dict[tuple[Path, ...], Case]] = {}
    for case in cases:
        kind = case.image.working.shape, case.channels, case.dtype.str
        alike.setdefault(kind, {})[case.image.paths] = case
    cut = {case.image.paths for case in cases if case.region is not None}
    parts = [case for images in alike.values() if len(images) > 1 and cut & images.keys() for case in images.values()]
    return _digests(parts, classes, cache, progress(len(parts), "looking for copies"), anew) if parts else {}


def _digests(
    cases: Sequence[Case], classes: int, cache: Path, tick: Callable[[], object] = lambda: None, anew: set[Path] | None = None
) -> dict[tuple[Path, ...], str]:
    """Digests of the whole images that `cases` are or are cut from, by their files."""
    # A first file may be that of several images, so that it is no name.
    whole = {case.image.paths: replace(case, region=None) for case in cases}
    named = [replace(case, id=str(number)) for number, case in enumerate(whole.values())]
    found = survey_all(named, classes, cache, label=False, tick=tick, anew=anew)
    return {case.image.paths: found[case.id].image_digest for case in named}


def _sentences(remarks: Sequence[str]) -> str:
    """Remarks as sentences that go on in a paragraph."""
    return "".join(f" {remark[0].upper()}{remark[1:]}." for remark in remarks)


def _judgeable(split: Split, surveys: Mapping[str, Survey], format: str) -> Split:
    """The split without blocks that hold no pixel to judge; a whole case without any is an error."""
    sides: dict[str, tuple[Case, ...]] = {"train": split.train, "val": split.val}
    blind = [case for side in sides.values() for case in side if surveys[case.id].judged == 0]
    whole = [case.id for case in blind if case.region is None]
    if whole:
        empty = [name for name in whole if surveys[name].valid == 0]
        why = {
            "no pixel has data in all channels, by nodata, a mask or a formula that is not finite": empty,
            "every label is ignored or no data, or lies where there is no data": [name for name in whole if name not in empty],
        }
        blank = _sentences(blank_labels([case for case in blind if case.id in whole], surveys, format))
        raise DataError(
            f"{counted(len(whole), 'case')} of the training and validation splits hold no pixel that can be judged: "
            f"{'; '.join(f'{listed(names)} ({said})' for said, names in why.items() if names)}.{blank} Leave them out with "
            f"'data.exclude={typed(whole)}'."
        )
    names = {case.id for case in blind}
    kept = {side: tuple(case for case in part if case.id not in names) for side, part in sides.items()}
    bare = [side for side, part in kept.items() if not part]
    if bare:
        raise DataError(
            f"Every block of the {listed(bare)} split is without pixels that can be judged. Cut the scenes otherwise, for example "
            "with 'split.seed=1' or other 'split.blocks'."
        )
    return replace(split, **kept, left_out=(*split.left_out, *sorted(names)))


def _intensity(
    normalisation: Normalisation, cases: Sequence[Case], surveys: Mapping[str, Survey], background: int | None
) -> tuple[Intensity | None, bool, int]:
    """How the training set is normalised as a whole, None where each case is by itself; and `thinned` and `blank` of `Prepared`."""
    if normalisation.per == "case":
        return None, False, 0
    blank, found = 0, [surveys[case.id] for case in cases]
    samples: Iterable[NDArray[Any]]
    if normalisation.foreground:
        if background is None:
            raise ConfigError(
                "'normalise.foreground=true' leaves out the background, and 'data.background' names none. Name it, or type "
                "'normalise=dataset'."
            )
        samples, left_out = zip(
            *(foreground_sample(case, each, background) for case, each in zip(cases, found, strict=True)), strict=True
        )
        blank = sum(left_out)
        sizes = [sample.shape[1] for sample in samples]
        pixels: list[float] = [each.judged - int(each.counts[background]) for each in found]
    else:
        samples = (each.sample for each in found)
        sizes = [each.sampled for each in found]
        pixels = [each.pixels * each.valid for each in found]
    # A sampled pixel stands for as many as its case has for each pixel in the sample.
    weights = [count / max(1, size) for count, size in zip(pixels, sizes, strict=True)]
    every = normalisation.thinning(sizes)
    return normalisation.of_dataset(samples, weights, every), every > 1, blank


def window_size(window: Sequence[int], cases: Sequence[Case]) -> Size3:
    """Checks the training window, [height, width] or [depth, height, width], against the cases.

    Raises:
        ConfigError: It has another number of sides, or is larger than every case by more than rounding up to 32 pixels explains.
    """
    if len(window) not in (2, 3) or min(window) < 1:
        raise ConfigError(
            f"'data.window={list(window)}' must be [height, width] for slices or [depth, height, width] for boxes, in pixels."
        )
    depth, height, width = (1, *window) if len(window) == 2 else tuple(window)
    largest = tuple(max(case.shape[axis] for case in cases) for axis in range(3))
    fitting = tuple(min(side, -(-most // 32) * 32) for side, most in zip((depth, height, width), largest, strict=True))
    if fitting != (depth, height, width):
        larger = ", or have fewer and larger blocks in 'split'" if any(case.region is not None for case in cases) else ""
        raise ConfigError(
            f"'data.window={list(window)}' is larger than every case: the largest sides are {largest} (D, H, W) pixels, so each "
            f"batch would be mostly padding. Expected at most {list(fitting[-len(window) :])}; type "
            f"'data.window=[{','.join(map(str, fitting[-len(window) :]))}]'{larger}."
        )
    return depth, height, width
