"""Cancer slides (PathMNIST) as in Zhang et al. 2025: configs/paper/setting.py has the presets.

    .venv/bin/python scripts/prepare_data.py --name=pathmnist
    .venv/bin/python scripts/train.py --config=configs/paper/cancer_slides.py:ratio433 --workdir=runs/cancer_slides

The config is meant for one GPU, on which nobody has timed it yet; ":smoke" takes
seconds on a CPU.
The ViT sizes need 12 GB of pictures at 224 x 224.
"""

from configs.paper import setting


def get_config(preset: str = ""):
    """DynamicFL on ResNet-18 at 30 hospitals, 7:2:1; see configs/paper/setting.py."""
    return setting.get("pathmnist", "pathmnist/224", preset)
