"""Gaussian filtering of scattered points in any number of dimensions, in time linear in their number.

The permutohedral lattice of Adams, Baek and Davis (Fast High-Dimensional Filtering Using the Permutohedral Lattice, Eurographics
2010), with the scale and the normalisation of Krähenbühl and Koltun (2011): values are splatted onto the corners of the simplex
that a point lies in, blurred along the lattice's d + 1 directions, and read back. n points, d dimensions, K values per point, M
lattice points.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from voxtile.cases.compiled import compiled

FAR = 1e6  # float32 keeps less than a tenth of a standard deviation beyond
Floats = NDArray[np.float32]
Indices = NDArray[np.int32]
Keys = NDArray[np.uint64]


class Lattice:
    """The lattice of one set of points: built once, then it filters any values by the Gaussian of standard deviation 1.

    The filter approximates out_i = Σ_j exp(-|f_i - f_j|² / 2) · in_j, up to a factor that is about the same everywhere. It holds
    only those lattice points that a simplex touches, and nothing is blurred through the gaps.

    Attributes:
        corners: for each point, the d + 1 lattice points around it [n, d + 1], numbered from 1.
        weights: the point's barycentric coordinates for these [n, d + 1]; they sum to 1.
        neighbours: the lattice points before and after each one, by direction [d + 1, M + 1, 2]; 0 stands for none.
        gain: what the blur has to be multiplied by.
    """

    def __init__(self, features: Floats) -> None:
        """Builds the lattice.

        Args:
            features: positions of the points [n, d] in units of the standard deviation.

        Raises:
            ValueError: There is no dimension, or a position is not finite or too far out for float32.
        """
        features = np.ascontiguousarray(features, np.float32)
        if features.ndim != 2 or features.shape[1] < 1:
            raise ValueError(f"features are [points, dimensions], with one dimension at least, not {list(features.shape)}")
        if features.size and not np.abs(features).max() < FAR:
            raise ValueError(
                f"features reach {np.abs(features).max():g} standard deviations; they must be finite and below {FAR:g}: "
                "take a larger standard deviation, or scale the values"
            )
        base = _base(features)
        self.corners, self.weights, keys, table = _embed(features, base)
        self.neighbours = _neighbours(keys, table, features.shape[1], base)
        self.gain = np.float32(1 / (1 + 2.0 ** -features.shape[1]))

    @property
    def size(self) -> int:
        """The number of lattice points, M."""
        return int(self.neighbours.shape[1]) - 1

    def filter(self, values: Floats, reverse: bool = False) -> Floats:
        """Filters K values per point [n, K] into [n, K].

        Args:
            values: float32 [n, K].
            reverse: blur along the directions in reverse order, which gives the exact adjoint: with gaps in the lattice, the
                order matters a little.
        """
        grid = _splat(np.ascontiguousarray(values, np.float32), self.corners, self.weights, self.size)
        self.blur(grid, np.empty_like(grid), reverse)
        return _slice(grid, self.corners, self.weights, self.gain)

    def blur(self, grid: Floats, spare: Floats, reverse: bool = False) -> None:
        """Blurs values of the lattice points [M + 1, K], whose row 0 is zero, in place and without the gain.

        Args:
            grid: float32 [M + 1, K].
            spare: a buffer like it, which is overwritten.
            reverse: as in `filter`.
        """
        _blur(grid, spare, self.neighbours, reverse)


def _base(features: Floats) -> int:
    """A base in which the first d coordinates of each lattice point make one number of 64 bits.

    With so many dimensions, or positions so far out, that 64 bits do not hold them, a multiplier that spreads them: then two points
    of a million are taken for one with a chance below one in ten million.
    """
    d = features.shape[1]
    farthest = math.sqrt(np.square(features, dtype=np.float64).sum(axis=1).max(initial=0))
    base = 2 * int((d + 1) * (math.sqrt(2 / 3) * farthest + 3)) + 1  # an isometry, then as far as the neighbours' neighbours
    return base if d * math.log2(base) < 63 else 6364136223846793005


@compiled
def _embed(features: Floats, base: int) -> tuple[Indices, Floats, Keys, Indices]:
    """Finds each point's simplex: corners [n, d + 1], weights [n, d + 1], the corners' keys [M + 1] and their hash table.

    The key of a lattice point is its first d coordinates read as the digits of a number in `base`.
    """
    n, d = features.shape
    corners, weights = np.empty((n, d + 1), np.int32), np.empty((n, d + 1), np.float32)
    keys, table = np.empty(1 << 15, np.uint64), np.zeros(1 << 16, np.int32)
    count = 0
    scale, digit = np.empty(d, np.float32), np.empty(d + 1, np.uint64)
    step, power = np.uint64(0), np.uint64(1)
    for i in range(d):  # the basis of the plane that the lattice lies in, with the blur's standard deviation (section 3)
        scale[i] = np.sqrt(2 / 3) * (d + 1) / np.sqrt((i + 1) * (i + 2))
        digit[i] = power
        step += power
        power *= np.uint64(base)
    digit[d] = 0
    raised, share = np.empty(d + 1, np.float32), np.empty(d + 2, np.float32)
    rank, turned = np.empty(d + 1, np.int64), np.empty(d + 1, np.int64)
    per = np.float32(1) / np.float32(d + 1)
    for p in range(n):
        total = np.float32(0)
        for i in range(d, 0, -1):
            part = features[p, i - 1] * scale[i - 1]
            raised[i] = total - np.float32(i) * part
            total += part
        raised[0] = total
        excess = np.int64(0)
        key = np.uint64(0)
        for i in range(d + 1):  # to the nearest point whose coordinates are multiples of d + 1
            near = np.rint(raised[i] * per)
            raised[i] -= near * np.float32(d + 1)
            excess += np.int64(near)
            key += digit[i] * np.uint64(np.int64(near) * (d + 1))
            rank[i] = 0
        for i in range(d):  # the rank of each coordinate by its distance from there, the greatest first
            for j in range(i + 1, d + 1):
                less = np.int64(raised[i] < raised[j])
                rank[i] += less
                rank[j] += 1 - less
        for i in range(d + 2):
            share[i] = 0
        for i in range(d + 1):
            at = rank[i] + excess  # back into the plane where rounding has left it
            turn = np.int64(at < 0) - np.int64(at > d)
            at += turn * (d + 1)
            key += digit[i] * np.uint64(turn * (d + 1))
            part = raised[i] * per - np.float32(turn)
            share[d - at] += part
            share[d - at + 1] -= part
            turned[at] = i
        share[0] += np.float32(1) + share[d + 1]
        for corner in range(d + 1):
            weights[p, corner] = share[corner]
            if corner:
                key += step - digit[turned[d + 1 - corner]] * np.uint64(d + 1)
            slot = _slot(keys, table, key)
            if table[slot] == 0:
                count += 1
                table[slot] = count
                keys[count] = key
                if count + 1 == len(keys):
                    keys, table = _grown(keys, len(table))
                    slot = _slot(keys, table, key)
            corners[p, corner] = table[slot]
    return corners, weights, keys[: count + 1], table


@compiled
def _slot(keys: Keys, table: Indices, key: np.uint64) -> np.int64:
    """Where the hash table holds the number of the point of `key`, or the free place where it belongs."""
    mask = len(table) - 1
    mixed = key * np.uint64(0x9E3779B97F4A7C15)
    slot = np.int64(mixed >> np.uint64(32)) & mask
    while table[slot] != 0 and keys[table[slot]] != key:
        slot = (slot + 1) & mask
    return slot


@compiled
def _grown(keys: Keys, capacity: int) -> tuple[Keys, Indices]:
    """Keys and hash table with twice the room; `keys` is full."""
    more, table = np.empty(2 * len(keys), np.uint64), np.zeros(2 * capacity, np.int32)
    for point in range(1, len(keys)):
        more[point] = keys[point]
        table[_slot(more, table, keys[point])] = point
    return more, table


@compiled
def _neighbours(keys: Keys, table: Indices, d: int, base: int) -> Indices:
    """Neighbours [d + 1, M + 1, 2] of the points of `keys` [M + 1]; 0 where there is none."""
    found = np.zeros((d + 1, len(keys), 2), np.int32)
    step, power = np.uint64(0), np.uint64(1)
    for _ in range(d):
        step += power
        power *= np.uint64(base)
    power = np.uint64(1)
    for direction in range(d + 1):
        change = (power * np.uint64(d + 1) if direction < d else np.uint64(0)) - step
        power *= np.uint64(base)
        for point in range(1, len(keys)):
            before = table[_slot(keys, table, keys[point] + change)]
            if before:
                found[direction, point, 0] = before
                found[direction, before, 1] = point
    return found


@compiled
def _splat(values: Floats, corners: Indices, weights: Floats, size: int) -> Floats:
    grid = np.zeros((size + 1, values.shape[1]), np.float32)
    for p in range(len(values)):
        for c in range(corners.shape[1]):
            point, weight = corners[p, c], weights[p, c]
            for k in range(values.shape[1]):
                grid[point, k] += weight * values[p, k]
    return grid


@compiled
def _slice(grid: Floats, corners: Indices, weights: Floats, gain: np.float32) -> Floats:
    values = np.zeros((len(corners), grid.shape[1]), np.float32)
    for p in range(len(values)):
        for c in range(corners.shape[1]):
            point, weight = corners[p, c], weights[p, c] * gain
            for k in range(values.shape[1]):
                values[p, k] += weight * grid[point, k]
    return values


@compiled
def _blur(grid: Floats, spare: Floats, neighbours: Indices, reverse: bool) -> None:
    """Adds to each lattice point half of its neighbours, along one direction after the other."""
    directions, size = len(neighbours), grid.shape[1]
    for k in range(size):
        spare[0, k] = 0
    for turn in range(directions):
        links = neighbours[directions - 1 - turn if reverse else turn]
        for point in range(1, len(grid)):
            before, after = links[point, 0], links[point, 1]
            for k in range(size):
                spare[point, k] = grid[point, k] + np.float32(0.5) * (grid[before, k] + grid[after, k])
        grid, spare = spare, grid
    if directions % 2:  # the result lies in the other buffer
        for point in range(len(grid)):
            for k in range(size):
                spare[point, k] = grid[point, k]
