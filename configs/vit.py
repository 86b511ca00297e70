"""Vision transformers of the paper on blood cells: tiny, small, base and 1B.

    export FAIRJAX_DATA_DIR=...   # the folder of pbc_blood28.npz
    .venv/bin/python scripts/train.py --config=configs/vit.py --workdir=runs/vit

Needs a GPU beyond "smoke": the sizes have 5, 21, 85 and 1,259 million parameters, of
which each client that is trained at the same time has a copy. Larger images are cut
into the paper's patches by --config.model.vit.patch=16, for example of MedMNIST's
224 x 224 files (--config.data.name=npz --config.data.path=bloodmnist_224.npz).
"""

from configs import default
from fairjax.models.vit import PRESETS


def get_config(preset: str = ""):
    """DynamicFL on ViT-tiny, 7:2:1; presets "small", "base", "1b" and "smoke".

    Sizes, rounds, epochs, batch, decay and learning rate are those of the code of Zhang
    et al. 2025, not tuned here; patches have 4 x 4 pixels. "smoke" is two rounds of two
    blocks of ViT-tiny.
    """
    c = default.get_config()
    c.rounds = 100
    c.eval_every = 10
    c.data.name = "pbc_blood28"
    c.data.partition.name = "dirichlet"
    c.data.partition.num_clients = 30
    c.model.name = "vit"
    c.submodel.name = "dynamicfl"
    c.tiers.budget = (1.0, 1.0, 1.0)
    c.tiers.branches = (0, 1, 2)
    c.tiers.share = (7.0, 2.0, 1.0)
    c.local.epochs = 5
    c.local.batch_size = 16
    c.local.learning_rate = 1e-3
    c.local.schedule = "cosine"
    c.local.weight_decay = 5e-4
    c.checkpoint.every = 10
    sizes = {
        name: {f"model.vit.{field}": value for field, value in size.items()}
        for name, size in PRESETS.items()
    }
    short = {"rounds": 2, "eval_every": 1, "cohort": 3, "local.steps": 2}
    sizes["smoke"] = short | sizes["tiny"] | {"model.vit.depth": 2}
    for size in sizes.values():
        size["model.vit.patch"] = 4
    return default.preset(c, preset or "tiny", **sizes)
