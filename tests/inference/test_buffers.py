import gc

import numpy as np
import torch

from voxtile.inference.buffers import Buffers


def test_memory_is_used_again_once_nobody_holds_a_part_of_it():
    buffers = Buffers()
    array = buffers.empty((2, 3, 4), np.float32)
    array[...] = 1
    place = array.ctypes.data
    part = torch.from_numpy(array)[0, 1:]
    del array
    gc.collect()
    other = buffers.empty((2, 3, 4), np.float32)
    other[...] = 2
    assert other.ctypes.data != place
    assert (part == 1).all()
    del part
    gc.collect()
    assert buffers.empty((3, 4), np.uint16).ctypes.data == place


def test_memory_that_is_too_small_is_not_used():
    buffers = Buffers()
    buffers.empty((10,), np.uint8)
    larger = buffers.empty((100, 2), np.float64)
    assert larger.shape == (100, 2)
    larger[...] = 7  # all of it can be written to
    assert larger.sum() == 1400
    assert buffers.empty((0, 3), np.float32).shape == (0, 3)
