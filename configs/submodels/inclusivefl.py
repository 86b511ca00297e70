"""InclusiveFL: poorer hospitals keep the first blocks, the last of which is their own.

    .venv/bin/python scripts/train.py --config=configs/submodels/inclusivefl.py --workdir=runs/inclusivefl

Seconds on 2 CPU cores. Shows sub-models of different depth with one exit each, whose
last blocks learn from the deeper ones of the next richer tier.
"""

from configs import default


def get_config(preset: str = ""):
    """Four depths, momentum distillation; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.data.name = "breast_cancer"
    c.model.name = "resmlp"
    c.model.resmlp.width = 32
    c.model.resmlp.hidden = 32
    c.model.resmlp.depth = 4
    c.submodel.name = "inclusivefl"
    c.local.learning_rate = 0.05
    return default.preset(c, preset)
