"""Blood cells at thirty hospitals of three sizes: most of them poor, labels skewed.

    export FAIRJAX_DATA_DIR=...   # the folder of pbc_blood28.npz
    .venv/bin/python scripts/train.py --config=configs/pbc_blood28.py --workdir=runs/blood

A run takes about two minutes of one CPU core. studies/contests/run.py runs other methods and
both ratios on three seeds, and studies/README.md has their results. MedMNIST's own
pictures of these cells are downloaded; --config.data.name=bloodmnist selects them.
"""

from configs import default


def get_config(preset: str = ""):
    """HeteroFL on tiers 7:2:1; preset "ratio433" is 4:3:3, "smoke" runs 2 rounds."""
    c = default.get_config()
    c.rounds = 60
    c.clients_per_round = 9
    c.eval_every = 10
    c.data.name = "pbc_blood28"
    c.data.partition.name = "dirichlet"
    c.data.partition.num_clients = 30
    c.data.partition.alpha = 0.5
    c.model.name = "cnn"
    c.model.cnn.channels = (16, 32, 64)
    c.model.cnn.group_size = 8
    c.tiers.budget = (0.25, 0.5, 1.0)
    c.tiers.proportions = (7.0, 2.0, 1.0)
    c.local.steps = 12
    c.local.batch_size = 32
    c.local.learning_rate = 0.1
    c.local.schedule = "cosine"
    c.local.max_grad_norm = 5.0
    # Stratified cohorts have as many slots as clients, so that slicing computes nothing
    # beyond what the tiers train. On CPU convolutions run fastest one client at a time.
    c.execution.slots = "stratified"
    c.execution.form = "sliced"
    c.execution.batching = "scan"
    c.checkpoint.every = 10
    return default.preset(c, preset, ratio433={"tiers.proportions": (4.0, 3.0, 3.0)})
