"""Federated Dropout on digits: random subsets of every layer, under label skew.

    .venv/bin/python scripts/train.py --config=configs/submodels/federated_dropout.py --workdir=runs/federated_dropout

About a minute on 2 CPU cores; pooled test accuracy about 0.92 of the full model. The
narrow sub-models change in every round and are much worse than HeteroFL's: 0.33 and
0.68 at a quarter and half the width.

Preset "published" is the recipe of Alam et al. 2022 for this baseline on CIFAR-10, by
the README of FedRolex's released code, which also gives tiers and options (Caldas et al.
2018 have one share for all clients, and no code). It needs hours on a GPU and does not
claim to reproduce the paper's figures. It differs in the tiers, which are fixed; the
code draws them anew every round. Other data:
--config=configs/submodels/federated_dropout.py:published --config.data.name=digits
"""

from configs import default
from configs.submodels import fedrolex

PUBLISHED = fedrolex.RECIPE | {
    # Lines of AIoT-MLSys-Lab/FedRolex, commit 8135109.
    "submodel.federated_dropout.shared": False,  # every client: resnet_server.py 225
    "submodel.federated_dropout.scaler": True,  # README.md 40
    "submodel.federated_dropout.masked_loss": True,  # README.md 40
}


def get_config(preset: str = ""):
    """Random widths of a small CNN; presets "published" and "smoke"."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.data.partition.num_clients = 10
    c.model.name = "cnn"
    c.local.learning_rate = 0.1
    c.submodel.name = "federated_dropout"
    return default.preset(c, preset, published=PUBLISHED)
