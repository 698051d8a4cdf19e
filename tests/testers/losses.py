"""What every loss must do. A new loss is tested by a subclass whose `make` builds it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from voxtile.cases.window import IGNORE
from voxtile.training.losses import Loss, surrogate

CLASSES = 3
COUNTS = {"class_counts": [500, 300, 200], "present_counts": [1000, 800, 600]}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
SPACES = [(6, 5), (3, 4, 3)]
# How four samples are dealt to ranks (outer) and their micro-batches (inner).
DEALS = [[[0, 1], [2, 3]], [[0], [1, 2, 3]], [[0], [1], [2], [3]]]


def batch(space: Sequence[int], dtype: torch.dtype = torch.float64, channels: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Four samples [4, channels, *space] and labels [4, *space] with 40 % ignored pixels, dealt unevenly: none to nearly all."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(4, channels, *space, generator=generator, dtype=dtype) * 2
    label = torch.randint(0, CLASSES, (4, *space), generator=generator)
    for index, share in enumerate((0.0, 0.1, 0.6, 0.9)):
        pixels = label[index].view(-1)
        pixels[torch.randperm(len(pixels), generator=generator)[: round(share * len(pixels))]] = IGNORE
    return image, label


def network(space: Sequence[int], dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small convolution from two channels to scores, the same at each call."""
    torch.manual_seed(5)
    kind = nn.Conv2d if len(space) == 2 else nn.Conv3d
    return kind(2, CLASSES, 3, padding=1).to(dtype)


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def whole_gradient(loss: Loss, space: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    image, label = batch(space, dtype, channels=2)
    model = network(space, dtype)
    loss(model(image), label).backward()
    return gradients(model)


def dealt_gradient(
    loss: Loss, deal: Sequence[Sequence[int]], space: Sequence[int], dtype: torch.dtype = torch.float64, labels_only: bool = False
) -> Tensor:
    """The sum over parts of the gradients of `surrogate`, each part computed on its own."""
    image, label = batch(space, dtype, channels=2)
    model = network(space, dtype)
    parts = [torch.tensor(part) for part in deal]
    if labels_only:
        total = torch.stack([loss.label_statistics(label[part]) for part in parts]).sum(dim=0)
    else:
        with torch.no_grad():
            total = torch.stack([loss.statistics(model(image[part]), label[part]) for part in parts]).sum(dim=0)
    for part in parts:
        surrogate(loss, loss.statistics(model(image[part]), label[part]), total).backward()
    return gradients(model)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("space", SPACES, ids=["2d", "3d"])
class LossTester(ABC):
    @abstractmethod
    def make(self) -> Loss: ...

    @pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
    def test_scores_at_ignored_pixels_have_no_influence(self, space, poison):
        loss = self.make()
        logits, label = batch(space)
        ignored = (label == IGNORE)[:, None].expand_as(logits)
        clean = logits.clone().requires_grad_()
        poisoned = torch.where(ignored, poison, logits).requires_grad_()
        loss(clean, label).backward()
        value = loss(poisoned, label)
        value.backward()
        assert torch.equal(value, loss(clean, label))
        assert torch.equal(poisoned.grad, clean.grad)
        assert (poisoned.grad[ignored] == 0).all()
        assert (poisoned.grad[~ignored] != 0).any()

    def test_nan_at_a_judged_pixel_shows(self, space):
        logits, label = batch(space)
        logits[0, :, 0] = float("nan")
        assert self.make()(logits, label).isnan()

    def test_ignored_pixels_could_as_well_not_be_there(self, space):
        loss = self.make()
        logits, label = batch(space)
        border = [1, 1] * len(space)
        grown = nn.functional.pad(logits, border, value=7.0), nn.functional.pad(label, border, value=IGNORE)
        torch.testing.assert_close(loss(*grown), loss(logits, label))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_batch_without_a_judged_pixel_has_loss_and_gradient_zero(self, space, dtype):
        logits = torch.full((2, CLASSES, *space), float("nan"), dtype=dtype, requires_grad=True)
        value = self.make()(logits, torch.full((2, *space), IGNORE))
        value.backward()
        assert value.item() == 0
        assert torch.equal(logits.grad, torch.zeros_like(logits))

    @pytest.mark.parametrize("deal", DEALS)
    def test_statistics_of_parts_add_up(self, space, deal):
        loss = self.make()
        logits, label = batch(space)
        whole = loss.statistics(logits, label)
        parts = [loss.statistics(logits[part], label[part]) for part in deal]
        assert whole.shape == (loss.size,)
        torch.testing.assert_close(torch.stack(parts).sum(dim=0), whole, rtol=1e-6, atol=0)

    def test_label_statistics_are_the_part_that_no_scores_can_change(self, space):
        loss = self.make()
        logits, label = batch(space)
        known = loss.label_statistics(label)
        one, other = (loss.statistics(scores, label).float() for scores in (logits, -2 * logits))
        fixed = one == other
        assert known.dtype == torch.float32
        assert fixed.any()
        torch.testing.assert_close(known, torch.where(fixed, one, 0.0))

    @pytest.mark.parametrize("deal", DEALS)
    @pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-6, 1e-9), (torch.float32, 1e-4, 1e-6)])
    def test_gradient_is_the_same_however_the_batch_is_dealt(self, space, deal, dtype, rtol, atol):
        expected = whole_gradient(self.make(), space, dtype)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(dealt_gradient(self.make(), deal, space, dtype), expected, rtol=rtol, atol=atol)

    def test_labels_alone_give_the_factors_unless_the_loss_says_otherwise(self, space):
        loss = self.make()
        early = dealt_gradient(loss, DEALS[1], space, labels_only=True)
        exact = torch.allclose(early, whole_gradient(loss, space), rtol=1e-6, atol=1e-9)
        assert exact is not loss.needs_logits_first

    def test_gradient_agrees_with_finite_differences(self, space):
        logits, label = (part[1:3] for part in batch(space))
        loss = self.make()
        assert torch.autograd.gradcheck(lambda scores: loss(scores, label), logits.clone().requires_grad_(), fast_mode=True)

    def test_autocast_does_not_lower_the_precision(self, space):
        loss = self.make()
        image, label = batch(space, torch.float32, channels=2)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(space, torch.float32)(image)
            value = loss(logits, label)
        assert logits.dtype == torch.bfloat16
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(logits.float(), label))

    @pytest.mark.parametrize("device", DEVICES)
    def test_runs_with_deterministic_algorithms_alone(self, space, device):
        loss = self.make().to(device)
        logits, label = (part.to(device) for part in batch(space, torch.float32))
        logits.requires_grad_()
        with deterministic_algorithms():  # raises at an operation without a deterministic form
            first, second = (torch.autograd.grad(loss(logits, label), logits)[0] for _ in range(2))
        assert torch.equal(first, second)

    @pytest.mark.parametrize("device", DEVICES)
    def test_statistics_may_be_summed_up_in_double_precision_on_the_cpu(self, space, device):
        loss = self.make().to(device)
        logits, label = (part.to(device) for part in batch(space, torch.float32))
        kept = loss.statistics(logits, label).double().cpu()
        torch.testing.assert_close(loss.value(kept).item(), loss(logits, label).item(), rtol=1e-6, atol=0)

    def test_labels_may_be_bytes(self, space):
        logits, label = batch(space)
        assert torch.equal(self.make()(logits, label.byte()), self.make()(logits, label))

    def test_leaves_nothing_in_a_checkpoint(self, space):
        assert not self.make().state_dict()

    def test_refuses_scores_of_another_size_than_the_label(self, space):
        logits, label = batch(space)
        with pytest.raises(ValueError, match="do not fit a label"):
            self.make()(logits, label[:, None])
