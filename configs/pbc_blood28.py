"""Blood cells at thirty hospitals of three sizes: most of them poor, labels skewed.

    export FAIRJAX_DATA_DIR=...   # the folder of pbc_blood28.npz
    .venv/bin/python scripts/train.py --config=configs/pbc_blood28.py --workdir=runs/blood

About two minutes of one CPU core. scripts/compare.py runs other methods and both presets'
ratios on three seeds; results/README.md has what they reach. MedMNIST's own pictures of
these cells, which are downloaded, run with --config.data.name=bloodmnist.
"""

from configs import default


def get_config(preset: str = ""):
    """HeteroFL on tiers 7:2:1; preset "ratio433" is 4:3:3, "smoke" runs 2 rounds."""
    c = default.get_config()
    c.rounds = 60
    c.cohort = 9
    c.eval_every = 10
    c.data.name = "pbc_blood28"
    c.data.partition.name = "dirichlet"
    c.data.partition.num_clients = 30
    c.data.partition.alpha = 0.5
    c.model.name = "cnn"
    c.model.cnn.channels = (16, 32, 64)
    c.model.cnn.group_size = 8
    c.tiers.budget = (0.25, 0.5, 1.0)
    c.tiers.share = (7.0, 2.0, 1.0)
    c.local.steps = 12
    c.local.batch_size = 32
    c.local.learning_rate = 0.1
    c.local.schedule = "cosine"
    c.local.clip = 5.0
    # Every cohort has as many slots as clients, so that slicing computes what the tiers
    # do and no more; and a convolution runs fastest on CPU one client after the other.
    c.execution.slots = "stratified"
    c.execution.form = "sliced"
    c.execution.batching = "scan"
    c.checkpoint.every = 10
    return default.preset(c, preset, ratio433={"tiers.share": (4.0, 3.0, 3.0)})
