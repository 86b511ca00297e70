"""DynamicFL: every hospital trains the plain model, richer ones with branches.

    .venv/bin/python scripts/train.py --config=configs/submodels/dynamicfl.py --workdir=runs/dynamicfl

About half a minute on 2 CPU cores. Tiers with 0 to 3 branches per layer receive and
send one plain model; presets are the ablations.

Preset "published" is the recipe of Zhang et al. 2025 for ResNet-18 on blood cells, by
their released code; configs/paper has its other data, partitions and networks. It needs
a GPU and does not claim to reproduce the paper's figures. It differs in these points:
images stay 28 x 28, there is no RandAugment, branches carry no norms, and a tier has
branches in every layer, where the released code grows some layers wholly. Other data:
--config=configs/submodels/dynamicfl.py:published --config.data.name=digits
"""

from configs import default
from configs.paper import setting

PUBLISHED = setting.RECIPE | {
    # Lines of paridis-11/DynamicFL, commit 9ca373c.
    "data.name": "bloodmnist",  # README.md 53
    "data.partition.name": "iid",  # Args.py 50
    "model.resnet.channels": (64, 128, 256, 512),  # models/Model.py 51-54
    "model.resnet.blocks": (2, 2, 2, 2),  # models/Model.py 51-54
    "model.resnet.activation": "post",  # models/Model.py 34-38
    "model.resnet.norm": "batch",  # models/Model.py 18
    "submodel.dynamicfl.branch_form": "collapsed",
    "submodel.dynamicfl.structure": "sensitivity",
    "fairness.rule": "uniform",  # Node/Node.py 134-139
}


def get_config(preset: str = ""):
    """Four tiers on the digits; presets "published", "smoke" and those below.

    "preconditioned" trains the plain model by the gradients that branches of linear
    families would give, at no cost. Ablations: "matched" trains the plain model by the
    gradients of branches as drawn; "random" and "fixed" ignore sensitivities; "only_<family>" has branches of one family alone.
    """
    c = default.get_config()
    c.data.name = "digits"
    c.data.partition.name = "dirichlet"
    c.model.name = "cnn"
    c.submodel.name = "dynamicfl"
    c.tiers.budget = (1.0, 1.0, 1.0, 1.0)
    c.tiers.branches = (0, 1, 2, 3)
    c.local.learning_rate = 0.1
    families = "submodel.dynamicfl.families"
    only = ("1x1", "1x1-KxK", "1x1-avg", "1xK", "Kx1", "scale", "KxK")
    return default.preset(
        c,
        preset,
        preconditioned={
            "submodel.dynamicfl.branch_form": "preconditioned",
            families: ("1x1", "1x1-avg", "1xK", "Kx1", "scale", "linear"),
            "submodel.dynamicfl.sensitivity": "gradient",
        },
        published=PUBLISHED,
        matched={"submodel.dynamicfl.branch_form": "matched"},
        random={"submodel.dynamicfl.structure": "random"},
        fixed={"submodel.dynamicfl.structure": "fixed"},
        **{f"only_{name}": {families: (name,) * 3} for name in only},
    )
