"""ScaleFL: poorer hospitals keep a narrower and shorter residual network with exits.

    .venv/bin/python scripts/train.py --config=configs/submodels/scalefl.py --workdir=runs/scalefl

About a minute on 2 CPU cores. Shows both cuts in one tier, the deepest exit teaching the others after 12 rounds.
"""

from configs import default


def get_config(preset: str = ""):
    """Four widths and depths; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.model.name = "resmlp"
    c.model.resmlp.width = 32
    c.model.resmlp.hidden = 32
    c.submodel.name = "scalefl"
    c.local.learning_rate = 0.05
    return default.preset(c, preset)
