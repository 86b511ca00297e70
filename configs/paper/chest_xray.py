"""Chest X-rays (COVID-19 Radiography) as in Zhang et al. 2025: configs/paper/setting.py has the presets.

    .venv/bin/python scripts/prepare_data.py --name=covid_radiography
    .venv/bin/python scripts/train.py --config=configs/paper/chest_xray.py:ratio433 --workdir=runs/chest_xray

The config is meant for one GPU, on which nobody has timed it yet; ":smoke" takes
seconds on a CPU.
Kaggle has the pictures; fairjax does not download them.
"""

from configs.paper import setting


def get_config(preset: str = ""):
    """DynamicFL on ResNet-18 at 30 hospitals, 7:2:1; see configs/paper/setting.py."""
    c = setting.get("covid_radiography", "covid_radiography/224", preset)
    c.data.partition.test_fraction = 0.2
    return c
