"""The setting of Zhang et al. 2025 for all data sets, as the released code has it.

Presets, joined by "+" after the colon, as in blood_cells.py:vit_tiny+ratio433+fedrolex:

    vit_tiny, vit_small, vit_base, vit_1b     in place of ResNet-18; 224 x 224 pictures
    ratio721, ratio523, ratio415, ratio433, ratio361    hospitals per tier, smallest first
    hospitals30, hospitals90, hospitals180, hospitals360
    dirichlet1 .. dirichlet9     labels skewed by Dirichlet 0.1 to 0.9 in place of iid
    overlap1 .. overlap9         the same by the law of the released code, for pictures
                                 that name no patients and fix a test split
    a name of configs/submodels  in place of dynamicfl
    smoke                        two rounds of a small model on embedded pictures, in seconds

For its table, the paper states neither the partition nor the number of hospitals, nor
which tier a ratio begins with. Hospitals of dynamicfl train the whole model, the richer
ones with 1 and 2 branches beside it. Methods of other families have tiers of a quarter,
a half and all of the model. They spend less, and the cost is printed beside their
results; `mixed` has tiers of both kinds. All methods have the learning rate and decay of
the released code; `scripts/sweep.py --grid=local.learning_rate=...` tunes them on the
validation split.

Rounds, epochs, batch, learning rate, schedule, decay and sizes are the released code's.
These settings differ from it:

    norms           group norms in place of batch norms (`model.resnet.norm=batch`)
    pictures        28 x 28 and not enlarged; no RandAugment
    normalisation   means and deviations of the training records in place of 0.5
    weights         by records (`fairness.rule=uniform` weights all hospitals equally)
    validation      10 % of the training records where the data fix no split
    branches        a number per layer, in place of a number of layers that grow
"""

from typing import Any

from configs import default
from fairjax.models.vit import PRESETS

RATIOS = ("721", "523", "415", "433", "361")
HOSPITALS = (30, 90, 180, 360)
BUDGETED = (
    "fedavg", "heterofl", "federated_dropout", "fedrolex", "fjord", "fiarse", "depthfl",
    "inclusivefl", "scalefl", "nefl", "lora", "partial",
)  # fmt: skip


WHOLE = {
    "submodel.name": "dynamicfl",
    "tiers.budget": (1.0, 1.0, 1.0),
    "tiers.branches": (0, 1, 2),
}
RECIPE = WHOLE | {
    # The lines are those of paridis-11/DynamicFL, commit 9ca373c.
    "rounds": 100,  # Args.py 15
    "data.augment": ("crop", "flip"),
    "data.partition.num_clients": 30,  # README.md 53
    "model.name": "resnet",
    "tiers.proportions": (7.0, 2.0, 1.0),  # README.md 87
    "local.epochs": 5,  # Args.py 17
    "local.batch_size": 16,  # Args.py 52
    "local.optimizer": "sgd",  # Args.py 65
    "local.learning_rate": 1e-3,  # Args.py 67
    "local.schedule": "cosine",  # utils/utils.py 221-225
    "local.momentum": 0.0,  # Args.py 69
    "local.weight_decay": 5e-4,  # Node/Node.py 33
    "eval_every": 10,  # our choice, as is the next line
    "checkpoint.every": 10,
}


def get(name: str, large: str, preset: str) -> Any:
    """A config of the paper on one data set.

    Args:
        name: name of the data for ResNet-18.
        large: name of the same pictures at 224 x 224.
        preset: see above; "" is DynamicFL on ResNet-18, 30 hospitals, 7:2:1, iid.
    """
    c = default.get_config()
    c.update_from_flattened_dict({"data.name": name} | RECIPE)
    c = default.preset(c, preset, **presets(large))
    if c.model.name == "resnet":
        # Blocks of different stages differ in shape and cannot teach each other.
        c.submodel.inclusivefl.beta = 0.0
    return c


def presets(large: str) -> dict[str, dict[str, Any]]:
    """{preset: its changes}.

    Args:
        large: name of the pictures at 224 x 224.
    """
    changes: dict[str, dict[str, Any]] = {}
    for size, fields in PRESETS.items():
        changes[f"vit_{size}"] = {"model.name": "vit", "data.name": large} | {
            f"model.vit.{field}": value for field, value in fields.items()
        }
    for ratio in RATIOS:
        changes[f"ratio{ratio}"] = {"tiers.proportions": tuple(map(float, ratio))}
    for number in HOSPITALS:
        changes[f"hospitals{number}"] = {"data.partition.num_clients": number}
    for tenth in range(1, 10):
        alpha = {"data.partition.alpha": tenth / 10}
        for law, word in (("dirichlet", "dirichlet"), ("dirichlet_overlap", "overlap")):
            changes[f"{word}{tenth}"] = {"data.partition.name": law, **alpha}
    plain = {"tiers.budget": (0.25, 0.5, 1.0), "tiers.branches": ()}
    for method in BUDGETED:
        changes[method] = {"submodel.name": method, **plain}
    # A third of the rounds: the default is for a thousand rounds.
    changes["depthfl"]["submodel.depthfl.ramp"] = 33
    changes["dynamicfl"] = WHOLE
    changes["mixed"] = plain | {
        "submodel.name": "mixed",
        "submodel.mixed.kinds": ("width", "width", "plain"),
        "tiers.branches": (0, 0, 2),
    }
    changes["smoke"] = {
        "rounds": 2,
        "eval_every": 1,
        "clients_per_round": 3,
        "data.name": "digits",
        "data.partition.num_clients": 10,
        "local.steps": 2,
        "model.resnet.channels": (8, 16),
        "model.resnet.blocks": (1, 2),
        "model.vit.width": 48,
        "model.vit.depth": 2,
        "model.vit.patch": 4,
    }
    return changes
