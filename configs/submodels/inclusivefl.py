"""InclusiveFL: poorer hospitals train the first blocks and own the last of these.

    .venv/bin/python scripts/train.py --config=configs/submodels/inclusivefl.py --workdir=runs/inclusivefl

Seconds on 2 CPU cores. Sub-models of different depth have one exit each, and their last
blocks learn from the deeper ones of the next richer tier.

Preset "published" is the recipe of Liu et al. 2022 as far as fairjax can run it, by their
released code. It needs hours on a GPU and does not claim to reproduce the paper's figures.
It differs in these points: the paper tunes a pretrained RoBERTa on language tasks (GLUE),
and here a ViT with blocks of the same number and width learns CIFAR-10 from random
weights; the code steps one AdamW per tier at the server, along gradients, and here
hospitals step Adam. Other data:
--config=configs/submodels/inclusivefl.py:published --config.data.name=digits
"""

from configs import default

PUBLISHED = {
    # Lines of InclusiveFL/run_fl.py in Rachelxuan11/InclusiveFL, commit 79a76d2, unless noted.
    "rounds": 1000,  # 170
    "clients_per_round": 20,  # 0.02 of 1000: 168
    "data.name": "cifar10",  # ours, for SST-2: README.md 9
    "data.partition.name": "iid",  # 455-457
    "data.partition.num_clients": 1000,  # 167
    "model.name": "vit",
    "model.vit.width": 768,  # roberta-base, like depth, heads and ratio: README.md 9
    "model.vit.depth": 12,  # 161
    "model.vit.heads": 12,
    "model.vit.ratio": 4,
    "model.vit.patch": 4,  # ours: 64 tokens of 32 x 32 pictures, there 128 of a text
    "submodel.inclusivefl.stages": (4, 8, 12),  # 161
    "submodel.inclusivefl.beta": 0.2,  # README.md 9
    "tiers.budget": (0.333, 0.667, 1.0),  # labels only: stages decide
    "tiers.proportions": (1.0, 1.0, 1.0),  # 212
    "local.epochs": 1,  # 542: one pass of a round's records
    "local.batch_size": 64,  # 132
    "local.optimizer": "adam",  # AdamW, at the server: server.py 46
    "local.learning_rate": 5e-5,  # in two tiers; the smallest has 2e-4: 145
    # Linear, 120, but over as many steps as a round has records. The code takes one of
    # them a round (server.py 50-57, 70), so the rate does not fall. No warm-up: 151.
    "local.schedule": "constant",
    "local.warmup": 0,
    "local.weight_decay": 0.0,  # 148
    "fairness.rule": "size",  # 516
    "eval_every": 20,  # ours, like the next line
    "checkpoint.every": 20,
}


def get_config(preset: str = ""):
    """Four depths, momentum distillation; presets "published" and "smoke"."""
    c = default.get_config()
    c.data.name = "breast_cancer"
    c.model.name = "resmlp"
    c.model.resmlp.width = 32
    c.model.resmlp.hidden = 32
    c.model.resmlp.depth = 4
    c.submodel.name = "inclusivefl"
    c.local.learning_rate = 0.05
    return default.preset(c, preset, published=PUBLISHED)
