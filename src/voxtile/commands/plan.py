"""voxtile plan: settings that a data set suggests, as a configuration file with a reason for each."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands import compose
from voxtile.errors import ConfigError, counted, listed
from voxtile.values import check_switch, is_number

if TYPE_CHECKING:
    from voxtile.data.planning import Facts, Plan

# What a training step holds, in multiples of all feature maps of one forward pass: the maps themselves, which the backward pass
# needs, and gradients of some of them. On four U-Nets the peak was 1.1 to 1.5 times the maps, see docs/decisions.md.
STEP = 1.5


def main(argv: Sequence[str]) -> int:
    """Composes the training configuration and plans for its data; see `voxtile plan --help`."""
    return compose.run("plan", argv, make_plan)


def make_plan(config: Mapping[str, Any]) -> int:
    """Writes an experiment for the data set that the configuration names."""
    from voxtile.cases.atomic import atomic_text
    from voxtile.cases.windowing import Windowing
    from voxtile.commands.assemble import prepare_data
    from voxtile.commands.build import parts
    from voxtile.commands.console import console
    from voxtile.data.planning import facts_of, plan
    from voxtile.training.run_folder import clear_halves

    out = console()
    wanted = _checked(config["plan"])
    plain = {key: value for key, value in config.items() if key != "plan"}
    # Planned on the files' own grid, whatever the data set's file says.
    plain["data"] = {**plain["data"], "spacing": None, "axis": "z", "neighbours": 0, "window": [1, 1]}
    plain["data"]["symmetry"] = {**(plain["data"]["symmetry"] or {}), "rot90": False}
    built = parts(plain)
    shipped, name = compose.conf_dir() / "experiment", wanted["name"] or f"{built.dataset.name}_{wanted['dims']}d"
    if (shipped / f"{name}.yaml").exists():
        if wanted["name"]:
            raise ConfigError(f"'plan.name={name}' is an experiment that comes with voxtile. Give the plan another name.")
        name += "_plan"
    folder = Path(wanted["output"] or next(iter(compose.further_folders()), "plans")).expanduser()
    path = folder / "experiment" / f"{name}.yaml"
    if not wanted["overwrite"] and path.exists():
        raise ConfigError(
            f"{path} exists already, and may have been edited. Name another with 'plan.name=…', or type 'plan.overwrite=true'."
        )
    neighbours = Windowing.of([1, 1], "z", config["data"]["neighbours"]).neighbours if wanted["dims"] == 2 else 0
    prepared = prepare_data(built, out)
    cases = prepared.split.train
    facts = facts_of(cases, [prepared.surveys[case.id] for case in cases])
    classes, inputs = prepared.dataset.classes, facts.channels * (1 + 2 * neighbours)
    made = plan(facts, wanted["dims"], wanted["memory"] * 1e9, lambda values: step_bytes(values, inputs, len(classes)))
    if (config["data"]["symmetry"] or {}).get("rot90") and len(set(made.values["data.window"][-2:])) > 1:
        made.set("data.symmetry.rot90", False, "windows that are not square cannot be turned by 90 degrees")
    if wanted["dims"] == 2:
        made.set("data.neighbours", neighbours, f"as it was set; memory is reckoned with {counted(inputs, 'channel')}")
    for setting, value in {"data.axis": "z", "data.neighbours": 0}.items():
        if setting not in made.values and config["data"][setting.removeprefix("data.")] != value:
            made.set(setting, value, "boxes have none")
    command, left = command_to_train(folder, name, made.values)
    text = written(made, facts, classes, config["chosen"]["data"], command)
    clear_halves(path.parent)
    atomic_text(path, text)
    out.print(text, soft_wrap=True)
    if left:
        out.print(f"left out     {listed(left)}: the plan decides these; edit them in its file", soft_wrap=True)
    out.print(f"written      {path}\nnext         {command}", soft_wrap=True)
    return 0


def _checked(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of this command.

    Raises:
        ConfigError: One is out of range.
    """
    if given["dims"] not in (2, 3):
        raise ConfigError(f"'plan.dims={given['dims']}' must be 2 for slices or 3 for boxes.")
    memory = given["memory"]
    if not (is_number(memory) and memory > 0):
        raise ConfigError(f"'plan.memory={memory}' must be the gigabytes that a training step may take, for example 8.")
    check_switch("plan.overwrite", given["overwrite"])
    return given


def step_bytes(values: Mapping[str, Any], channels: int, classes: int) -> int:
    """Bytes that a training step of a U-Net takes: feature maps, weights, gradients and Adam's two moments, in float32."""
    import torch
    from torch import nn

    from voxtile.models.unet import UNet

    held: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        if not list(module.children()) and torch.is_tensor(output):
            held.append(output.numel())

    with torch.device("meta"):
        network = UNet(channels, classes, values["model.width"], values["model.depth"], dims=values["model.dims"])
        for module in network.modules():
            module.register_forward_hook(count)
        network(torch.zeros(2, channels, *values["data.window"]))
    weights = sum(parameter.numel() for parameter in network.parameters())
    return int(4 * (STEP * sum(held) * values["training.batch_size"] / 2 + 4 * weights))


def command_to_train(folder: Path, name: str, decided: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What the user types to train the plan: what was typed to make it, without the command's own settings and those `decided`.

    Returns:
        The command, and what of the typed words is left out of it though the plan decides otherwise.
    """
    import yaml

    typed = [word for word in sys.argv[1:] if word not in ("plan", "--") and not word.startswith("plan.")]
    known = {**decided, "model": "unet", "experiment": None}
    words, left = [], []
    for word in typed:
        setting, _, value = word.partition("=")
        setting = setting.lstrip("+")
        within = "." in setting and any(key.startswith(f"{setting}.") for key in known)  # what is typed for a whole mapping
        if setting not in known and not within:
            words.append(word)
        elif within or yaml.safe_load(value) != known[setting]:
            left.append(word)
    if folder.resolve() not in [each.resolve() for each in compose.further_folders()]:
        words = ["--config-dir", str(folder), *words]
    return shlex.join(["voxtile", "train", *words, f"experiment={name}"]), left


def written(made: Plan, facts: Facts, classes: Sequence[str], data: str, command: str) -> str:
    """The experiment's file: what was seen, and each setting with its reason."""
    import numpy as np
    import yaml

    shapes, volumes = facts.shapes, facts.volumes
    seen = [
        f"{len(shapes)} training cases of {facts.channels} channel{'s' if facts.channels > 1 else ''}; "
        f"voxels (z, y, x) {_range(shapes)}; spacing {_range(facts.spacings)} mm",
        *(
            f"{of}: {np.median(column):.3g} ml in the median case, {column.min():.3g} to {column.max():.3g}"
            for of, column in zip(classes, volumes.T, strict=True)
        ),
    ]
    lines = [
        "# @package _global_",
        f"# {command}",
        "# Planned by 'voxtile plan' from the training cases; edit what you know better.",
        *(f"#   {line}" for line in seen),
        "defaults:",
        f"  - override /data: {data}",
        "  - override /model: unet",
        f"  - override /normalise: {made.values['normalise']}  # {made.reasons['normalise']}",
    ]
    sections: dict[str, list[str]] = {}
    for setting, value in made.values.items():
        if setting == "normalise":
            continue
        section, key, *inner = setting.split(".")
        shown = yaml.safe_dump({inner[0]: value} if inner else value, default_flow_style=True).splitlines()[0]
        sections.setdefault(section, []).append(f"  {key}: {shown}  # {made.reasons[setting]}")
    for section, rows in sections.items():
        lines += [f"{section}:", *rows]
    return "\n".join(lines) + "\n"


def _range(rows: Any) -> str:
    """Median, least and most of rows [n, 3], as text."""
    import numpy as np

    middle, least, most = np.median(rows, axis=0), rows.min(axis=0), rows.max(axis=0)
    return f"{_sides(middle)} (median), {_sides(least)} to {_sides(most)}"


def _sides(row: Any) -> str:
    return "x".join(f"{side:.4g}" for side in row)
