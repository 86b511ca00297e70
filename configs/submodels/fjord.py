"""FjORD on breast cancer: every step trains one of the nested widths.

    .venv/bin/python scripts/train.py --config=configs/submodels/fjord.py --workdir=runs/fjord

About 15 s on 2 CPU cores; pooled test accuracy about 0.94 at every width: no tier's
sub-model falls behind.

Preset "published" is the recipe of the authors' Flower baseline (Horvath et al. 2021)
for CIFAR-10, with distillation. It needs hours on a GPU and does not claim to reproduce
the paper's figures. Other data:
--config=configs/submodels/fjord.py:published --config.data.name=digits
"""

from configs import default

PUBLISHED = {
    # Lines of baselines/fjord/ in adap/flower, commit fdef7af; common.yaml is
    # fjord/conf/common.yaml.
    "rounds": 500,  # common.yaml 26
    "clients_per_round": 10,  # common.yaml 23
    "data.name": "cifar10",  # common.yaml 8
    "data.augment": ("crop", "flip"),  # fjord/dataset.py 120-121
    "data.partition.name": "iid",  # randomised sequential split: README.md 43
    "data.partition.num_clients": 100,  # common.yaml 9
    "data.partition.val_fraction": 0.0,  # none there
    "model.name": "resnet",
    "model.resnet.channels": (64, 128, 256, 512),  # fjord/models.py 112-115
    "model.resnet.blocks": (2, 2, 2, 2),  # fjord/models.py 166
    "model.resnet.activation": "post",  # fjord/models.py 79-87
    "model.resnet.norm": "batch",  # fjord/models.py 44
    # Moments keep their default, "static": pooled for every width by itself. The code has
    # running moments of every width.
    "submodel.fjord.distill": True,  # conf/train_mode/fjord_kd.yaml 6
    "tiers.budget": (0.2, 0.4, 0.6, 0.8, 1.0),  # common.yaml 33-38
    "tiers.proportions": (1.0, 1.0, 1.0, 1.0, 1.0),  # common.yaml 39
    "local.epochs": 1,  # common.yaml 27
    "local.batch_size": 32,  # common.yaml 15
    "local.optimizer": "sgd",  # common.yaml 18
    "local.learning_rate": 0.1,  # common.yaml 16
    "local.schedule": "constant",  # common.yaml 17
    "local.momentum": 0.0,  # common.yaml 19
    "local.weight_decay": 1e-4,  # common.yaml 21
    "fairness.rule": "size",  # fjord/strategy.py 42-71
    "eval_every": 10,  # common.yaml 12
    "checkpoint.every": 10,  # ours
}


def get_config(preset: str = ""):
    """Ordered dropout with self-distillation; presets "published" and "smoke"."""
    c = default.get_config()
    c.submodel.name = "fjord"
    return default.preset(c, preset, published=PUBLISHED)
