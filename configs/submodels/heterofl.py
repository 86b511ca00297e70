"""HeteroFL on digits: width prefixes on four budgets, under label skew.

    .venv/bin/python scripts/train.py --config=configs/submodels/heterofl.py --workdir=runs/heterofl

About a minute on 2 CPU cores; pooled test accuracy about 0.92 of the full model and
0.65, 0.88, 0.92 of the three narrower ones. Preset "dynamic" draws tiers every round.

Preset "published" is the recipe of Diao, Ding and Tarokh 2021 for CIFAR-10 with two
classes per hospital, by their released code. It needs hours on a GPU and does not claim to
reproduce the paper's figures. Other data:
--config=configs/submodels/heterofl.py:published --config.data.name=digits
"""

from configs import default

PUBLISHED = {
    # Lines of src/ in diaoenmao/HeteroFL-Computation-and-Communication-Efficient-Federated-
    # Learning-for-Heterogeneous-Clients, commit cc40f3e.
    "rounds": 800,  # utils.py 185
    "clients_per_round": 10,  # a tenth of 100: config.yml 5-6
    "data.name": "cifar10",
    "data.augment": ("crop", "flip"),  # data.py 21-22
    "data.partition.name": "shards",  # data.py 79-110
    "data.partition.num_clients": 100,  # config.yml 5
    "data.partition.shards": 2,  # non-iid-2: README.md
    "data.partition.val_fraction": 0.0,  # none there
    "model.name": "resnet",
    "model.resnet.channels": (64, 128, 256, 512),  # utils.py 148
    "model.resnet.blocks": (2, 2, 2, 2),  # models/resnet.py 166
    "model.resnet.activation": "pre",  # models/resnet.py 44-50
    "model.resnet.norm": "batch",  # config.yml 10
    "model.resnet.moments": "static",  # train_classifier_fed.py 127-138
    "submodel.heterofl.dynamic": True,  # make.py 73
    "submodel.heterofl.scaler": True,  # config.yml 11
    "submodel.heterofl.masked_loss": True,  # config.yml 12
    "tiers.budget": (0.0625, 0.125, 0.25, 0.5, 1.0),  # e to a: utils.py 114
    "tiers.proportions": (1.0, 1.0, 1.0, 1.0, 1.0),  # a1-b1-c1-d1-e1: make.py 56-61
    "local.epochs": 5,  # utils.py 185
    "local.batch_size": 10,  # utils.py 186
    "local.optimizer": "sgd",  # utils.py 174
    "local.learning_rate": 0.1,  # utils.py 175
    "local.schedule": "steps",  # utils.py 178
    "local.milestones": (300, 500),  # utils.py 187
    "local.decay_rate": 0.1,  # utils.py 179
    "local.momentum": 0.9,  # utils.py 176
    "local.weight_decay": 5e-4,  # utils.py 177
    "local.max_grad_norm": 1.0,  # train_classifier_fed.py 205
    "fairness.rule": "uniform",  # fed.py, combine: every client counts once
    "eval_every": 20,  # ours, like the next line
    "checkpoint.every": 20,
}


def get_config(preset: str = ""):
    """Four static widths of a small CNN; presets "dynamic", "published", "smoke"."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.data.partition.num_clients = 10
    c.model.name = "cnn"
    c.local.learning_rate = 0.1
    c.submodel.name = "heterofl"
    return default.preset(
        c, preset, dynamic={"submodel.heterofl.dynamic": True}, published=PUBLISHED
    )
