"""FedAvg on breast cancer: every hospital trains the whole model.

    .venv/bin/python scripts/train.py --config=configs/submodels/fedavg.py --workdir=runs/fedavg

About 15 s on 2 CPU cores; pooled test accuracy about 0.94. The baselines without shared
sub-models are --config.submodel.fedavg.mode=smallest, exclusive or decoupled.

Preset "published" is the recipe of McMahan et al. 2017 for CIFAR-10. It needs hours on a
GPU and does not claim to reproduce the paper's figures. It differs in these points:
images stay 32 x 32 and keep their contrast, and the network has no local response norms.
The paper tuned the learning rate and does not give it: 0.1 is that of the TensorFlow
tutorial that the network is from. Other data:
--config=configs/submodels/fedavg.py:published --config.data.name=digits
"""

from configs import default

PUBLISHED = {
    # The source is the paper's section 3, "CIFAR experiments", unless noted.
    "rounds": 2000,  # table 3
    "clients_per_round": 10,  # C = 0.1: table 3
    "data.name": "cifar10",
    "data.augment": ("crop", "flip"),
    "data.partition.name": "iid",
    "data.partition.num_clients": 100,
    "data.partition.val_fraction": 0.0,  # none there
    # The TensorFlow tutorial's two convolutions and two dense layers, cifar10.py.
    "model.name": "lenet",
    "model.lenet.channels": (64, 64),
    "model.lenet.hidden": (384, 192),
    "submodel.fedavg.mode": "full",
    "local.epochs": 5,  # E: table 3
    "local.batch_size": 50,  # B: table 3
    "local.optimizer": "sgd",  # algorithm 1
    "local.learning_rate": 0.1,  # the tutorial's INITIAL_LEARNING_RATE
    "local.schedule": "exponential",  # figure 4
    "local.decay_rate": 0.99,  # figure 4
    "local.momentum": 0.0,  # algorithm 1
    "local.weight_decay": 0.0,  # algorithm 1
    "fairness.rule": "size",  # algorithm 1
    "eval_every": 20,  # ours, like the next line
    "checkpoint.every": 20,
}


def get_config(preset: str = ""):
    """The upper bound of width methods; presets "published" and "smoke"."""
    c = default.get_config()
    c.submodel.name = "fedavg"
    return default.preset(c, preset, published=PUBLISHED)
