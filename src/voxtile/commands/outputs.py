"""Which maps `voxtile predict` writes for a case, what they are made from, and which of them are there already."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile import __version__
from voxtile.cases.atomic import side_file
from voxtile.cases.formats import tags_of
from voxtile.cases.maps import MADE_FROM, VALUES, MapSpec
from voxtile.commands.ensemble import Ensemble
from voxtile.commands.evaluated import confusion_of
from voxtile.commands.inputs import UNCERTAINTY, output_of
from voxtile.commands.postprocess import as_typed
from voxtile.commands.results import HEATMAPS, Results, notes_of
from voxtile.errors import DataError
from voxtile.inference.postprocess import Postprocess
from voxtile.inference.predictor import VERSION, Predictor

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.cases.case import Case

ROUNDED = "float16, rounded"  # earlier versions cut values off, and left bytes of the process's memory in the file
OTHER = "was made of another image, by other runs or weights, or with other settings"
STAMP = "stamp"  # the tag of a map with a digest of all that it was made from but the image's pixels


@dataclass(frozen=True)
class Outputs:
    """The maps of one command's inputs.

    Attributes:
        runs: the run or runs.
        predictors: with their networks, one for each kind of them.
        post: what is done to a map as a whole, or None.
        results: what is wanted to be made of finished maps.
        source: the command's input.
        target: the command's output.
        folder: whether that is a folder, whatever its name.
        config: the command's settings.
        out: where it prints.
    """

    runs: Ensemble
    predictors: Sequence[Predictor]
    post: Postprocess | None
    results: Results
    source: Path
    target: Path
    folder: bool
    config: Mapping[str, Any]
    out: Console

    @property
    def predictor(self) -> Predictor:
        """That of the first kind."""
        return self.predictors[0]

    @cached_property
    def confusion(self) -> dict[str, Any] | None:
        """The confusion matrix that areas are adjusted by, read once for all cases; None where there is none or none is needed."""
        return confusion_of(self.runs, self.config, self.predictor, self.post) if self.results.areas else None

    def specs(self, case: Case, image_digest: str = "", damaged: str = "") -> list[MapSpec]:
        """The maps that are written: the semantic one, and heatmaps and uncertainty where they are asked for.

        Args:
            case: the case.
            image_digest: of its survey; without it, the specs hold what names and stamps depend on, and are not to be written.
            damaged: the setting of this name, the command's where empty.
        """
        dataset, stored = self.runs.first.built.dataset, HEATMAPS[self.config["heatmaps"]]
        said = [("software", f"voxtile {__version__}"), ("run", self.runs.identity), ("weights", self.config["weights"])]
        said += [(VALUES, "stored")] if self.config["values"] == "stored" else []
        damaged = damaged or self.config["damaged"]
        key = self._key(case, image_digest, damaged)

        def tags(further: str = "") -> tuple[tuple[str, str], ...]:
            digests = {MADE_FROM: key, STAMP: self._key(case, "", damaged)}
            made = ((name, hashlib.sha256(each.encode()).hexdigest()[:16]) for name, each in digests.items())
            return (*said, *((name, f"{digest}{further}") for name, digest in made))

        specs = [
            MapSpec(
                dataset.classes, colors=dataset.colors, tags=tags(), key=key, background=dataset.background,
                values=self.results.values,
            )
        ]  # fmt: skip
        if stored:
            specs.append(replace(specs[0], heatmap=True, stored=stored, tags=tags(f" {stored}")))
            if stored == "float16":
                specs[1] = replace(specs[1], tags=tags(f" {ROUNDED}"), key=f"{key} {ROUNDED}")
        if self.config["uncertainty"]:
            specs.append(replace(specs[0], classes=(UNCERTAINTY,), heatmap=True))
        if self.post is not None:  # of the classes only
            done = ("postprocess", json.dumps(as_typed(self.post, dataset.classes), sort_keys=True))
            specs[0] = replace(specs[0], tags=(*specs[0].tags, done))
        return specs

    def specs_beside(self, case: Case, path: Path, image_digest: str = "") -> list[MapSpec]:
        """`specs`, by which a finished map at `path` is known again; of one made with damaged=error those of that command.

        Its file was read whole then, so with damaged=nodata it has the same map.
        """
        if self.config["damaged"] != "error" and not self.config["overwrite"] and path.exists():
            whole = self.specs(case, image_digest, damaged="error")
            tag = MADE_FROM if image_digest else STAMP
            if tags_of(path, self.runs.first.built.dataset.format).get(tag) == dict(whole[0].tags)[tag]:
                return whole
        return self.specs(case, image_digest)

    def _key(self, case: Case, image_digest: str, damaged: str) -> str:
        """What the maps are made from: unfinished ones of another key are not continued."""
        settings = f"{VERSION} {self.predictor.size} {self.config['overlap']} {self.config['precision']} {damaged}"
        weights = self.runs.weights(self.config["weights"])
        # The digest is of the pixels alone, and of a very large scene of a part of them.
        files = [(path.stat().st_size, path.stat().st_mtime_ns) for path in (*case.image.files, *case.image.beside)]
        image = f"{image_digest} {files} {case.image.working.crs} {case.image.working.affine}"
        post = "" if self.post is None else f" {self.post}"
        post += "".join(f" and {other.size} {other.procedure}" for other in self.predictors[1:])
        if self.results.values:
            post += f" stored values {self.results.values}"
        return (
            f"{self.runs.identity} {weights} {settings} {__version__} {image} {self.predictor.procedure}{post}{self._mended(case)}"
        )

    def _mended(self, case: Case) -> str:
        """What earlier versions have made otherwise for such a case and such settings alone, whose maps are others; mostly "".

        What is made otherwise for all is said by the predictor's `VERSION`.
        """
        from voxtile.cases.working import OnWorkingGrid
        from voxtile.commands.results import TILTED, is_tilted

        changed = []
        if self.config["uncertainty"] and isinstance(case.image, OnWorkingGrid):
            changed.append("variance over valid pixels")
        if exchanged := self.predictor.procedure.swapped:
            changed.append(f"mirrors exchange {exchanged}")
        if self.post is not None and self.post.smallest and is_tilted(case.native):
            changed.append(TILTED)
        return "".join(f" {each}" for each in changed)

    def paths_of(self, case: Case, name: str, specs: Sequence[MapSpec]) -> list[Path]:
        """Where the maps go.

        Raises:
            DataError: A map would take the place of an input, or of another file that is not to be replaced.
        """
        paths = self.named(case, name, specs)
        inputs = {each.resolve() for each in (*case.image.files, *self.results.inputs)}
        for path in [*paths, *self.results.paths(paths[0]).values()]:
            if path.resolve() in inputs or path.resolve() == self.source.resolve():
                raise DataError(f"The map {path} would overwrite its own input. Name another output.")
        if not (self.config["overwrite"] or self.config["share"]):
            self._check_free(case, paths)
        if not self.config["heatmaps"] and (stale := self.beside(case, name, specs[0])[0]).exists():
            self.out.print(f"{stale} is of an earlier command; this one writes no heatmaps", soft_wrap=True)
        return paths

    def named(self, case: Case, name: str, specs: Sequence[MapSpec]) -> list[Path]:
        """Where maps of a case of this name go, whatever lies there."""
        return [output_of(case.image, name, spec, self.source, self.target, self.folder) for spec in specs]

    def beside(self, case: Case, name: str, spec: MapSpec) -> list[Path]:
        """Where a case's heatmap and variance go, whether this command writes them or not."""
        heat = replace(spec, heatmap=True)
        return self.named(case, name, [heat, replace(heat, classes=(UNCERTAINTY,))])

    def _check_free(self, case: Case, paths: Sequence[Path]) -> None:
        """Refuses names that are taken, but for those of maps that this command may have made, which `are_kept` looks at.

        Raises:
            DataError: A file is neither such a map, nor a result that a command with the same settings has made of it.
        """
        kind = self.runs.first.built.dataset.format
        for path in paths:
            if path.exists() and MADE_FROM not in tags_of(path, kind):
                raise DataError(f"{path} exists already. Name another output, or type 'overwrite=true' to have it replaced.")
        heatmaps = bool(self.config["heatmaps"])
        if taken := self.results.foreign(case.native, paths[0], heatmaps, self.confusion):
            areas = self.results.paths(paths[0]).get("areas")
            by = self.confusion["source"] if self.confusion and taken == [areas] else None
            if by and self.results.is_unadjusted(case.native, paths[0], heatmaps):
                raise DataError(
                    f"{areas} was made of this map before {by} was there, by which its hectares are to be adjusted now. Type 'rm "
                    f"{shlex.quote(str(areas))}', or move the file away, and give the same command again: the map is kept, and the "
                    "table made anew."
                )
            raise DataError(
                f"{taken[0]} exists already, and {notes_of(paths[0]).name} beside it does not say that it was made of this map "
                f"with these settings{f', adjusted by {by}' if by else ''}. Name another output; move the file away, to have it "
                "made anew of the finished map; or type 'overwrite=true' to have everything predicted and made anew."
            )

    def is_left(self, case: Case, paths: Sequence[Path], specs: Sequence[MapSpec]) -> bool:
        """Whether, where work is shared, nothing is to be done for a case: its files are there, or others, which is said.

        Each of many processes asks this of every case. So the image is not read: maps are compared by their stamps, and those
        without one, of an earlier version, later by what they were made from.
        """
        known = True
        for path, spec in zip(paths, specs, strict=True):
            if not path.exists():
                known = False
                continue
            tags = tags_of(path, self.runs.first.built.dataset.format)
            if MADE_FROM not in tags or tags.get(STAMP, dict(spec.tags)[STAMP]) != dict(spec.tags)[STAMP]:
                self.pass_over(path)
                return True
            known = known and STAMP in tags
        if taken := self.results.foreign(case.native, paths[0], bool(self.config["heatmaps"]), self.confusion):
            self.pass_over(taken[0], "is not noted as made of this map with these settings")
            return True
        known = known and not any(side_file(path).exists() for path in paths)  # left by a process that was killed, or in use
        return known and all(path.exists() for path in self.results.paths(paths[0]).values())

    def is_same(self, path: Path, spec: MapSpec) -> bool:
        """Whether a finished map was made of the same image by the same runs with the same settings."""
        return tags_of(path, self.runs.first.built.dataset.format).get(MADE_FROM) == dict(spec.tags)[MADE_FROM]

    def are_kept(self, paths: Sequence[Path], specs: Sequence[MapSpec]) -> bool:
        """Whether the maps are there as this command would make them, so that nothing is to be predicted.

        Raises:
            DataError: A map is another one, or what is asked for beside it cannot be made of it.
        """
        if self.config["overwrite"]:
            return False
        for path, spec in zip(paths, specs, strict=True):
            if path.exists() and not self.is_same(path, spec):
                raise DataError(
                    f"{path} exists already, and {OTHER}. Name another output, give the settings that it was made with, or "
                    f"{self._replace} to have it replaced."
                )
        if not paths[0].exists():  # the last one that comes under its name: a kill may have left the others
            return False
        if missing := [path for path in paths if not path.exists()]:
            raise DataError(
                f"{paths[0]} is finished, and {missing[0]} is not there: it holds probabilities, which cannot be made of a map of "
                f"classes. Leave 'heatmaps' and 'uncertainty' out, or {self._replace} to have both predicted anew."
            )
        return True

    def pass_over(self, path: Path, why: str = OTHER) -> None:
        """Says that a file is left as it is."""
        self.out.print(f"{path} {why}: it is passed over", style="yellow", soft_wrap=True)

    @property
    def _replace(self) -> str:
        """What to type for files that are to be replaced."""
        return "type 'overwrite=true' in the place of 'share=true'" if self.config["share"] else "type 'overwrite=true'"
