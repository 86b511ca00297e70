"""Federated Dropout on digits: random subsets of every layer, under label skew.

    .venv/bin/python scripts/train.py --config=configs/submodels/federated_dropout.py --workdir=runs/federated_dropout

About a minute on 2 CPU cores; pooled test accuracy about 0.92 of the full model. The
narrow sub-models are new in every round and much worse than HeteroFL's: 0.33 and 0.68
at a quarter and half the width.
"""

from configs import default


def get_config(preset: str = ""):
    """Random widths of a small CNN; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.data.partition.num_clients = 10
    c.model.name = "cnn"
    c.local.learning_rate = 0.1
    c.submodel.name = "federated_dropout"
    return default.preset(c, preset)
