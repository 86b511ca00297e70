"""A ladder of mixed kinds: narrow, short and whole sub-models in one federation.

    .venv/bin/python scripts/train.py --config=configs/submodels/ladder.py --workdir=runs/ladder

About a minute on 2 CPU cores. Shows a width tier, two depth tiers and a plain one side by side.
"""

from configs import default


def get_config(preset: str = ""):
    """One narrow, two short tiers and one whole; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.model.name = "resmlp"
    c.model.resmlp.width = 32
    c.model.resmlp.hidden = 32
    c.submodel.name = "ladder"
    c.submodel.ladder.kinds = ("width", "depth", "depth", "plain")
    c.local.learning_rate = 0.05
    return default.preset(c, preset)
