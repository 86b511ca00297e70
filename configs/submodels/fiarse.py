"""FIARSE on breast cancer: every tier trains the largest weights.

    .venv/bin/python scripts/train.py --config=configs/submodels/fiarse.py --workdir=runs/fiarse

About 15 s on 2 CPU cores; pooled test accuracy about 0.92 of every tier's sub-model, the
smallest of which has 42 parameters. Budgets are shares of the parameters, those of
FIARSE's five tiers.

Preset "published" is the recipe of Wu et al. 2024 for CIFAR-10 with four sizes, by the
README of their released code. It needs hours on a GPU and does not claim to reproduce the
paper's figures. It differs in the partition: hospitals differ in size too, where the
released code gives all one size. Other data:
--config=configs/submodels/fiarse.py:published --config.data.name=digits
"""

from configs import default

PUBLISHED = {
    # Lines of HarliWu/FIARSE, commit 281519c; README.md 21 is one command.
    "rounds": 800,  # --T: README.md 21
    "clients_per_round": 10,  # --num-part: README.md 21
    "data.name": "cifar10",
    "data.augment": ("crop", "flip"),  # data/cifar10/data.py 37-38
    "data.partition.name": "dirichlet",  # "balanced": README.md 21
    "data.partition.num_clients": 100,  # --num-workers: README.md 21
    "data.partition.alpha": 0.3,  # README.md 21
    "data.partition.val_fraction": 0.0,  # none there
    "model.name": "resnet",
    "model.resnet.channels": (64, 128, 256, 512),
    # BetaResNet18_sbn of fiarse/model/cifar10/model.py
    "model.resnet.blocks": (2, 2, 2, 2),
    "model.resnet.activation": "post",  # fiarse/model/resnet_masked.py, MaskedBasicBlock
    "model.resnet.norm": "batch",  # BetaResNet18_sbn: README.md 21
    # Moments keep their default, "static"; the code takes those of the test batch.
    "submodel.fiarse.layerwise": False,  # folder fiarse/, not fiarse_layerwise/
    "tiers.budget": (0.015625, 0.0625, 0.25, 1.0),  # --model-size: README.md 21
    "tiers.proportions": (1.0, 1.0, 1.0, 1.0),  # --model-dist 25 25 25 25: README.md 21
    "local.steps": 100,  # --K: README.md 21
    "local.batch_size": 20,  # --bsz: README.md 21
    "local.optimizer": "sgd",  # fiarse/worker.py, local_training
    "local.learning_rate": 0.1,  # 10 to the power of --lr: README.md 21
    "local.schedule": "constant",  # nothing reads --lr-diminish
    "local.momentum": 0.0,  # fiarse/worker.py, local_training
    "local.weight_decay": 0.0,  # fiarse/worker.py, local_training
    "server.learning_rate": 1.0,  # fiarse/add_parser_arguments.py 6
    "fairness.rule": "uniform",  # fiarse/server.py 67-80
    "eval_every": 20,  # fiarse/add_parser_arguments.py 21
    "checkpoint.every": 20,  # ours
}


def get_config(preset: str = ""):
    """Importance masks; presets "published" and "smoke"."""
    c = default.get_config()
    c.submodel.name = "fiarse"
    c.tiers.budget = (0.04, 0.16, 0.36, 0.64, 1.0)
    c.tiers.proportions = (1.0, 1.0, 1.0, 1.0, 1.0)
    return default.preset(c, preset, published=PUBLISHED)
