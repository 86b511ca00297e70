"""Small random records that the tests of this folder share."""

import hypothesis.strategies as st
import numpy as np
from hypothesis.extra.numpy import arrays

E, SEGMENTS = 40, 4

tied = arrays(np.int8, E, elements=st.integers(-2, 2)).map(np.float32)
positives = arrays(bool, E)
segments = arrays(np.int32, E, elements=st.integers(-1, SEGMENTS - 1))
weights = st.integers(0, 2**32 - 1).map(
    lambda seed: (
        np.random.default_rng(seed).multinomial(E, np.ones(E) / E).astype(np.int32)
    )
)
"""How often a resample of E records contains each of them."""


def parts(segment, n=SEGMENTS):
    """The records of every segment; those of segment -1 are in none."""
    return [segment == s for s in range(n)]
