"""DynamicFL: everybody trains the plain model, richer hospitals branches beside it.

    .venv/bin/python scripts/train.py --config=configs/submodels/dynamicfl.py --workdir=runs/dynamicfl

About half a minute on 2 CPU cores. Shows tiers of 0 to 3 branches per layer that receive
and send one plain model; presets are the ablations.
"""

from configs import default


def get_config(preset: str = ""):
    """Four hospitals' tiers on the digits; preset "smoke" runs 2 rounds.

    "preconditioned" has branches of linear families for free. Ablations: "matched"
    gives the gradient that the branches would give, without them; "random" and "fixed"
    do without sensitivities; "only_<family>" has branches of one family alone.
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
        matched={"submodel.dynamicfl.branch_form": "matched"},
        random={"submodel.dynamicfl.structure": "random"},
        fixed={"submodel.dynamicfl.structure": "fixed"},
        **{f"only_{name}": {families: (name,) * 3} for name in only},
    )
