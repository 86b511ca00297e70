"""Vision transformers of the paper on blood cells: tiny, small, base and 1B.

    export FAIRJAX_DATA_DIR=...   # the folder of pbc_blood28.npz
    .venv/bin/python scripts/train.py --config=configs/vit.py --workdir=runs/vit

All presets but "smoke" need a GPU: the sizes have 5, 21, 85 and 1,259 million
parameters, and every client that trains at the same time has a copy. MedMNIST's pictures
of 224 x 224, cut into the paper's patches, are configs/paper/blood_cells.py:vit_tiny.
"""

from configs import default
from configs.paper import setting
from fairjax.models.vit import PRESETS


def get_config(preset: str = ""):
    """DynamicFL on ViT-tiny, 7:2:1; presets "small", "base", "1b" and "smoke".

    The settings are those of configs/paper/setting.py, not tuned here, with labels
    skewed by Dirichlet 0.5 and patches of 4 x 4 pixels. "smoke" trains two blocks of
    ViT-tiny for two rounds.
    """
    c = setting.get("pbc_blood28", "pbc_blood28", "dirichlet5")
    c.model.name = "vit"
    sizes = {
        name: {f"model.vit.{field}": value for field, value in size.items()}
        for name, size in PRESETS.items()
    }
    short = {"rounds": 2, "eval_every": 1, "clients_per_round": 3, "local.steps": 2}
    sizes["smoke"] = short | sizes["tiny"] | {"model.vit.depth": 2}
    for size in sizes.values():
        size["model.vit.patch"] = 4
    return default.preset(c, preset or "tiny", **sizes)
