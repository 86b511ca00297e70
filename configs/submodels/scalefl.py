"""ScaleFL: poorer hospitals train a narrower and shorter network with exits.

    .venv/bin/python scripts/train.py --config=configs/submodels/scalefl.py --workdir=runs/scalefl

About a minute on 2 CPU cores. Every tier is cut in width and depth, and its deepest exit
teaches the others after 12 rounds.

Preset "published" is the recipe of Ilhan, Su and Liu 2023 for ResNet-110 on CIFAR-10, by
their released code. It needs hours on a GPU and does not claim to reproduce the paper's
figures. It differs in these points: an exit is at the end of each of three stages, so
that the two richest tiers differ in width alone (the code has exits after 30, 38, 46 and
all 54 blocks, with convolutions in front of each head); the partition does not level
sizes. The code does not give the number of rounds: 300 is ours. gamma keeps its default:
the command for CIFAR-10 does not set it, so the code does not distil, but the method
does. Other data:
--config=configs/submodels/scalefl.py:published --config.data.name=digits
"""

from configs import default

PUBLISHED = {
    # Lines of git-disl/scale-fl, commit c2084e4.
    "rounds": 300,  # ours, after both milestones; 2 in args.py 107 is no recipe
    "clients_per_round": 10,  # a tenth of 100: args.py 109-112
    "data.name": "cifar10",
    "data.augment": ("crop", "flip"),  # data_tools/dataloader.py 37-38
    "data.partition.name": "dirichlet",  # data_tools/sampling.py
    "data.partition.num_clients": 100,  # args.py 109
    "data.partition.alpha": 100.0,  # args.py 113
    "data.partition.val_fraction": 0.0,  # none for CIFAR: data_tools/dataloader.py 162
    "model.name": "resnet",
    "model.resnet.channels": (16, 32, 64),  # models/resnet.py 159-164
    "model.resnet.blocks": (18, 18, 18),  # models/resnet.py 284
    "model.resnet.activation": "post",  # models/resnet.py 79-84
    "model.resnet.norm": "batch",  # models/resnet.py 63
    # Moments keep their default, "static"; the code takes those of the test batch.
    "submodel.scalefl.width": (0.7, 0.7, 0.75, 1.0),  # args.py 101
    "submodel.scalefl.exits": (1, 2, 3, 3),  # 1 to 4: args.py 103
    "submodel.scalefl.temperature": 3.0,  # args.py 97
    "submodel.scalefl.warmup": 0.25,  # train.py 47
    "tiers.budget": (0.25, 0.5, 0.75, 1.0),  # labels only: width and exits decide
    "tiers.proportions": (1.0, 1.0, 1.0, 1.0),  # args.py 105
    "local.epochs": 5,  # config.py 33
    "local.batch_size": 16,  # config.py 32
    "local.optimizer": "sgd",  # config.py 40
    "local.learning_rate": 0.1,  # config.py 34
    "local.schedule": "steps",  # config.py 35
    "local.milestones": (100, 200),  # config.py 37
    "local.decay_rate": 0.1,  # config.py 36
    "local.momentum": 0.9,  # config.py 39
    "local.weight_decay": 5e-4,  # config.py 38
    "fairness.rule": "uniform",  # fed.py 155-178
    "eval_every": 20,  # ours, like the next line
    "checkpoint.every": 20,
}


def get_config(preset: str = ""):
    """Four widths and depths; presets "published" and "smoke"."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.model.name = "resmlp"
    c.model.resmlp.width = 32
    c.model.resmlp.hidden = 32
    c.submodel.name = "scalefl"
    c.local.learning_rate = 0.05
    return default.preset(c, preset, published=PUBLISHED)
