"""CIFAR-10, as in the released code of Zhang et al. 2025: configs/paper/setting.py has the presets.

    .venv/bin/python scripts/prepare_data.py --name=cifar10
    .venv/bin/python scripts/train.py --config=configs/paper/cifar10.py:ratio433 --workdir=runs/cifar10

The config is meant for one GPU, on which nobody has timed it yet; ":smoke" takes
seconds on a CPU.
The ViT sizes see 32 x 32 pictures in patches of 16.
"""

from configs.paper import setting


def get_config(preset: str = ""):
    """DynamicFL on ResNet-18 at 30 hospitals, 7:2:1; see configs/paper/setting.py."""
    return setting.get("cifar10", "cifar10", preset)
