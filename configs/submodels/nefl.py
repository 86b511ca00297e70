"""NeFL: narrower and shorter residual networks, with step sizes per tier.

    .venv/bin/python scripts/train.py --config=configs/submodels/nefl.py --workdir=runs/nefl

About a minute on 2 CPU cores. Shows what poor tiers gain from norms and step sizes
that are averaged inside a tier alone.

Preset "published" is the recipe of Kang et al. 2023 for NeFL-WD on ResNet-18 and
CIFAR-10, by their released code and its page (honggkang.github.io/nefl/details.html). It
needs hours on a GPU and does not claim to reproduce the paper's figures. It differs in
these points: weights start at random, where the code by default starts from ImageNet;
tiers do not jitter by two. Other data:
--config=configs/submodels/nefl.py:published --config.data.name=digits
"""

from configs import default

PUBLISHED = {
    # Lines of honggkang/nested-federated-learning, commit 7a96913.
    "rounds": 500,  # NeFL-toy.py 38
    "clients_per_round": 10,  # a tenth of 100: NeFL-toy.py 34
    "data.name": "cifar10",  # README.md 15
    "data.augment": ("crop", "flip"),  # utils/getData.py 210-211
    "data.partition.name": "iid",  # NeFL-toy.py 31
    "data.partition.num_clients": 100,  # NeFL-toy.py 30
    "data.partition.val_fraction": 0.0,  # none there
    "model.name": "resnet",
    "model.resnet.channels": (64, 128, 256, 512),
    "model.resnet.blocks": (2, 2, 2, 2),  # models/resnet.py 48
    "model.resnet.activation": "post",  # models/blocks.py 233-238
    "model.resnet.norm": "batch",  # models/blocks.py 208
    "model.resnet.moments": "per_tier",  # NeFL-toy.py 132-136
    "submodel.nefl.width": (0.34, 0.4, 0.6, 0.8, 1.0),  # utils/getData.py 480
    "submodel.nefl.dropped": (1, 0, 0, 0, 0),  # utils/getData.py 481-487
    "tiers.budget": (0.2, 0.4, 0.6, 0.8, 1.0),  # of the parameters: NeFL-toy.py 63
    "tiers.proportions": (1.0, 1.0, 1.0, 1.0, 1.0),  # NeFL-toy.py 290
    "local.epochs": 5,  # NeFL-toy.py 39
    "local.batch_size": 32,  # NeFL-toy.py 36
    "local.optimizer": "sgd",  # utils/fed.py 64
    "local.learning_rate": 0.1,  # NeFL-toy.py 41
    "local.schedule": "steps",  # NeFL-toy.py 271-274
    # Halfway and at three quarters, before rounds 250 and 375: NeFL-toy.py 271-274.
    "local.milestones": (249, 374),
    "local.decay_rate": 0.1,  # NeFL-toy.py 272
    "local.momentum": 0.0,  # NeFL-toy.py 37
    "local.weight_decay": 0.0,  # NeFL-toy.py 42
    "fairness.rule": "uniform",  # utils/NeFedAvg.py
    "eval_every": 10,  # NeFL-toy.py 316
    "checkpoint.every": 10,  # ours
}


def get_config(preset: str = ""):
    """Four widths, three depths; presets "published" and "smoke"."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.model.name = "resmlp"
    c.model.resmlp.width = 32
    c.model.resmlp.hidden = 32
    c.submodel.name = "nefl"
    c.submodel.nefl.width = (0.4, 0.6, 0.8, 1.0)
    c.submodel.nefl.dropped = (2, 1, 1, 0)
    c.local.learning_rate = 0.05
    return default.preset(c, preset, published=PUBLISHED)
