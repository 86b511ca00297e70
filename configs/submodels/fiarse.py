"""FIARSE on breast cancer: every tier trains the largest weights.

    .venv/bin/python scripts/train.py --config=configs/submodels/fiarse.py --workdir=runs/fiarse

About 15 s on 2 CPU cores; pooled test accuracy about 0.92 of every tier's sub-model, the
smallest of 42 parameters. Budgets are shares of the parameters: FIARSE's five tiers.
"""

from configs import default


def get_config(preset: str = ""):
    """Importance masks; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.submodel.name = "fiarse"
    c.tiers.budget = (0.04, 0.16, 0.36, 0.64, 1.0)
    c.tiers.share = (1.0, 1.0, 1.0, 1.0, 1.0)
    return default.preset(c, preset)
