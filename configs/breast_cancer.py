"""Breast cancer (569 biopsies) at eight hospitals on four width budgets; embedded data.

    .venv/bin/python scripts/train.py --config=configs/breast_cancer.py --workdir=runs/demo

A run takes about 15 s on 2 CPU cores; README.md has the AUROC.
"""

from configs import default


def get_config(preset: str = ""):
    """The demo; preset "smoke" runs 2 rounds."""
    return default.preset(default.get_config(), preset)
