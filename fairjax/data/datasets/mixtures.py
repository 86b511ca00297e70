"""A synthetic set: ten classes of thirty Gaussians each, 64 numbers a record.

    m_ck ~ N(0, I_16),  z = m_ck + SPREAD e,  e ~ N(0, I_16),  x = tanh(z A),

where k is uniform over the Gaussians of class c, and A [16, 64] has entries
N(0, 1 / 16).
"""

import numpy as np

from fairjax.data.table import TEST, TRAIN, Table

SOURCE = "drawn by fairjax (data/datasets/mixtures.py, seed 0); no record is a person's"
CLASSES = 10
GAUSSIANS = 30
"""Gaussians of every class."""
HIDDEN = 16
FEATURES = 64
RECORDS = {TRAIN: 1000, TEST: 200}
"""Records of every class."""
SPREAD = 0.45
"""Standard deviation within a Gaussian; that of the centres is 1."""


def load() -> Table:
    """Draws 10,000 training and 2,000 test records, the same ones at every call.

    Both splits come from the same Gaussians and have equal numbers of every class,
    class after class. The table names no client.
    """
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(CLASSES, GAUSSIANS, HIDDEN))
    mix = rng.normal(size=(HIDDEN, FEATURES)) / np.sqrt(HIDDEN)
    y = np.concatenate([np.repeat(np.arange(CLASSES), n) for n in RECORDS.values()])
    split = np.repeat(list(RECORDS), [CLASSES * n for n in RECORDS.values()])
    z = centre[y, rng.integers(GAUSSIANS, size=len(y))]
    z += SPREAD * rng.normal(size=z.shape)
    return Table(
        name="mixtures",
        x=np.tanh(z @ mix).astype(np.float32),
        y=y.astype(np.int32),
        split=split.astype(np.int8),
        classes=tuple(str(label) for label in range(CLASSES)),
        source=SOURCE,
    )
