"""HeteroFL on digits: width prefixes on four budgets, under label skew.

    .venv/bin/python scripts/train.py --config=configs/submodels/heterofl.py --workdir=runs/heterofl

About a minute on 2 CPU cores; pooled test accuracy about 0.92 of the full model and
0.65, 0.88, 0.92 of the three narrower ones. Preset "dynamic" draws tiers every round.
"""

from configs import default


def get_config(preset: str = ""):
    """Four static widths of a small CNN; presets "dynamic" and "smoke"."""
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.data.partition.num_clients = 10
    c.model.name = "cnn"
    c.local.learning_rate = 0.1
    c.submodel.name = "heterofl"
    return default.preset(c, preset, dynamic={"submodel.heterofl.dynamic": True})
