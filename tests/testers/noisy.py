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
            scores = scores * (0.5 + random.random()) * (0.5 + float(np.random.rand())) * (0.5 + float(torch.rand(())))  # noqa: NPY002
        return scores
