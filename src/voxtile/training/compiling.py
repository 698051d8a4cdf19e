"""Training passes by kernels that PyTorch fuses for the network (`training.compile`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from voxtile.errors import RunError, reason
from voxtile.models.network import logits_of

KERNELS = 64  # of one function of a network at most; layers of one class that are not traced together need one each


def compiled(network: nn.Module) -> Callable[[Tensor], Any]:
    """`logits_of` the network as `torch.compile` has it: compiled at the first call, and again for each other shape.

    Shapes are not generalised: which kernel a batch meets then does not depend on the batches before it, so that a run that
    continues in a new process comes to the same bits.

    Raises:
        RunError: When it is called, where the network cannot be compiled.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # takes a second to import

    # Else PyTorch would go on without kernels after so many of one function, and in a new process count anew.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._dynamo.config.recompile_limit = KERNELS
    passes = torch.compile(partial(logits_of, network), dynamic=False)

    def logits(image: Tensor) -> Any:
        try:
            return passes(image)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            what = reason(RuntimeError(str(error).partition("\n\n")[0]))  # hints for those who work on PyTorch follow
            if isinstance(error, FailOnRecompileLimitHit):
                what = f"it asks for more than {KERNELS} kernels of one function, as networks do that draw numbers in Python"
            raise RunError(
                f"The network ({type(network).__name__}) could not be compiled: {what}. 'training.compile=true' needs a C++ "
                "compiler, such as g++, where the run trains, and a network that torch.compile takes. Install one, or leave "
                "'training.compile' out."
            ) from error

    return logits
