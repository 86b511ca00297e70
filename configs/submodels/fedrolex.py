"""FedRolex on digits: a window that rolls through every layer, under label skew.

    .venv/bin/python scripts/train.py --config=configs/submodels/fedrolex.py --workdir=runs/fedrolex

About a minute on 2 CPU cores; pooled test accuracy about 0.94 of the full model, above
HeteroFL's. The narrow sub-models change in every round and are much worse: 0.35 and 0.73
at a quarter and half the width.

Preset "published" is the recipe of Alam et al. 2022 for CIFAR-10 with two classes per
hospital, by the README of their released code. It needs hours on a GPU and does not claim
to reproduce the paper's figures. It differs in the tiers, which are fixed; the code draws
them anew every round. Other data:
--config=configs/submodels/fedrolex.py:published --config.data.name=digits
"""

from configs import default

RECIPE = {
    # Lines of AIoT-MLSys-Lab/FedRolex, commit 8135109. Federated Dropout is --algo random
    # of the same command.
    "rounds": 3200,  # README.md 43
    "clients_per_round": 10,  # a tenth of 100: README.md 40
    "data.name": "cifar10",
    "data.augment": ("crop", "flip"),  # data.py, fetch_dataset
    "data.partition.name": "shards",  # like HeteroFL, whose code this code extends
    "data.partition.num_clients": 100,  # README.md 40
    "data.partition.shards": 2,  # non-iid-2: README.md 40
    "data.partition.val_fraction": 0.0,  # none there
    "model.name": "resnet",
    "model.resnet.channels": (64, 128, 256, 512),  # utils.py 155
    "model.resnet.blocks": (2, 2, 2, 2),  # models/resnet.py, resnet18
    "model.resnet.activation": "pre",  # models/resnet.py, Block
    "model.resnet.norm": "batch",  # README.md 40
    # Moments keep their default, "static"; the code takes those of the test batch.
    "tiers.budget": (0.0625, 0.125, 0.25, 0.5, 1.0),  # utils.py 121
    "tiers.proportions": (1.0, 1.0, 1.0, 1.0, 1.0),  # a1-b1-c1-d1-e1: README.md 40
    "local.epochs": 1,  # README.md 44
    "local.batch_size": 10,  # utils.py 198
    "local.optimizer": "sgd",  # utils.py 185
    "local.learning_rate": 2e-4,  # README.md 45
    "local.schedule": "steps",  # utils.py 190
    # 1200 in README.md 46; the code steps before the round (main_resnet.py 125).
    "local.milestones": (1199,),
    "local.decay_rate": 0.25,  # utils.py 191
    "local.momentum": 0.9,  # utils.py 187
    "local.weight_decay": 1e-3,  # utils.py 189
    "local.max_grad_norm": 1.0,  # resnet_client.py 71
    "fairness.rule": "uniform",  # weighting "avg": main_resnet.py 37, resnet_server.py 182
    "eval_every": 50,  # ours, like the next line
    "checkpoint.every": 50,
}
PUBLISHED = RECIPE | {
    "submodel.fedrolex.scaler": True,  # README.md 40
    "submodel.fedrolex.masked_loss": True,  # README.md 40
    # Without overlap: one unit per round, as without --overlap (main_resnet.py 41).
}


def get_config(preset: str = ""):
    """Rolling widths of a small CNN; presets "published" and "smoke"."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.data.partition.num_clients = 10
    c.model.name = "cnn"
    c.local.learning_rate = 0.1
    c.submodel.name = "fedrolex"
    return default.preset(c, preset, published=PUBLISHED)
