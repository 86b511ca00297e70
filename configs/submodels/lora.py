"""LoRA with four ranks beside the frozen kernels of a small network; embedded data.

    .venv/bin/python scripts/train.py --config=configs/submodels/lora.py --workdir=runs/lora

About 15 s on 2 CPU cores. Tiers differ in rank alone: their uploads grow with the rank,
while every tier computes the whole forward pass.

There is no preset "published": Cho et al. 2024 tune language models of billions of
parameters, and we know of no released code of HetLoRA or raFLoRA that gives a recipe.
"""

from configs import default


def get_config(preset: str = ""):
    """Ranks 2, 4, 6 and 8 from random weights; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.submodel.name = "lora"
    return default.preset(c, preset)
