"""Time of ReSeg's sweeps, against one call of PyTorch's own GRU and a plain Python loop in the same run: `python bench/reseg.py`.

One thread, counted in processor time: that another program is busy disturbs less. The library's call, of as many units over the
same sequences, is the floor: ours must turn the weights into the library's form and keep Lasagne's meaning. With `--device cuda`
it is time on the clock, on the GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from voxtile.models.reseg import GRU, Sweep

HIDDEN = 100


def loop(x: Tensor, gru: GRU, backward: bool) -> Tensor:
    """The states [T, N, hidden] of one direction, step by step, with the inputs' products in one piece."""
    bias = gru.bias
    inputs = (x @ gru.weight_in.T + bias).unbind(0)
    hidden = x.new_zeros(x.shape[1], gru.hidden)
    states = []
    for step in reversed(inputs) if backward else inputs:
        (in_r, in_u, in_c), (hid_r, hid_u, hid_c) = step.chunk(3, 1), (hidden @ gru.weight_hid.T).chunk(3, 1)
        update = torch.sigmoid(in_u + hid_u)
        candidate = torch.tanh(in_c + torch.sigmoid(in_r + hid_r) * hid_c)
        hidden = (1 - update) * hidden + update * candidate
        states.append(hidden)
    return torch.stack(states[::-1] if backward else states)


def looped(sweep: Sweep, x: Tensor) -> Tensor:
    """What the sweep gives."""
    ahead = loop(x, sweep.fwd, False)
    return torch.cat([ahead, loop(ahead if sweep.stacked else x, sweep.bwd, True)], dim=2)


def seconds(steps: list[Callable[[], object]], rounds: int, device: str) -> list[float]:
    """Seconds of each step, the median over `rounds`; they take turns."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times: list[list[float]] = [[] for _ in steps]
    for number in range(rounds + 1):
        for step, found in zip(steps, times, strict=True):
            if device != "cpu":
                torch.cuda.synchronize()
            start = clock()
            step()
            if device != "cpu":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                found.append(clock() - start)
    return [float(np.median(found)) for found in times]


def compare(batch: int, side: int, inputs: int, train: bool, rounds: int, device: str) -> None:
    """Prints one line: the rows of a map of `side` x `side` cells, for both wirings."""
    x = torch.randn(side, batch * side, inputs, device=device, requires_grad=train)
    sweeps = {wiring: Sweep(inputs, HIDDEN, wiring).to(device) for wiring in ("paper", "release")}
    library = nn.GRU(inputs, HIDDEN, bidirectional=True).to(device)
    with torch.no_grad():
        for sweep in sweeps.values():
            torch.testing.assert_close(sweep(x), looped(sweep, x), rtol=1e-3, atol=1e-4)

    def step(function: Callable[[], Tensor]) -> Callable[[], object]:
        def run() -> None:
            with torch.set_grad_enabled(train):
                states = function()
                if train:
                    states.sum().backward()

        return run

    found = seconds(
        [
            step(lambda: library(x)[0]),
            *(step(lambda sweep=sweep: sweep(x)) for sweep in sweeps.values()),
            *(step(lambda sweep=sweep: looped(sweep, x)) for sweep in sweeps.values()),
        ],
        rounds,
        device,
    )
    floor, paper, release, paper_loop, release_loop = found
    title = f"{batch} x {side} rows of {side}, {inputs} inputs, {'forward and backward' if train else 'forward'}"
    print(f"{title:52} library {1000 * floor:6.1f} ms")
    print(f"    paper   {1000 * paper:6.1f} ms  {paper / floor:5.2f} of the library  loop {paper_loop / paper:5.2f} of ours")
    print(
        f"    release {1000 * release:6.1f} ms  {release / floor:5.2f} of the library  loop {release_loop / release:5.2f} of ours"
    )


def main() -> None:
    """Measures both ReNet layers' inputs, on the maps of 256x256 and 128x128 images."""
    parser = argparse.ArgumentParser(description="Time of ReSeg's sweeps.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for batch, side, inputs in ((2, 64, 256), (2, 64, 200), (8, 32, 200), (1, 8, 200)):
        for train in (False, True):
            compare(batch, side, inputs, train, chosen.rounds, chosen.device)


if __name__ == "__main__":
    main()
