"""DepthFL: poorer hospitals keep the first exits of a residual network.

    .venv/bin/python scripts/train.py --config=configs/submodels/depthfl.py --workdir=runs/depthfl

About a minute on 2 CPU cores. Shows sub-models of different depth that answer alike
well, where narrow ones of the same budgets (configs/breast_cancer.py) fall behind.
"""

from configs import default


def get_config(preset: str = ""):
    """Four depths, exits that teach each other; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.model.name = "resmlp"
    c.model.resmlp.width = 32
    c.model.resmlp.hidden = 32
    c.submodel.name = "depthfl"
    c.submodel.depthfl.ramp = 20
    c.local.learning_rate = 0.05
    return default.preset(c, preset)
