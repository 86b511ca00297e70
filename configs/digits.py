"""Handwritten digits (1,797 images of 8 x 8) at ten hospitals; the embedded image set.

    .venv/bin/python scripts/train.py --config=configs/digits.py --workdir=runs/digits

A run takes about a minute on 2 CPU cores; pooled test accuracy is about 0.9.
"""

from configs import default


def get_config(preset: str = ""):
    """A small CNN under label skew; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.data.partition.num_clients = 10
    c.model.name = "cnn"
    c.local.learning_rate = 0.1
    return default.preset(c, preset)
