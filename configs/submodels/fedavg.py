"""FedAvg on breast cancer: every hospital trains the whole model.

    .venv/bin/python scripts/train.py --config=configs/submodels/fedavg.py --workdir=runs/fedavg

About 15 s on 2 CPU cores; pooled test accuracy about 0.94. What a federation does
without sharing sub-models is --config.submodel.fedavg.mode=smallest, exclusive or
decoupled.
"""

from configs import default


def get_config(preset: str = ""):
    """The bound that width methods are measured against; preset "smoke" runs 2 rounds."""
    c = default.get_config()
    c.submodel.name = "fedavg"
    return default.preset(c, preset)
