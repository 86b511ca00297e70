"""Narrow, short and whole sub-models in one federation, the richest with branches.

    .venv/bin/python scripts/train.py --config=configs/submodels/mixed.py --workdir=runs/mixed

About half a minute on 2 CPU cores. Tier 0 is narrow, tier 1 is short, tier 2 trains the
plain model, and tier 3 trains it with branches of DynamicFL.

There is no preset "published": the method is ours.
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
    c.submodel.name = "mixed"
    c.submodel.mixed.kinds = ("width", "depth", "plain", "plain")
    c.tiers.budget = (0.25, 0.5, 1.0, 1.0)
    c.tiers.branches = (0, 0, 0, 2)
    c.local.learning_rate = 0.05
    return default.preset(c, preset)
