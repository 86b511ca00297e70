"""Full, short and narrow sub-models, in the smallest setting that shows a difference.

    .venv/bin/python scripts/train.py --config=configs/trend.py --workdir=runs/trend

A run takes about a minute on 2 CPU cores. It shows that the accuracy of width tiers
falls steeply with their budget; studies/trend/run.py runs all methods on three seeds.
"""

from configs import default


def get_config(preset: str = ""):
    """HeteroFL at 50 hospitals on five widths; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.rounds = 60
    c.clients_per_round = 10
    c.eval_every = 10
    # No effect while there are no validation records.
    c.selection_metric = "balanced_accuracy"
    c.data.name = "mixtures"
    c.data.partition.num_clients = 50
    c.data.partition.val_fraction = 0.0
    c.model.name = "resmlp"
    c.tiers.budget = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    c.tiers.proportions = (1.0, 1.0, 1.0, 1.0, 1.0)
    c.submodel.depthfl.stages = (1, 1, 2, 3, 4)
    c.submodel.depthfl.ramp = 20  # full strength at the first evaluation that counts
    c.submodel.depthfl.ensemble = False  # a tier predicts with its deepest exit alone
    c.local.steps = 20
    c.local.batch_size = 20
    c.local.learning_rate = 0.05
    c.local.momentum = 0.9
    c.local.weight_decay = 5e-4
    c.local.max_grad_norm = 1.0
    c.execution.slots = "stratified"
    # Compilation takes most of a run, and one program at full width compiles in less
    # than half the time of one per tier. Scan and vmap take equally long here.
    c.execution.form = "masked"
    c.execution.batching = "vmap"
    c.checkpoint.every = 10
    return default.preset(c, preset)
