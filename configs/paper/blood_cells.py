"""Blood cells (BloodMNIST) as in Zhang et al. 2025: configs/paper/setting.py has the presets.

    .venv/bin/python scripts/prepare_data.py --name=bloodmnist
    .venv/bin/python scripts/train.py --config=configs/paper/blood_cells.py:ratio433 --workdir=runs/blood_cells

The config is meant for one GPU, on which nobody has timed it yet; ":smoke" takes
seconds on a CPU.
--config.data.name=pbc_blood28 runs on that file where only it is at hand.
"""

from configs.paper import setting


def get_config(preset: str = ""):
    """DynamicFL on ResNet-18 at 30 hospitals, 7:2:1; see configs/paper/setting.py."""
    return setting.get("bloodmnist", "bloodmnist/224", preset)
