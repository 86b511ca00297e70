"""Blood cells (BloodMNIST) as in Zhang et al. 2025: configs/paper/setting.py has the presets.

    .venv/bin/python scripts/prepare_data.py --name=bloodmnist
    .venv/bin/python scripts/train.py --config=configs/paper/blood_cells.py:ratio433 --workdir=runs/blood_cells

Meant for one GPU, on which it was not yet timed; ":smoke" takes seconds of a CPU.
--config.data.name=pbc_blood28 where only
that file is at hand.
"""

from configs.paper import setting


def get_config(preset: str = ""):
    """DynamicFL on ResNet-18 at 30 hospitals, 7:2:1; see configs/paper/setting.py."""
    return setting.get("bloodmnist", "bloodmnist/224", preset)
