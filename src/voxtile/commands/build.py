"""A run's parts, as its configuration describes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from voxtile.cases.windowing import Windowing
from voxtile.commands.allowed import below, build, build_network, called, check_trust, target, targets_of
from voxtile.commands.checks import DATA_KEYS, SECTIONS, check_keys, check_types, check_values, settings_of, windowing_of
from voxtile.commands.own import check_is, check_optimizer, named
from voxtile.commands.typed import check_arguments
from voxtile.errors import ConfigError, reason

if TYPE_CHECKING:  # slow to import
    from torch import nn

    from voxtile.cases.dataset import Dataset
    from voxtile.data.augment import Augment
    from voxtile.data.normalise import Normalisation
    from voxtile.data.sampling import Sampling
    from voxtile.data.splits import SplitScheme
    from voxtile.data.symmetry import Symmetry
    from voxtile.training.losses import Loss
    from voxtile.training.module import MakeOptimizer
    from voxtile.training.schedules import Schedule
    from voxtile.training.settings import Settings

# In place of what only training uses, for a run with weights. Dice takes regions, too.
UNUSED: Mapping[str, Mapping[str, Any]] = {
    "loss": {"_target_": "voxtile.training.losses.Dice"},
    "augment": {"_target_": "voxtile.data.augment.Augment"},
    "scheduler": {"_target_": "voxtile.training.schedules.Constant"},
    "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.0},
}
IMAGINED_CHANNELS = 3  # of images that nobody has looked at


@dataclass(frozen=True)
class Parts:
    """A run's parts before its data is read: everything the configuration alone decides."""

    config: Mapping[str, Any]
    dataset: Dataset
    scheme: SplitScheme
    normalisation: Normalisation
    augment: Augment
    settings: Settings
    schedule: Schedule
    make_optimizer: MakeOptimizer
    sampling: Sampling

    @property
    def windowing(self) -> Windowing:
        """The windows' size and axis."""
        return self.dataset.windowing

    @property
    def trust(self) -> Sequence[str]:
        """Modules outside the allow-list that the user trusts."""
        trust: Sequence[str] = self.config.get("trust", ())
        return trust

    @property
    def symmetry(self) -> Symmetry:
        """What training windows are mirrored along, or may be by the data set, and which classes change places then.

        Axes are those of windows, and classes indices, so that prediction can exchange them in mirrored copies.

        Raises:
            ConfigError: It names a class that there is not.
        """
        return _symmetry(self.config, self.dataset.classes).turned(self.windowing)

    @property
    def remarks(self) -> list[str]:
        """What is allowed, and seldom meant; of the data set's settings once its cases are open."""
        from voxtile.training.schedules import Step

        found = [*self.dataset.idle, *self.scheme.remarks]
        warmup, steps = getattr(self.schedule, "warmup", 0), self.settings.steps
        if warmup >= steps:
            found.append(
                f"the learning rate rises over 'scheduler.warmup={warmup}' steps, and training ends after {steps}: it never "
                "reaches 'optimizer.lr'"
            )
        elif isinstance(self.schedule, Step) and self.schedule.every >= steps - warmup:
            found.append(
                f"the learning rate falls after each 'scheduler.every={self.schedule.every}' steps, and training ends after "
                f"{steps}: it never falls"
            )
        return found


def parts(config: Mapping[str, Any], trained: bool = False, classes: Sequence[str] | None = None) -> Parts:
    """Builds what needs no data, so that a wrong configuration is found before any file is read.

    Args:
        config: the configuration.
        trained: whether it is that of a run with weights, for which nothing is built that only training uses: what was allowed
            when it was trained need not be any more.
        classes: those of a run that judges the data, which may hold but some of them; those of the data where None.

    Raises:
        ConfigError: A key is unknown, a value has the wrong type, or a class cannot be built.
    """
    from voxtile.training.settings import Settings

    check_keys(config)
    check_values(config)
    trust, data = config["trust"], config["data"]
    settings = settings_of(Settings, config["training"])
    check_trust(config, ("loss", "logger") if trained else ())
    if trained:
        config = {**config, **unused(config)}
    # What is slow to import comes after what can be seen without.
    for key in SECTIONS:
        check_types(config[key], key, trust)
    check_optimizer(target(str(config["optimizer"].get("_target_")), "optimizer", trust))
    import torch
    from torch import nn

    from voxtile.cases.dataset import Dataset
    from voxtile.cases.layouts import Layout
    from voxtile.data.augment import Augment
    from voxtile.data.sampling import Sampling

    layout = build(data["layout"], "data.layout", trust)
    check_is(layout, Layout, "data.layout", "voxtile.cases.layouts.Layout")
    facts = {key: data[key] for key in DATA_KEYS if data.get(key) is not None}
    if trained and "colors" in facts:  # runs were trained with colours of no class, too, which did not matter
        facts["colors"] = {name: color for name, color in facts["colors"].items() if name in facts["labels"].values()}
    check_arguments(Dataset, {key: facts[key] for key in ("channels", "exclude") if key in facts}, "data")
    windowing = windowing_of(data)
    facts |= {"layout": layout, "windowing": windowing, **({"classes": classes} if classes else {})}
    dataset = called(Dataset, "data", (), facts)
    sampling = Sampling.of(data.get("sampling"))
    sampling.weights_of(dataset.classes)
    augment = build(_augment(config, dataset.classes, windowing, trained), "augment", trust)
    check_is(augment, Augment, "augment", "voxtile.data.augment.Augment")
    make_optimizer = build(config["optimizer"], "optimizer", trust)
    if not trained:
        if below(str(config["optimizer"]["_target_"]), ("torch.optim",)):  # which looks at its settings only once it is built
            _try_step(make_optimizer, nn.Parameter(torch.zeros(1, 1)))
        build_loss(config, dataset, [1] * len(dataset.classes), [1] * len(dataset.classes))  # as if all classes occurred
    return Parts(
        config,
        dataset,
        build(config["split"], "split", trust),
        build(config["normalise"], "normalise", trust),
        augment,
        settings,
        build(config["scheduler"], "scheduler", trust),
        make_optimizer,
        sampling,
    )


def _try_step(make_optimizer: MakeOptimizer, parameter: nn.Parameter) -> None:
    """Refuses an optimizer that cannot take a step, such as one for sparse gradients.

    Raises:
        ConfigError: It raises an error, when it is built or at its first step.
    """
    import torch

    optimizer = make_optimizer([parameter])
    parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{named(type(optimizer))} cannot take a step: {reason(error)}. Choose another: 'optimizer=adamw' or 'optimizer=sgd'."
        ) from error


def build_loss(config: Mapping[str, Any], dataset: Dataset, class_counts: Sequence[int], present_counts: Sequence[int]) -> Loss:
    """Builds the loss; for the counts see `voxtile.training.class_weights`.

    Raises:
        ConfigError: It cannot be built, or is none.
    """
    from voxtile.training.class_weights import weights_in_order
    from voxtile.training.losses import Loss

    trust, settings = config["trust"], config["loss"]
    if inspect.isclass(maker := target(str(config["loss"].get("_target_")), "loss", trust)):  # takes what others do not
        check_is(maker, Loss, "loss", "voxtile.training.losses.Loss")
    weights = settings.get("class_weights")
    if isinstance(weights, Mapping) and maker.__module__ == Loss.__module__:  # a loss of the user's own may take names
        settings = {**settings, "class_weights": weights_in_order(weights, dataset.classes)}
    loss: Loss = build(
        settings, "loss", trust, class_counts=class_counts, present_counts=present_counts, background=dataset.background,
        num_classes=len(dataset.classes), regions=tuple(dataset.regions.values()) or None,
    )  # fmt: skip
    check_is(loss, Loss, "loss", "voxtile.training.losses.Loss")
    return loss


def check_without_data(config: Mapping[str, Any]) -> Parts:
    """Refuses a training as far as it can be told before its data are read, in no time and without memory for weights.

    Whether the window suits the network is left to `check_before_data`: a search goes on past a trial in which it does not.

    Returns:
        Its parts.

    Raises:
        ConfigError: See `parts`; or the network cannot be built, or there is no such score to choose weights by.
    """
    from voxtile.scores.confusion import check_monitor

    built = parts(config)
    check_monitor(built.settings.monitor, built.dataset.classes, built.dataset.regions)
    imagined_network(built)
    return built


def imagined_network(built: Parts) -> nn.Module | None:
    """The network without memory for weights, for images that nobody has looked at.

    None for one of another library or of the user's own, which may load files.

    Raises:
        ConfigError: It cannot be built.
    """
    if not all(below(name, ("voxtile.models",)) for _, name in targets_of(built.config["model"], "model")):
        return None
    import torch

    with torch.device("meta"):  # on which our networks load no weights
        network: nn.Module = build_network(built.config["model"], built.trust, IMAGINED_CHANNELS, len(built.dataset.classes))
    return network


def unused(config: Mapping[str, Any]) -> dict[str, Any]:
    """What takes the place of what only training uses; of the augmentation its symmetry stays, for mirrored copies at test time."""
    return {**UNUSED, "augment": {**UNUSED["augment"], "symmetry": config["augment"].get("symmetry")}}


def _symmetry(config: Mapping[str, Any], classes: Sequence[str]) -> Symmetry:
    """The augmentation's own symmetry, or that of the data set where it has none; axes are those of the volume.

    Raises:
        ConfigError: It names an axis or a class that there is not.
    """
    from voxtile.data.symmetry import Symmetry

    own = config["augment"].get("symmetry")
    return Symmetry.named(own if isinstance(own, Mapping) else config["data"].get("symmetry"), classes)


def _augment(config: Mapping[str, Any], classes: Sequence[str], windowing: Windowing, trained: bool) -> Mapping[str, Any]:
    """The augmentation's settings with classes by index and axes called as they are in windows.

    Raises:
        ConfigError: See `Symmetry.named` and `Symmetry.check`.
    """
    augment: Mapping[str, Any] = config["augment"]
    if trained:
        return {**augment, "symmetry": None}
    symmetry = _symmetry(config, classes)
    symmetry.check(windowing)
    if not isinstance(augment.get("symmetry"), Mapping):
        return augment
    turned = symmetry.turned(windowing)
    return {**augment, "symmetry": {"flips": turned.flips, "rot90": turned.rot90, "swap": turned.swap}}
