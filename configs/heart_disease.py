"""UCI heart disease: four real hospitals on four width budgets, one federation.

    export FAIRJAX_DATA_DIR=...   # or let the official files be downloaded
    .venv/bin/python scripts/train.py --config=configs/heart_disease.py --workdir=runs/heart

Preset "flamby" takes FLamby's records and split. A run takes about 15 s on 2 CPU cores.
README.md has the AUROC of both, beside that of a logistic regression on all records.
"""

from configs import default


def get_config(preset: str = ""):
    """All 920 records; presets "flamby" and "smoke"."""
    c = default.get_config()
    c.data.name = "heart_disease"
    c.data.partition.name = "natural"
    # A hospital has 20 to 220 records. Without small steps and a strong weight decay
    # the model overfits.
    c.local.learning_rate = 0.03
    c.local.weight_decay = 0.1
    return default.preset(c, preset, flamby={"data.name": "heart_disease/flamby"})
