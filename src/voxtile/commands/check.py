"""voxtile check: everything that can go wrong with a training, looked at before it starts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose

if TYPE_CHECKING:
    from rich.console import Console

    from voxtile.commands.build import Parts
    from voxtile.data.prepared import Prepared

PICTURED = 6  # samples on the sheet


def main(argv: Sequence[str]) -> int:
    """Composes the training configuration and checks it; see `voxtile check --help`."""
    return compose.run("train", argv, check)


def check(config: Mapping[str, Any]) -> int:
    """Looks at a training configuration, its data, and one real step."""
    from voxtile.commands.build import parts
    from voxtile.commands.console import console
    from voxtile.commands.train import check_trainer, command_line, prepare_data

    out = console()
    built = parts(config)
    check_trainer(config["trainer"])
    prepared = prepare_data(built, out)
    print_split(out, prepared)
    print_intensities(out, prepared)
    remarks = look_at_files(prepared) + look_at_classes(prepared)
    remarks += [f"waived: {sentence}" for sentence in prepared.waived]
    try_a_step(out, config, built, prepared)
    if remarks:
        out.print(f"\n{len(remarks)} things to look at:", style="bold")
        for remark in remarks:
            out.print(f"  - {remark}", soft_wrap=True)
    out.print(f"\nto train: {command_line()}", soft_wrap=True)
    return 0


def print_split(out: Console, prepared: Prepared) -> None:
    """Cases, groups, pixels and class shares of each side."""
    import numpy as np
    from rich.table import Table

    names = prepared.dataset.classes
    table = Table(
        "split", "cases", "groups", "pixels", "judged", *names, title=f"data set {prepared.dataset.name}", title_justify="left"
    )
    for side in ("train", "val", "test"):
        cases = getattr(prepared.split, side)
        groups = str(len({case.group for case in cases}))
        if side == "test":
            table.add_row(side, str(len(cases)), groups, *["locked"] * (2 + len(names)))
            continue
        found = [prepared.surveys[case.id] for case in cases]
        counts = np.sum([survey.counts for survey in found], axis=0)
        pixels, judged = sum(survey.pixels for survey in found), int(counts.sum())
        shares = [f"{100 * n / max(judged, 1):.2f} %" for n in counts]
        table.add_row(side, str(len(cases)), groups, f"{pixels:,}", f"{100 * judged / max(pixels, 1):.1f} %", *shares)
    out.print(table)


def print_intensities(out: Console, prepared: Prepared) -> None:
    """What each channel's values look like in the training cases."""
    import numpy as np
    from rich.table import Table

    samples = np.concatenate([prepared.surveys[case.id].sample for case in prepared.split.train], axis=1)
    table = Table(
        "channel", "0.5 %", "median", "99.5 %", "mean", "std", title="intensities of the training cases", title_justify="left"
    )
    for name, values in zip(prepared.split.train[0].channels, samples, strict=True):
        low, middle, high = np.percentile(values, (0.5, 50, 99.5))
        table.add_row(name, *(f"{value:.5g}" for value in (low, middle, high, values.mean(), values.std())))
    out.print(table)


def look_at_files(prepared: Prepared) -> list[str]:
    """What is odd about single files, and about pairs of cases."""
    from voxtile.data.leakage import distinct_values, suspicions

    split = prepared.split
    cases = [*split.train, *split.val]
    notes = [
        note for case in cases for source in (case.image, case.labels and case.labels.source) if source for note in source.notes()
    ]
    distinct = {case.id: distinct_values(prepared.surveys[case.id].sample) for case in cases}
    return sorted(set(notes)) + list(suspicions(cases, distinct))


def look_at_classes(prepared: Prepared) -> list[str]:
    """Classes that are rare, or absent from validation."""
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
    empty = [case.id for case in prepared.split.train if prepared.surveys[case.id].valid < 0.5]
    if empty:
        remarks.append(f"{len(empty)} training cases are more than half without data: {', '.join(empty[:8])}")
    return remarks


def try_a_step(out: Console, config: Mapping[str, Any], built: Parts, prepared: Prepared) -> None:
    """Takes two real steps and one validation batch, times them, and says what the whole will cost."""
    import resource

    import torch

    from voxtile.commands.train import check_fit, make_data, make_module
    from voxtile.training import pictures

    module = make_module(built, prepared, lambda step, values: None)
    check_fit(module.network, config["data"]["window"], prepared.channels, len(prepared.dataset.classes))
    data = make_data(built, prepared, lambda: range(2))
    optimizer = module.configure_optimizers()
    seconds = 0.0
    shown: Any = None
    for batch in data.train_dataloader():
        began = time.perf_counter()
        image, label = module.inputs(batch, augment=True)
        shown = (image, label) if shown is None else shown
        optimizer.zero_grad()
        module.loss(module.network(image), label).backward()
        optimizer.step()
        seconds = time.perf_counter() - began  # of the second step: the first one pays for warming up
    module.network.eval()
    batches = list(data.val_dataloader().items())
    began = time.perf_counter()
    with torch.inference_mode():
        module.network(module.inputs(data._read(batches[0]), augment=False)[0])
    judging = (time.perf_counter() - began) * len(batches)
    settings = built.settings
    total = settings.steps * seconds + -(-settings.steps // settings.val_every) * judging
    weights = sum(p.numel() * p.element_size() for p in module.network.parameters())
    state = sum(v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v))
    kept = 2 + (settings.ema is not None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    out.print(
        f"one step {seconds:.2f} s, one validation {judging:.1f} s: {settings.steps} steps take about {total / 60:.1f} minutes "
        "on this processor\n"
        f"memory {peak:.1f} GiB at most so far; disk {(weights * (kept + 1) + state) / 2**20:.0f} MiB, of which "
        f"{(weights * (kept - 1) + state) / 2**20:.0f} MiB (the resume state) go when the run is finished",
        highlight=False,
    )  # fmt: skip
    rows = []
    image, label = shown
    for index in range(min(PICTURED, len(image))):
        pixels, classes = image[index].detach().numpy(), label[index].numpy()
        if pixels.ndim == 4:
            pixels, classes = pixels[:, pixels.shape[1] // 2], classes[classes.shape[0] // 2]
        panel = pictures.pair(pixels, classes, prepared.dataset.colors)
        rows.append((f"sample {index}", panel))
    path = Path("check") / f"{prepared.dataset.name}.png"
    pictures.save(pictures.sheet(rows, prepared.dataset.classes, prepared.dataset.colors), path)
    out.print(f"samples as the network sees them: {path}", soft_wrap=True)
