"""Generators are NumPy's Philox with the digest of what they are for as the key."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtile.data.rng import digest, generator, torch_seed


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10**9), st.text(max_size=8))
def test_a_generator_draws_what_numpys_own_does_with_the_same_key(seed, index, operation):
    own, numpys = generator(seed, index, operation), np.random.Generator(np.random.Philox(key=digest(seed, index, operation)))
    assert own.integers(2**63, size=5).tolist() == numpys.integers(2**63, size=5).tolist()
    assert own.standard_normal(3).tolist() == numpys.standard_normal(3).tolist()


def test_seed_index_and_operation_count_and_nothing_runs_together():
    drawn = [generator(*key).random() for key in ((1, 2, "a"), (2, 2, "a"), (1, 3, "a"), (1, 2, "b"), (12, 0, "a"), (1, 20, "a"))]
    assert len(set(drawn)) == len(drawn)


def test_seeds_for_torch_are_the_first_63_bits():
    found = [torch_seed(seed, "dropout") for seed in range(200)]
    assert found == [digest(seed, "dropout") // 2**65 for seed in range(200)]
    assert 2**62 < max(found) < 2**63
