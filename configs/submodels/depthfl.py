"""DepthFL: poorer hospitals train the first exits of a residual network.

    .venv/bin/python scripts/train.py --config=configs/submodels/depthfl.py --workdir=runs/depthfl

About a minute on 2 CPU cores. Sub-models of different depth reach similar accuracy,
where narrow ones of the same budgets (configs/breast_cancer.py) fall behind.

Preset "published" is the recipe of the Flower baseline by an author of Kim et al. 2023
for CIFAR-100. It needs hours on a GPU and does not claim to reproduce the paper's
figures. It differs in the exits: here an exit is a norm, a mean and a dense layer; the
baseline has convolutions and attention in front of them. Other data:
--config=configs/submodels/depthfl.py:published --config.data.name=digits
"""

from configs import default

PUBLISHED = {
    # Lines of baselines/depthfl/depthfl/ in adap/flower, commit fdef7af; config.yaml is
    # conf/config.yaml.
    "rounds": 1000,  # config.yaml 6
    "clients_per_round": 10,  # a tenth of 100: config.yaml 7
    "data.name": "cifar100",  # config.yaml 34
    "data.augment": ("crop", "flip"),  # dataset_preparation.py 22-23
    "data.partition.name": "iid",  # config.yaml 21
    "data.partition.num_clients": 100,  # config.yaml 3
    "data.partition.val_fraction": 0.0,  # none there
    "model.name": "resnet",
    "model.resnet.channels": (64, 128, 256, 512),  # resnet.py 159-248
    "model.resnet.blocks": (2, 2, 2, 2),  # multi_resnet18
    "model.resnet.activation": "post",  # resnet.py 109-125
    "model.resnet.norm": "batch",  # resnet.py 145
    # Moments keep their default, "static"; the code averages running ones.
    "submodel.depthfl.stages": (1, 2, 3, 4),  # main.py 48
    "submodel.depthfl.distill": True,  # config.yaml 26
    "submodel.depthfl.ramp": 300,  # client.py 85
    "submodel.depthfl.ensemble": True,  # models.py 214-215
    "submodel.depthfl.feddyn": 0.1,  # config.yaml 25, 27
    "tiers.budget": (0.25, 0.5, 0.75, 1.0),  # of the stages
    "tiers.proportions": (1.0, 1.0, 1.0, 1.0),  # main.py 48
    "local.epochs": 5,  # config.yaml 4
    "local.batch_size": 50,  # config.yaml 5
    "local.optimizer": "sgd",  # models.py 67
    "local.learning_rate": 0.1,  # config.yaml 8
    "local.schedule": "exponential",  # client.py 95
    "local.decay_rate": 0.998,  # config.yaml 9
    "local.momentum": 0.0,  # models.py 67
    "local.weight_decay": 1e-3,  # models.py 67
    "fairness.rule": "uniform",  # strategy.py 103-115
    "eval_every": 20,  # ours, like the next line
    "checkpoint.every": 20,
}


def get_config(preset: str = ""):
    """Four depths, exits that teach each other; presets "published" and "smoke"."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.model.name = "resmlp"
    c.model.resmlp.width = 32
    c.model.resmlp.hidden = 32
    c.submodel.name = "depthfl"
    c.submodel.depthfl.ramp = 20
    c.local.learning_rate = 0.05
    return default.preset(c, preset, published=PUBLISHED)
