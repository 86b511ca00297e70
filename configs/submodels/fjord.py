"""FjORD on breast cancer: every step trains one of the nested widths.

    .venv/bin/python scripts/train.py --config=configs/submodels/fjord.py --workdir=runs/fjord

About 15 s on 2 CPU cores; pooled test accuracy about 0.94 at every width: no tier's own
sub-model is behind.
"""

from configs import default


def get_config(preset: str = ""):
    """Ordered dropout with self-distillation; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.submodel.name = "fjord"
    return default.preset(c, preset)
