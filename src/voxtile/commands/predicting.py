"""What `voxtile predict` does with each of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from voxtile.cases.damaged import LEAST, Tolerant
from voxtile.cases.maps import as_indices, discard_finished, discard_probabilities
from voxtile.cases.raster import block_cache
from voxtile.commands.doubts import doubts_of
from voxtile.commands.inputs import UNCERTAINTY
from voxtile.commands.looks import Looks
from voxtile.commands.outputs import Outputs
from voxtile.data.survey import Survey, survey
from voxtile.errors import DataError, VoxtileError, counted, listed, size
from voxtile.inference.budget import check_room, memory_of
from voxtile.inference.native import of_each
from voxtile.inference.postprocess import BYTES_PER_PIXEL, check_size, pixel_size
from voxtile.inference.together import Sight, bands_of, windows_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from voxtile.cases.case import Case
    from voxtile.cases.layouts import CaseFiles
    from voxtile.cases.maps import MapSpec
    from voxtile.commands.ensemble import Ensemble
    from voxtile.inference.areas import Place
    from voxtile.inference.predictor import Band

Start = Callable[[int], Callable[[], object]]  # begins a progress bar of so many steps, and returns what advances it
FEW_WINDOWS = 64  # up to which nothing is said of memory and disk, and no progress is shown within a case


@dataclass(frozen=True)
class Work(Outputs):
    """From an input to its maps, and what is made of them."""

    @cached_property
    def _told(self) -> set[str]:
        return set()

    @cached_property
    def _looks(self) -> Looks:
        return Looks(self.runs, self.config, self.out)

    def check_names(self, inputs: Sequence[CaseFiles]) -> None:
        """Refuses inputs of which one's map would have the name of another one's heatmap or result.

        Raises:
            DataError: There are two.
        """
        by_id = {files.id: files for files in inputs}
        for files in inputs:
            for kind in ("heatmap", UNCERTAINTY, "instances", "quicklook"):
                other = by_id.get(f"{files.id}_{kind}")
                if other and (both := self._written(files) & self._written(other)):
                    raise DataError(
                        f"{min(both)} would be the map of '{other.id}' and of '{files.id}' the {kind}. Rename one of the inputs, "
                        "or predict them one by one into folders of their own."
                    )

    def _written(self, files: CaseFiles) -> set[Path]:
        """The maps and results of an input; none of one that cannot be opened, which is told when its turn comes."""
        try:
            case = self.runs.open_case(files)
            paths = self.named(case, files.id, self.specs(case))
        except (VoxtileError, OSError, UnicodeError):
            return set()
        return {*paths, *self.results.paths(paths[0]).values()}

    def predict(self, files: CaseFiles, start: Start) -> list[Path]:
        """Writes one case's map, its heatmaps where they are asked for, and what is wanted to be made of them.

        Args:
            files: the case's.
            start: begins a progress bar.

        Returns:
            The paths; none where the maps exist and work is shared.

        Raises:
            DataError: The file cannot be read, has not the runs' channels, or a result cannot be written.
            BusyError: Another process is writing the map.
        """
        case = self._opened(self.runs, files)
        stamps = _stamps(case)
        unread = self.specs(case)  # what can be said without the pixels: names, and stamps
        paths = self.paths_of(case, files.id, unread)
        if self.config["share"] and self.is_left(case, paths, self.specs_beside(case, paths[0])):
            return []
        if self.post is not None:
            check_size(case.native)
        places = self.results.check(case.native)
        with block_cache(self.predictor.decoding_threads):
            measured = survey(case, len(self.runs.first.built.dataset.classes), label=False)
            specs = self.specs_beside(case, paths[0], measured.image_digest)
            if self.config["share"] and paths[0].exists() and not self.is_same(paths[0], specs[0]):
                self.pass_over(paths[0])
                return []
            kept = self.are_kept(paths, specs)
            for sentence in doubts_of(self.runs, case, measured, self._told):
                self.out.print(sentence, style="yellow", soft_wrap=True)
            if kept:
                for path, spec in zip(paths, specs, strict=True):
                    discard_finished(path, spec.key)
            if kept and self.config["share"]:  # another process has made them since this one looked
                return self._results(case, paths, places)
            if kept:
                said = "is finished and was made by the same runs with the same settings: it is kept"
                self.out.print(f"{paths[0]} {said}", soft_wrap=True)
                return self._results(case, paths, places)
            self._looks.record(files.id, measured, files)
            sights = self._sights(case, measured, files)
            self._announce(case, sights, specs, paths)
            made = self._write_maps(case, sights, specs, paths, start, stamps)
        if isinstance(case.image, Tolerant) and case.image.lost:
            (first, why), number = min(case.image.lost.items()), len(case.image.lost)
            self.out.print(
                f"{files.id}: {counted(number, 'square')} of {LEAST}x{LEAST} pixels could not be read and are nodata, the "
                f"first at x {first.x}, y {first.y}: {why}", style="yellow", soft_wrap=True,
            )  # fmt: skip
        return made + self._results(case, paths, places) if made else []

    def _opened(self, runs: Ensemble, files: CaseFiles) -> Case:
        case = runs.open_case(files)
        if self.config["damaged"] == "nodata" and not case.image.is_one_piece:
            return replace(case, image=Tolerant(case.image))
        return case

    def _sights(self, case: Case, measured: Survey, files: CaseFiles) -> list[Sight]:
        """A case as each kind of the runs sees it, of which the first one has opened and measured it."""
        sights = [Sight(self.predictor, case, self.runs.kinds[0].intensities(measured))]
        for kind, predictor in zip(self.runs.kinds[1:], self.predictors[1:], strict=True):
            own = self._opened(kind, files)
            by_its_own = any(member.intensity is None for member in kind.members)
            found = survey(own, len(kind.first.built.dataset.classes), label=False) if by_its_own else measured
            sights.append(Sight(predictor, own, kind.intensities(found)))
        return sights

    def _windows(self, sights: Sequence[Sight]) -> int:
        """How many windows the networks judge."""
        return sum(len(row.tiles) for sight in sights for strip in sight.predictor.plan(sight.case) for row in strip)

    def _announce(self, case: Case, sights: Sequence[Sight], specs: Sequence[MapSpec], paths: Sequence[Path]) -> None:
        """Says of a large case what predicting it takes, before it begins.

        Raises:
            DataError: The disk has not so much room.
        """
        if (windows := self._windows(sights)) <= FEW_WINDOWS:
            return
        disk, free = check_room(paths, case.image.native.working.shape, specs)
        memory = memory_of(sights, len(specs[0].classes))
        however = "with a CRF the more the wider the image is" if self.predictor.procedure.crf else "however large the image"
        if self.post is not None:
            memory, however = memory + BYTES_PER_PIXEL * math.prod(case.native.shape), "as post-processing needs for the whole map"
        made = listed(self.results.paths(paths[0]))  # what they take depends on the map, of polygons on each of their corners
        more = f"; what is made of the finished map ({made}) comes on top of both" if made else ""
        self.out.print(
            f"{case.id}: {windows:,} windows; about {memory / 1e6:,.0f} MB of memory, {however}, and up to "
            f"{size(disk)} of disk while it works ({size(free)} are free){more}", soft_wrap=True,
        )  # fmt: skip

    def _write_maps(
        self,
        case: Case,
        sights: Sequence[Sight],
        specs: Sequence[MapSpec],
        paths: Sequence[Path],
        start: Start,
        stamps: Mapping[Path, tuple[int, int, int]],
    ) -> list[Path]:
        with ExitStack() as stack:
            writers = [stack.enter_context(case.open_map(path, spec)) for path, spec in zip(paths, specs, strict=True)]
            if self.config["share"] and all(path.exists() for path in paths):
                # Another process has made them since this one looked.
                for writer in writers:
                    writer.discard()
                return []
            # What a killed command of the same kind has brought to the disk is not computed again.
            parts = windows_of(sights)
            there = set.intersection(*(set(writer.finished) for writer in writers))
            done = there.intersection(parts)
            if there and not done:  # strips are wider beside a GPU
                self.out.print(f"{case.id}: what is there was made on another kind of device, in other parts: it begins anew")
            if done:
                self.out.print(f"{case.id}: continuing, {len(done)} of {counted(len(parts), 'part')} are done")
            tick = start(len(parts) - len(done)) if self._windows(sights) > FEW_WINDOWS else lambda: None

            def store(band: Band) -> None:
                writers[0].write(band.window, band.classes())
                if self.config["heatmaps"]:
                    writers[1].write(band.window, band.probabilities.cpu().numpy())
                if band.variance is not None and self.config["uncertainty"]:
                    writers[-1].write(band.window, band.variance[None].cpu().numpy())

            for _ in of_each(bands_of(sights, done), store, self.predictor.sums):
                tick()
            if changed := [path for path, stamp in _stamps(case).items() if stamp != stamps.get(path)]:
                for writer in writers:
                    writer.discard()
                raise DataError(
                    f"{listed(changed)} changed while it was predicted, so the map would be of what it was and of what it is. No "
                    "map was made; give the same command again once nobody writes there."
                )
            # All are made before the first one has its name: a command that was killed while they are made goes on where it was.
            writers[0].make(None if self.post is None else partial(self._processed, case, specs[0]))
            for writer in writers[1:]:
                writer.make()
            if self.config["overwrite"]:
                self.results.forget(paths[0])
            for other in self.beside(case, case.id, specs[0]):  # of a command that was killed, and wanted more
                if other not in paths:
                    discard_probabilities(other)
            for writer in reversed(writers):  # the first one's lock, which a process that shares the work asks for, goes last
                writer.close()
            return list(paths)

    def _processed(self, case: Case, spec: MapSpec, side: NDArray[Any]) -> NDArray[Any]:
        """A side file [1, D, H, W] post-processed; what is continued after a kill is the side file as it was."""
        assert self.post is not None
        made = np.array(as_indices(side, spec.values))
        self.post.apply(made[0], pixel_size(case.native))
        return spec.encoded(made)

    def _results(self, case: Case, paths: Sequence[Path], places: list[Place]) -> list[Path]:
        heat = paths[1] if self.config["heatmaps"] else None
        say = partial(self.out.print, style="yellow", soft_wrap=True)
        return self.results.write(case.native, paths[0], heat, places, self.confusion, say)


def _stamps(case: Case) -> dict[Path, tuple[int, int, int]]:
    """Which file each of those is that a case is read from, its size, and when its content changed; none of one that is gone.

    One that was deleted meanwhile was still read to its end.
    """
    found = {}
    for path in (*case.image.files, *case.image.beside):
        with suppress(FileNotFoundError):
            status = path.stat()
            found[path] = status.st_ino, status.st_size, status.st_mtime_ns
    return found
