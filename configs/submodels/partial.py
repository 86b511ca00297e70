"""Partial training: every hospital runs the whole model and trains its last blocks.

    .venv/bin/python scripts/train.py --config=configs/submodels/partial.py --workdir=runs/partial

About a minute on 2 CPU cores. Training and uploads shrink with the budget, while every
hospital receives and deploys the whole model.

There is no preset "published": Sidahmed et al. 2021 have no tiers and released no code
that gives a recipe.
"""

from configs import default


def get_config(preset: str = ""):
    """Four shares of the blocks, from the head down; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.model.name = "resmlp"
    c.model.resmlp.width = 32
    c.model.resmlp.hidden = 32
    c.submodel.name = "partial"
    c.local.learning_rate = 0.05
    return default.preset(c, preset)
