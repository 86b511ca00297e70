"""A ladder from narrow and short sub-models to the whole one and branches beside it.

    .venv/bin/python scripts/train.py --config=configs/submodels/ladder.py --workdir=runs/ladder

About half a minute on 2 CPU cores. Shows a width tier, a depth tier, a plain one and one with
branches of DynamicFL side by side.

There is no preset "published": the ladder is ours.
"""

from configs import default


def get_config(preset: str = ""):
    """A narrow, a short, a whole tier and a richer one; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.model.name = "resmlp"
    c.model.resmlp.width = 32
    c.model.resmlp.hidden = 32
    c.submodel.name = "ladder"
    c.submodel.ladder.kinds = ("width", "depth", "plain", "plain")
    c.tiers.budget = (0.25, 0.5, 1.0, 1.0)
    c.tiers.branches = (0, 0, 0, 2)
    c.local.learning_rate = 0.05
    return default.preset(c, preset)
