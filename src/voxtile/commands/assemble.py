"""What trains, assembled from the configuration and the data: what train, check and evaluate have in common."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtile.commands.devices import check_count, check_precision, gpu_or_cpu, torchrun_world
from voxtile.errors import ConfigError, VoxtileError, counted, did_you_mean, listed
from voxtile.values import is_whole

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from voxtile.commands.build import Parts
    from voxtile.data.datamodule import VoxtileData
    from voxtile.data.prepared import Prepared
    from voxtile.studies.manifest import Devices
    from voxtile.training.losses import Loss
    from voxtile.training.module import SegmentationModule
    from voxtile.training.settings import Settings

STRATEGIES = ("auto", "ddp", "fsdp")
TRAINER = ("accelerator", "devices", "strategy", "precision", "deterministic", "sync_batchnorm", "profiler")


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuses options that `lightning.Trainer` would, and those of its own that would end or change a run behind its recipe's back.

    Raises:
        ConfigError: An option or precision is unknown, or there is no such device here.
    """
    if unknown := [name for name in options if name not in TRAINER]:
        raise ConfigError(
            f"'trainer' takes no '{unknown[0]}'.{did_you_mean(unknown[0], TRAINER)} It takes {listed(TRAINER)}; how long to train "
            "is said by 'training'."
        )
    devices, strategy = options["devices"], str(options["strategy"])
    if devices != "all" and not is_whole(devices, 1):
        raise ConfigError(f"'trainer.devices={devices}' must be a whole number from 1 up, or all for every GPU of this machine.")
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"'trainer.strategy={strategy}' is unknown.{did_you_mean(strategy, STRATEGIES)} Choose from {listed(STRATEGIES)}."
        )
    precision = str(options["precision"])
    check_precision("trainer.precision", precision)
    if strategy == "fsdp" and precision == "16-mixed":
        raise ConfigError(
            "'trainer.strategy=fsdp' cuts gradients over devices, and the loss scale of 'trainer.precision=16-mixed' needs whole "
            "ones. Type 'trainer.precision=bf16-mixed'."
        )
    asks = options["accelerator"] in ("gpu", "cuda")
    if not asks and devices == 1 and not options["sync_batchnorm"]:
        return
    import torch

    if asks and not torch.cuda.is_available():
        raise ConfigError(
            f"'trainer.accelerator={options['accelerator']}' asks for a GPU, and PyTorch finds none here. Type 'trainer=cpu', or "
            "look with 'nvidia-smi' why there is none."
        )
    device, many = device_of(options), devices == "all" or devices > 1
    if options["sync_batchnorm"] and device == "cpu":
        raise ConfigError(
            "'trainer.sync_batchnorm=true' needs GPUs: PyTorch's SyncBatchNorm refuses the CPU. Type 'model.norm=group', say, for "
            "a normalisation that does not depend on how a batch is shared out."
        )
    if device == "cpu" and devices == "all":
        raise ConfigError("'trainer.devices=all' counts GPUs. On the CPU, type how many processes train: 'trainer.devices=2'.")
    if many and options.get("profiler"):
        raise ConfigError("'trainer.profiler' measures one process. Type 'trainer.devices=1' too.")
    there = torch.cuda.device_count()
    if device == "cuda" and devices != "all":
        remedy = f" Type '{f'trainer.devices={there}' if there else 'trainer=cpu'}'."
        check_count(f"trainer.devices={devices}", devices, there, remedy)


def device_of(options: Mapping[str, Any]) -> str:
    """The kind of device, "cpu" or "cuda", that the options of the trainer lead to here."""
    wanted = options["accelerator"]
    return "cuda" if wanted in ("gpu", "cuda") or (wanted == "auto" and gpu_or_cpu() == "cuda") else "cpu"


def world_of(options: Mapping[str, Any]) -> int:
    """How many processes train, by the options of the trainer."""
    import torch

    if torchrun_world() > 1:  # torchrun has started them
        return torchrun_world()
    return max(1, torch.cuda.device_count()) if options["devices"] == "all" else int(options["devices"])


def devices_of(options: Mapping[str, Any]) -> Devices:
    """What the options of the trainer lead to here.

    Of several processes each has its share of the processors, unless OMP_NUM_THREADS says otherwise.
    """
    import torch

    from voxtile.studies.manifest import Devices

    count, threads = world_of(options), torch.get_num_threads()
    if count > 1 and torchrun_world() == 1:
        wish = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(wish) if wish.isdigit() and int(wish) else max(1, (os.cpu_count() or 1) // count)
    strategy = "" if count == 1 else "fsdp" if options["strategy"] == "fsdp" else "ddp"
    return Devices(device_of(options), count, threads, strategy)


def trainer_options(options: Mapping[str, Any], world: int) -> dict[str, Any]:
    """What `lightning.Trainer` is given, in each of the `world` processes that train."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    given = {name: options[name] for name in ("accelerator", "precision", "profiler") if name in options}
    # What has no deterministic form on CUDA, which some networks of other libraries use, is warned of instead of refused.
    given["deterministic"] = "warn" if options.get("deterministic") else False
    if world == 1:  # else Lightning takes its plugin for Slurm where it finds a job, with checkpoints and rules of its own
        return given | {"devices": 1, "plugins": [LightningEnvironment()]}
    # Running statistics are shared before a validation: in a step each device normalises by its own samples anyway, and in
    # a validation, for which devices have unequally many batches, they would wait for one another.
    kind = _sharded() if options["strategy"] == "fsdp" else DDPStrategy
    strategy = kind(find_unused_parameters=True, **_buffers_apart())
    by_torchrun = torchrun_world() > 1
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if by_torchrun else world
    environment = TorchElasticEnvironment() if by_torchrun else LightningEnvironment()
    shared = {"sync_batchnorm": options["sync_batchnorm"], "plugins": [environment], "strategy": strategy}
    return given | shared | {"devices": here, "num_nodes": world // here}


def _buffers_apart() -> dict[str, Any]:
    """Has PyTorch leave running statistics alone in steps; before 2.13 also at the start, where they are the same everywhere."""
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def _sharded() -> Any:
    """Lightning's strategy of equal processes, whose module cuts its weights over them instead of keeping them whole on each."""
    from lightning.pytorch.strategies import DDPStrategy

    class Sharded(DDPStrategy):
        def _setup_model(self, model: Any) -> Any:
            model.shard()
            return model

        def _register_ddp_hooks(self) -> None:
            """There is no DDP to have any."""

    return Sharded


def assembled(built: Parts, prepared: Prepared) -> tuple[SegmentationModule, VoxtileData]:
    """The LightningModule at its start and its data."""
    module = make_module(built, prepared)
    data = make_data(built, prepared, module.network, lambda: range(module.step, built.settings.next_validation(module.step)))
    return module, data


def prepare_data(built: Parts, out: Console, anew: bool = False, runs: Path | None = None, noted: bool = False) -> Prepared:
    """Opens, splits and surveys the data, with a progress bar.

    Args:
        built: parts of a run.
        out: where it prints.
        anew: see `prepare`.
        runs: the folder of runs, instead of the configuration's, which may be one of another machine.
        noted: see `prepare`.
    """
    from voxtile.commands.console import progress
    from voxtile.data.prepared import prepare

    with progress(out) as start:
        data, kept = built.config["data"], Path(built.config["paths"]["cache"]).expanduser()
        prepared = prepare(
            built.dataset, built.scheme, built.normalisation, kept,
            waive=data["waive"] or (), limit=data["limit"], window=built.windowing.size, sampling=built.sampling, anew=anew,
            progress=start, say=lambda sentence: out.print(sentence, soft_wrap=True), lists=lists_of(built.config, runs),
            noted=noted,
        )  # fmt: skip
    for sentence in built.dataset.left_out:
        out.print(f"left out: {sentence}", soft_wrap=True)
    return prepared


def lists_of(config: Mapping[str, Any], runs: Path | None = None) -> Path:
    """The folder of what `check` draws of a data set, where lists of cases that are too long to be printed lie, too."""
    return (runs or Path(config["paths"]["runs"]).expanduser()) / "check" / str(config["data"]["name"])


def make_module(built: Parts, prepared: Prepared) -> SegmentationModule:
    """Builds network, loss and LightningModule for prepared data.

    Raises:
        ConfigError: The network or the loss is not what training takes.
    """
    import lightning

    from voxtile.commands.allowed import build_network
    from voxtile.commands.build import build_loss
    from voxtile.commands.own import check_loss, check_network
    from voxtile.training.module import SegmentationModule
    from voxtile.training.schedules import parameter_groups

    config, dataset = built.config, prepared.dataset
    lightning.seed_everything(config["seed"], verbose=False)
    network = build_network(config["model"], built.trust, prepared.channels, len(dataset.classes))
    check_network(network, built.windowing.size)
    loss = build_loss(config, dataset, prepared.class_counts, prepared.present_counts)
    check_loss(loss, len(dataset.classes), built.windowing.size)
    rate = float(config["optimizer"]["lr"])
    return SegmentationModule(
        network, loss, built.augment, make_optimizer=built.make_optimizer, schedule=built.schedule, settings=built.settings,
        seed=config["seed"], classes=dataset.classes, background=dataset.background, regions=dataset.regions,
        training=[case.id for case in prepared.split.train], validation=[case.id for case in prepared.split.val],
        parameters=lambda model: parameter_groups(model, built.settings.groups, rate),
    )  # fmt: skip


def make_data(built: Parts, prepared: Prepared, network: nn.Module, coming: Callable[[], range]) -> VoxtileData:
    """Builds the data module that reads what `network` wants."""
    from voxtile.data.datamodule import Steps, VoxtileData
    from voxtile.data.prepared import window_size
    from voxtile.models.network import margin_of

    data = built.config["data"]
    size = window_size(built.windowing.size, [*prepared.split.train, *prepared.split.val])
    steps = Steps(built.settings.batch_size, coming)
    return VoxtileData(
        prepared, size, built.augment, seed=built.config["seed"], steps=steps, balance=data["balance"],
        workers=built.config["workers"], margin=margin_of(network), sampling=built.sampling,
    )  # fmt: skip


def check_before_data(built: Parts) -> None:
    """Refuses what `check_fit` would, as far as it can be told before minutes of reading.

    Raises:
        ConfigError: The network cannot be built, or not be trained on such windows.
    """
    from voxtile.commands.build import imagined_network
    from voxtile.commands.own import check_network

    if (network := imagined_network(built)) is not None:
        check_network(network, built.windowing.size)
        _check_window(network, built.windowing.size)


def check_fit(module: SegmentationModule, built: Parts, prepared: Prepared, world: int) -> None:
    """Refuses a training whose parts and data do not fit each other or the number of processes; see `check_network_fit`."""
    channels, classes = prepared.channels, len(prepared.dataset.classes)
    check_network_fit(module.network, built.windowing.size, channels, classes, built.settings, world, module.loss)


def check_network_fit(
    network: Any, window: Sequence[int], channels: int, classes: int, settings: Settings, world: int = 1, loss: Loss | None = None
) -> None:  # fmt: skip
    """Refuses a network, a window, a batch and a loss that do not fit each other, the data or the number of processes.

    Raises:
        ConfigError: The window is too small for the network, a process has too few samples, the network's logits have not the
            image's size and one channel per class, or the loss cannot judge what it returns in training.
    """
    import torch

    from voxtile.commands.own import for_boxes, logits_in
    from voxtile.models.adapter import Adapted
    from voxtile.models.network import least_batch_of, least_size_of

    _check_window(network, window)
    batch, shares = least_batch_of(network), settings.accumulate * world
    if settings.batch_size // shares < batch:
        on = f" on each of {world} devices" if world > 1 else ""
        raise ConfigError(
            f"This network cannot learn from fewer than {counted(batch, 'image')} at a time; batches of {settings.batch_size} in "
            f"{counted(settings.accumulate, 'part')}{on} give it {settings.batch_size // shares}. Type "
            f"'training.batch_size={batch * shares}' or more, or a lower 'training.accumulate'{' or fewer devices' if on else ''}."
        )
    least = least_size_of(network)
    odd = [side - 1 if side > least else side for side in window]  # whole cases have sides of any length
    for size in (window, odd):
        shape = (1, channels, *size)
        try:
            with _taking(network, shape), torch.inference_mode():
                found = tuple(logits_in(network, network.eval()(torch.zeros(shape))).shape)
        finally:
            network.train()
        if found != (1, classes, *size):
            remedy = for_boxes(network) or (
                "Give it the number of classes under the name it takes, for example 'model.out_channels=…', and have it pad and "
                "crop what it cannot halve."
            )
            raise ConfigError(
                f"The network gives logits of shape {found} for an image of {shape}; expected "
                f"{(1, classes, *size)}, one channel per class and the image's size. {remedy}"
            )
    by_distance = loss is not None and loss.by_distance
    if by_distance or (isinstance(network, Adapted) and network.dims == 3):
        _check_maps(network, (batch, channels, *window), loss if by_distance else None)


def _check_window(network: nn.Module, window: Sequence[int]) -> None:
    """Refuses a training window with a side that is too small for a network.

    Raises:
        ConfigError: It has one.
    """
    from voxtile.models.network import least_size_of

    least = least_size_of(network)
    if min(window) < least:
        raise ConfigError(
            f"A side of 'data.window={list(window)}', {min(window)} pixels, is smaller than {least}, the least this network can "
            "train on. Type a larger window, or a network with fewer halvings (of U-Net by a smaller 'model.depth')."
        )


def _check_maps(network: nn.Module, shape: Sequence[int], loss: Loss | None) -> None:
    """Refuses a network that is trained on maps of coarser grids, where these cannot be judged.

    Args:
        network: in training.
        shape: of its images without their margin, [B, C, (D,) H, W].
        loss: one whose weights follow from distances, which have no meaning on coarser grids; None for any other.

    Raises:
        ConfigError: It is such a network.
    """
    import torch

    from voxtile.models.network import logits_of, margin_of, score_maps
    from voxtile.training.norms import unmoved

    batch, channels, *sides = shape
    margins = margin_of(network)[-len(sides) :]
    shape = (batch, channels, *(side + 2 * margin for side, margin in zip(sides, margins, strict=True)))
    with _taking(network, shape), torch.no_grad(), unmoved(network):
        maps = score_maps(logits_of(network, torch.zeros(shape)))
    if loss is not None and any(each.rows is not None for each in maps):
        raise ConfigError(
            f"This loss ({type(loss).__name__}) weighs pixels by their distances in the image, and this network is trained on "
            "coarser score maps, which hold one pixel of many. Choose another loss ('loss=ce'), or a network whose scores have the "
            "image's size ('model=unet')."
        )


@contextmanager
def _taking(network: nn.Module, shape: Sequence[int]) -> Iterator[None]:
    """Turns what a network raises when it is given an image of zeros into a paragraph about the image's shape.

    Raises:
        ConfigError: It raised something else than an error of ours.
    """
    from voxtile.commands.own import refused_image

    try:
        yield
    except VoxtileError:
        raise
    except Exception as error:  # other people's networks refuse sizes in any way
        raise ConfigError(refused_image(network, shape, error)) from error
