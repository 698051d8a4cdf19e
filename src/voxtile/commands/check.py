"""voxtile check: everything that can go wrong with a training, looked at before it starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose
from voxtile.errors import counted, listed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

    from voxtile.cases.dataset import Dataset
    from voxtile.cases.window import Size3
    from voxtile.commands.build import Parts
    from voxtile.data.datamodule import VoxtileData
    from voxtile.data.prepared import Prepared
    from voxtile.data.splits import Split
    from voxtile.data.symmetry import Symmetry
    from voxtile.training.module import SegmentationModule

ABOUT = """\
Looks at a training before it starts: names misspelt keys, reads every case, stops where the split leaks, takes three real steps,
estimates time, memory and disk, draws the samples that the network sees, and lists what to look at. It trains nothing, takes the
same words as train, and ends with the command to train.

  voxtile check data=mri                                            the made-up volumes
  voxtile check --config-dir my_conf data=mine split.val=0.2        a data set of your own
  voxtile check model=unet data=satellite training.batch_size=16    does it fit, and how long will it take?"""
MOSTLY = 0.5  # least share of a training window that should lie in the median case
PICTURED = 6  # samples on the sheet
MOST_PIXELS = 1_000_000  # that the table of intensities is made from
STEPS = 3
LOOKED_AT = 10_000  # pixels of a case by which its values are compared with those of others
UNLIKE = 100  # times: values of 8 and of 16 bits differ by 256, reflectance and Sentinel-2's numbers for it by 10,000


def main(argv: Sequence[str]) -> int:
    """Composes the training configuration and checks it; see `voxtile check --help`."""
    return compose.run("train", argv, check, ABOUT)


def check(config: Mapping[str, Any]) -> int:
    """Looks at a training configuration, its data, and one real step."""
    from voxtile.commands.assemble import check_before_data, check_trainer, lists_of, prepare_data
    from voxtile.commands.build import parts
    from voxtile.commands.console import console
    from voxtile.commands.words import command_line
    from voxtile.training.run_folder import clear_halves

    out = console()
    check_trainer(config["trainer"])
    built = parts(config)
    check_before_data(built)
    prepared = prepare_data(built, out, noted=True)
    print_split(out, prepared)
    print_regions(out, prepared.dataset)
    print_distances(out, prepared.split)
    drawn = lists_of(config)
    for folder in (drawn, drawn.parent):
        clear_halves(folder)
    path = draw_map(prepared.split, drawn / "split.png")
    if path is not None:
        out.print(f"the split on the map: {path}", soft_wrap=True)
    print_intensities(out, prepared)
    # What takes a second to import comes after what can be refused without it.
    from voxtile.data.blank_labels import blank_labels
    from voxtile.data.leakage import alike_groups, shared_fields
    from voxtile.data.pixel_sizes import mixed, squeezed

    split = prepared.split

    remarks = built.remarks + shared_fields(split, prepared.dataset.ungrouped)
    remarks += alike_groups(split)
    remarks += look_at_files(prepared) + look_at_values(prepared) + look_at_zeros(prepared)
    remarks += look_at_classes(prepared) + blank_labels([*split.train, *split.val], prepared.surveys, prepared.dataset.format)
    remarks += mixed(split.train, split.val, built.windowing, built.sampling.scales)
    remarks += squeezed(split.train, built.augment.symmetry)
    remarks += look_at_sides(prepared.dataset.classes, built.symmetry)
    remarks += look_at_window(prepared, built.windowing.box)
    remarks += [f"waived: {sentence}" for sentence in prepared.waived]
    remarks += try_a_step(out, config, built, prepared)
    if remarks:
        out.print(f"\n{counted(len(remarks), 'thing')} to look at:", style="bold")
        for remark in remarks:
            out.print(f"  - {remark}", soft_wrap=True)
    out.print(f"\nto train: {command_line()}", soft_wrap=True)
    return 0


def print_split(out: Console, prepared: Prepared) -> None:
    """Cases, groups, pixels and class shares of each side: a column per side, since there may be 150 classes."""
    import numpy as np

    from voxtile.commands.console import table_of

    names = prepared.dataset.classes
    columns = [["cases", "groups", "pixels", "judged", *names]]
    for side, cases in prepared.split.sides.items():
        column = [str(len(cases)), str(len({case.group for case in cases}))]
        if side == "test":
            columns.append([*column, *["locked"] * (2 + len(names))])
            continue
        found = [prepared.surveys[case.id] for case in cases]
        counts = np.sum([survey.counts for survey in found], axis=0)
        pixels, judged = sum(survey.pixels for survey in found), int(counts.sum())
        column += [f"{pixels:,}", f"{100 * judged / max(pixels, 1):.1f} %"]
        columns.append([*column, *(f"{100 * n / max(judged, 1):.2f} %" for n in counts)])
    table = table_of("split", *prepared.split.sides, title=f"data set {prepared.dataset.name}")
    for number, row in enumerate(zip(*columns, strict=True)):
        table.add_row(*row, end_section=number == 3)
    out.print(table)


def print_regions(out: Console, dataset: Dataset) -> None:
    """The regions, and what they are made of."""
    if dataset.regions:
        named = "; ".join(f"{name}: {', '.join(dataset.classes[k] for k in members)}" for name, members in dataset.regions.items())
        out.print(f"regions, which means, maps and the Dice loss are about: {named}", soft_wrap=True, markup=False)


def print_distances(out: Console, split: Split) -> None:
    """How far validation and test are from training, "-" where this is not known."""
    from voxtile.data.distances import split_distances

    names = {"val": "validation", "test": "test"}
    found = "; ".join(f"{names[side]} {length or '-'}" for side, length in split_distances(split).items())
    out.print(f"distance to training: {found}", soft_wrap=True, markup=False)


def draw_map(split: Split, path: Path) -> Path | None:
    """Draws where the sides of the split lie; None where no case has a place on Earth."""
    from voxtile.training.pictures import save
    from voxtile.training.split_picture import draw_split

    picture = draw_split(split)
    return None if picture is None else save(picture, path)


def print_intensities(out: Console, prepared: Prepared) -> None:
    """What each channel's values look like in the training cases."""
    import numpy as np

    from voxtile.commands.console import table_of
    from voxtile.data.rng import one_of_each

    found = [prepared.surveys[case.id] for case in prepared.split.train]
    every = 1 + sum(each.sampled for each in found) // MOST_PIXELS
    parts = [each.sample[:, one_of_each(every, each.sampled, number)] for number, each in enumerate(found)]
    samples = np.concatenate(parts, axis=1).astype(np.float64)
    table = table_of("channel", "0.5 %", "median", "99.5 %", "mean", "std", title="intensities of the training cases")
    for name, values in zip(prepared.split.train[0].channels, samples, strict=True):
        low, middle, high = np.percentile(values, (0.5, 50, 99.5))
        table.add_row(name, *(f"{value:.5g}" for value in (low, middle, high, values.mean(), values.std())))
    out.print(table)


def look_at_files(prepared: Prepared) -> list[str]:
    """What is odd about single files, and about pairs of cases."""
    from voxtile.data.leakage import distinct_values, suspicions
    from voxtile.data.survey import MOST_IMAGE_BLOCKS, blocks

    split = prepared.split
    cases = [*split.train, *split.val]
    notes = told_once([(str(source.path), note) for case in cases for source in case.sources for note in source.notes()])
    somewhere = {case.image.path: case.image.working.crs is not None for case in cases}
    if nowhere := [path for path, placed in somewhere.items() if not placed and any(somewhere.values())]:
        notes.append(
            f"{counted(len(nowhere), 'image')} without a place on Earth among {len(somewhere)}, of which the others have one: "
            f"{listed(nowhere, 3)}"
        )
    notes += [
        f"{case.image.path} is so large that {MOST_IMAGE_BLOCKS} of its {number} blocks were looked at, and "
        f"{100 * (1 - valid):.0f} % of their pixels hold no data: in the other blocks such pixels count as their label says, "
        "in the shares of classes and where windows are drawn; label them as ignored, or type 'data.sampling.max_nodata=0.5'"
        for case in cases
        if (number := len(list(blocks(case.shape)))) > MOST_IMAGE_BLOCKS and (valid := prepared.surveys[case.id].valid) < 1
    ]
    notes += [
        f"{case.image.path} has{'' if case.image.native is case.image else ', on the grid that networks see,'} "
        f"{counted(round(found.pixels * (1 - found.valid)), 'voxel')} of {found.pixels:,} with NaN or infinity in a channel: they "
        "hold no data, and are in no loss and no score"
        for case in cases
        if case.grid.unit == "mm" and (found := prepared.surveys[case.id]).valid < 1
    ]
    alike: dict[str, list[bool]] = {}  # whether all values of a channel are one
    distinct = {}
    for case in cases:
        sample = prepared.surveys[case.id].sample
        alike[case.id], distinct[case.id] = [*map(_is_flat, sample)], distinct_values(sample)
    uncut = [case.id for case in cases if case.region is None]
    flat: dict[tuple[str, ...], list[str]] = {}  # channels of which all values are one, by the cases where they are
    for number, channel in enumerate(cases[0].channels):
        flat.setdefault(tuple(name for name in uncut if alike[name][number]), []).append(f"'{channel}'")
    notes += [
        f"all values of channel{'' if len(channels) == 1 else 's'} {listed(channels)} that were looked at are one in "
        f"{counted(len(names), 'case')}: {listed(names)}; where an export went wrong, make the file anew, or leave "
        + ("the channel out with 'data.channels=[…]'" if names == tuple(uncut) else "the case out with 'data.exclude=[…]'")
        for names, channels in flat.items()
        if names
    ]
    kinds = sorted({str(case.dtype) for case in cases})
    if len(kinds) > 1:
        volumes = cases[0].grid.unit == "mm"
        remedy = "write these files in one type" if volumes else "bring them together with 'data.scene.scale'"
        odd = {kind: next(case.image.path for case in cases if str(case.dtype) == kind) for kind in kinds}
        notes.append(
            f"cases hold numbers of several types ({', '.join(f'{kind}: {path}' for kind, path in odd.items())}): batches take the "
            f"widest; see that their values mean the same, or {remedy}"
        )
    return sorted(set(notes)) + list(suspicions(cases, distinct))


def told_once(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Remarks on single files, each with the file's name; of those that say the same of several files the first."""
    alike: dict[str, dict[str, str]] = {}  # by what they say, the remark by file
    for path, note in notes:
        alike.setdefault(note.replace(path, "…"), {}).setdefault(path, note)
    told = []
    for same in alike.values():
        first, *others = same
        more = f" So it is with {counted(len(others), 'other file')}: {listed(others, 3)}." if others else ""
        told.append(same[first] + more)
    return told


def _is_flat(values: NDArray[Any]) -> bool:
    """Whether all values of a sample are one."""
    return len(values) > 1 and bool(values.min() == values.max())


def look_at_window(prepared: Prepared, size: Size3) -> list[str]:
    """Training windows most of which lies outside the cases."""
    import numpy as np

    shapes = np.array([case.shape for case in prepared.split.train])
    share = float(np.median(np.minimum(shapes, size).prod(axis=1) / np.prod(size)))
    if share > MOSTLY:
        return []
    middle = "x".join(str(round(side)) for side in np.median(shapes, axis=0))
    return [
        f"{100 * (1 - share):.0f} % of a training window lies outside the median case, of {middle} (D, H, W) pixels: much work for "
        "nothing, and few pixels to learn from; type a smaller 'data.window'"
    ]


def look_at_values(prepared: Prepared) -> list[str]:
    """Cases whose values are of another order of magnitude than those of the others, where all are normalised as one."""
    import numpy as np

    if prepared.intensity is None:
        return []
    cases = [*prepared.split.train, *prepared.split.val]
    samples = (prepared.surveys[case.id].sample for case in cases)
    few = (abs(sample[:, :: 1 + sample.shape[1] // LOOKED_AT].astype(np.float64)) for sample in samples)
    sizes = np.array([np.percentile(values, 99.5, axis=1) for values in few])  # [cases, channels]
    # A case that holds nothing but 0 in a channel has no magnitude there.
    known = np.where(sizes > 0, sizes, np.nan)
    remarks = []
    formulas = [derived.name for derived in prepared.dataset.scene.derived]
    for name, column in zip(cases[0].channels, known.T, strict=True):
        if not np.isfinite(column).any() or name in formulas:  # an index has no unit
            continue
        usual = float(np.nanpercentile(column, 50, method="lower"))
        for unlike, word in ((column * UNLIKE <= usual, "smaller"), (column >= usual * UNLIKE, "larger")):
            if not unlike.any():
                continue
            paths = dict.fromkeys(case.image.path for case, odd in zip(cases, unlike, strict=True) if odd)
            there = float(np.median(column[unlike]))
            times = float(f"{max(there / usual, usual / there):.2g}")
            remarks.append(
                f"values of channel '{name}' are about {times:,.0f} times {word} in {listed(paths, 4)} than in the other cases "
                f"(99.5 % of them are below {there:.3g}, elsewhere below {usual:.3g}): they seem to be in another unit. Write "
                "these files in the unit of the others, for example with 'gdal_calc.py', or leave them out with 'data.exclude=[…]'"
            )
    return remarks


def look_at_zeros(prepared: Prepared) -> list[str]:
    """Cases of which a mask left much at 0, where each is normalised by all of its pixels."""
    import numpy as np

    from voxtile.data.planning import MASKED

    if prepared.intensity is not None or prepared.normalisation.nonzero:
        return []
    samples = (prepared.surveys[case.id].sample for case in prepared.split.train)
    zero = float(np.median([(sample == 0).all(axis=0).mean() for sample in samples]))
    if zero < MASKED:
        return []
    return [
        f"{zero:.0%} of the pixels of the median training case are 0 in every channel, and count in what each case is normalised "
        "by: where a mask was applied, as to brains, type 'normalise=case_nonzero'"
    ]


def look_at_sides(classes: Sequence[str], symmetry: Symmetry) -> list[str]:
    """Classes that are a left and a right structure by their names, and do not change places where images are mirrored."""
    right, plain = {"left": "right", "l": "r", "lh": "rh"}, [name.lower() for name in classes]
    remarks = []
    for number, name in enumerate(plain):
        other = re.sub(r"(?<![a-z])(left|lh?)(?![a-z])", lambda found: right[found[1]], name)
        pair = {number, plain.index(other)} if other in plain else {number}
        if len(pair) == 2 and symmetry.flips and not any(pair == {*each} for pairs in symmetry.swap.values() for each in pairs):
            one, two = (classes[index] for index in sorted(pair))
            remarks.append(
                f"samples are mirrored, and '{one}' and '{two}' do not change places then: where they are a left and a right "
                f"structure, type 'data.symmetry.swap.x=[[{one},{two}]]'"
            )
    return remarks


def look_at_classes(prepared: Prepared) -> list[str]:
    """Classes that are rare, or absent from validation or from whole cases."""
    import numpy as np

    names = prepared.dataset.classes
    counts = prepared.class_counts
    remarks = [
        f"class '{name}' is {100 * count / sum(counts):.3f} % of the training pixels: 'data.balance=0.5' draws windows with it "
        "more often"
        for name, count in zip(names, counts, strict=True)
        if count < 0.005 * sum(counts)
    ]
    for index, name in enumerate(names):
        if not any(prepared.surveys[case.id].counts[index] for case in prepared.split.val):
            remarks.append(
                f"class '{name}' occurs in no validation case: its score is undefined; split otherwise, for example "
                "'split.stratify=true'"
            )
    first = prepared.dataset.background
    bare = [
        case.id
        for case in prepared.split.train
        if first is not None and not np.delete(prepared.surveys[case.id].counts, first).any()
    ]
    if bare:
        remarks.append(
            f"{counted(len(bare), 'training case')} without any foreground: {listed(bare)}; where this is not what was seen, "
            "the label is empty there"
        )
    empty = [case.id for case in prepared.split.train if prepared.surveys[case.id].valid < 0.5]
    if empty:
        remarks.append(f"{counted(len(empty), 'training case')} more than half without data: {listed(empty)}")
    return remarks


def try_a_step(out: Console, config: Mapping[str, Any], built: Parts, prepared: Prepared) -> list[str]:
    """Takes a few steps of the training and a batch of its validation, times them, and says what the whole will cost.

    Returns:
        What is to be said of the network with these settings.
    """
    import torch

    from voxtile.commands.assemble import check_fit, make_data, make_module, trainer_options, world_of
    from voxtile.studies.meter import peak_memory
    from voxtile.training.trainer import StepTimes, bare_trainer

    module = make_module(built, prepared)
    data = make_data(built, prepared, module.network, lambda: range(STEPS))
    check_fit(module, built, prepared, world_of(config["trainer"]))
    times = StepTimes()
    options = trainer_options({**config["trainer"], "profiler": None}, 1)
    with bare_trainer([times], max_epochs=1, limit_val_batches=2, logger=False, **options) as trainer:
        trainer.fit(module, datamodule=data)
    settings = built.settings
    step, validation = times.step, times.validation_batch * len(list(data.val_dataloader().items()))
    total = settings.steps * step + -(-settings.steps // settings.val_every) * validation
    weights = sum(p.numel() * p.element_size() for p in module.network.parameters())
    state = sum(
        v.numel() * v.element_size() for s in trainer.optimizers[0].state.values() for v in s.values() if torch.is_tensor(v)
    )
    kept = 2 + (settings.ema is not None)
    out.print(
        f"one step {step:.2f} s, one validation {validation:.1f} s: {counted(settings.steps, 'step')} take about "
        f"{f'{total / 60:.1f} minutes' if total >= 60 else f'{total:.0f} s'} here\n"
        f"memory {peak_memory():.1f} GiB; disk {(weights * (kept + 1) + state) / 2**20:.0f} MiB, of which "
        f"{(weights * (kept - 1) + state) / 2**20:.0f} MiB (the resume state) go when the run is finished",
    )  # fmt: skip
    path = draw_samples(
        module.cpu(), data, prepared, Path(config["paths"]["runs"]).expanduser() / "check" / f"{prepared.dataset.name}.png"
    )
    out.print(f"samples as the network sees them: {path}", soft_wrap=True)
    return module.remarks


def draw_samples(module: SegmentationModule, data: VoxtileData, prepared: Prepared, path: Path) -> Path:
    """Draws the first training samples, augmented and normalised, each beside its label."""
    from voxtile.training import pictures

    batch = next(iter(data.train_dataloader()))
    image, label = module.inputs(batch, augment=True)
    image = module.inner(image)
    neighbours = prepared.split.train[0].neighbours
    rows = []
    for index in range(min(PICTURED, len(image))):
        pixels, classes = image[index].numpy(), label[index].numpy()
        case = prepared.split.train[int(batch["case"][index])]
        pixels = pixels[neighbours :: 1 + 2 * neighbours]
        if pixels.ndim == 4:
            chosen = pictures.telling_slice(classes, prepared.class_counts)
            pixels, classes = pixels[:, chosen], classes[chosen]
        around = pictures.place_of(case, data.stream.spec(int(batch["index"][index])).window.middle)  # augmentation moves slices
        title = f"sample {index}: {case.id}, around {around}"
        rows.append((title, pictures.pair(pixels, classes, prepared.dataset.colors, case.grid)))
    return pictures.save(pictures.sheet(rows, prepared.dataset.classes, prepared.dataset.colors), path)
