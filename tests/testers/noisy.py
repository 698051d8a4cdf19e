"""A network as a user may write it: in training it draws from every generator that there is."""

import random

import numpy as np
import torch
from torch import Tensor

from voxtile.models.unet import UNet


class Noisy(UNet):
    """U-Net whose scores are scaled at random."""

    def forward(self, image: Tensor) -> Tensor:
        scores = super().forward(image)
        if self.training:
            drawn = random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002  # as users draw
            scores = scores * (0.5 + drawn[0]) * (0.5 + drawn[1]) * (0.5 + drawn[2])
        return scores
