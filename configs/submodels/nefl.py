"""NeFL: narrower and shorter residual networks, with step sizes of every tier's own.

    .venv/bin/python scripts/train.py --config=configs/submodels/nefl.py --workdir=runs/nefl

About a minute on 2 CPU cores. Shows what poor tiers gain from norms and step sizes that the others do not average.
"""

from configs import default


def get_config(preset: str = ""):
    """Four widths, three depths; preset "smoke" runs 2 rounds."""
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
    return default.preset(c, preset)
