"""FedRolex on digits: a window that rolls through every layer, under label skew.

    .venv/bin/python scripts/train.py --config=configs/submodels/fedrolex.py --workdir=runs/fedrolex

About a minute on 2 CPU cores; pooled test accuracy about 0.94 of the full model, above
HeteroFL's. The narrow sub-models are new in every round and much worse: 0.35 and 0.73
at a quarter and half the width.
"""

from configs import default


def get_config(preset: str = ""):
    """Rolling widths of a small CNN; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.data.partition.num_clients = 10
    c.model.name = "cnn"
    c.local.learning_rate = 0.1
    c.submodel.name = "fedrolex"
    return default.preset(c, preset)
