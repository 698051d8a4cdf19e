"""Networks of several kinds that predict one case: by slices and by boxes, on grids of several spacings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from voxtile.cases.case import Case
from voxtile.cases.window import Window
from voxtile.data.normalise import Intensity
from voxtile.inference.native import native_bands, native_windows
from voxtile.inference.predictor import Band, Predictor


@dataclass(frozen=True)
class Sight:
    """A case as the networks of one kind see it.

    Attributes:
        predictor: judges it by these networks.
        case: the case on their working grid.
        intensities: how it is normalised for each of them.
    """

    predictor: Predictor
    case: Case
    intensities: Sequence[Intensity]


def windows_of(sights: Sequence[Sight]) -> list[Window]:
    """The windows of the bands that `bands_of` yields, in order."""
    return native_windows(sights[0].predictor, sights[0].case, by_slices=len(sights) > 1)


def bands_of(sights: Sequence[Sight], done: Collection[Window] = ()) -> Iterator[Band]:
    """Predicts a case and yields finished bands on the grid of its file, the mean over all networks.

    The bands of one kind are its own. Those of several are slices across the axis that all of them share: each kind goes on only
    when the slice of all others is there, so that of none more is held than it needs to make the next slice.

    Args:
        sights: the case as each kind sees it. Where there are several, they share the axis, and none has a CRF.
        done: windows of bands that are not wanted; what only they need is not computed.
    """
    if len(sights) == 1:
        yield from native_bands(sights[0].predictor, sights[0].case, sights[0].intensities, done)
        return
    counts = [len(sight.predictor.judge.networks) for sight in sights]
    between = sights[0].predictor.procedure.disagreement
    with ExitStack() as stack:
        streams = [
            stack.enter_context(closing(native_bands(sight.predictor, sight.case, sight.intensities, done, by_slices=True)))
            for sight in sights
        ]
        for _ in [window for window in windows_of(sights) if window not in done]:
            yield mean_band([next(stream) for stream in streams], counts, between)  # none is held while the next one is made


def mean_band(bands: Sequence[Band], counts: Sequence[int], between: bool) -> Band:
    """The mean of what several kinds of networks say of one part of a case.

    Where resampling leaves a kind without data, the others decide; no pixel is without data that one kind has seen.

    Args:
        bands: of each kind, with one window.
        counts: how many networks each kind has.
        between: whether variance is that between all networks: the mean of the variances within each kind, and the variance
            between the kinds' means (the law of total variance). Else it is that of samples, the mean over networks.
    """
    masks = [torch.from_numpy(band.valid) for band in bands]
    votes = torch.stack([count * mask for count, mask in zip(counts, masks, strict=True)]).float()
    votes = votes / votes.sum(dim=0)  # NaN where nobody sees data, and so is what is made with it
    mean = torch.zeros_like(bands[0].probabilities, device="cpu")
    for band, mask, vote in zip(bands, masks, votes, strict=True):
        mean += _seen(band, mask).mul_(vote)
    variance = None
    if all(band.variance is not None for band in bands):
        variance = torch.zeros(())
        for band, mask, vote in zip(bands, masks, votes, strict=True):
            assert band.variance is not None
            apart = _seen(band, mask).sub_(mean).square_().mean(dim=0) if between else 0.0
            variance = variance + vote * torch.where(mask, band.variance.cpu() + apart, 0.0)
    return Band(bands[0].window, mean, np.logical_or.reduce([band.valid for band in bands]), variance, bands[0].regions)


def _seen(band: Band, mask: Tensor) -> Tensor:
    """A copy of a band's probabilities with 0 where it has no data."""
    return torch.where(mask, band.probabilities.cpu(), 0.0)
