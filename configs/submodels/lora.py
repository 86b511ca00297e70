"""LoRA of four ranks beside the frozen kernels of a small network; embedded data.

    .venv/bin/python scripts/train.py --config=configs/submodels/lora.py --workdir=runs/lora

About 15 s on 2 CPU cores. Shows tiers that differ in rank alone: what they send grows
with it, while every one of them computes the whole forward pass.

There is no preset "published": Cho et al. 2024 tune language models of billions of
parameters, and of neither theirs nor raFLoRA is code known from which a recipe could be
read.
"""

from configs import default


def get_config(preset: str = ""):
    """Ranks 2, 4, 6 and 8 from random weights; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.submodel.name = "lora"
    return default.preset(c, preset)
