"""The work in pfl-research, simulated in one process.

python -m benchmarks.peers.pfl <case>
"""

import contextlib
import os
import sys
import time

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn.functional import cross_entropy

from benchmarks.peers import network, work


class Trained(torch.nn.Module):
    """A model with the two methods that pfl requires."""

    def __init__(self, case: work.Case):
        super().__init__()
        self.model = network.make(case)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.model(x)

    def loss(self, x, y, eval=False) -> torch.Tensor:
        """Mean cross-entropy."""
        self.train(not eval)
        return cross_entropy(self(x), y)

    def metrics(self, x, y, eval=True) -> dict:
        """The metrics that pfl reports for a client."""
        return {"loss": Weighted(cross_entropy(self(x), y).item() * len(y), len(y))}


class Clock(TrainingProcessCallback):
    """Records the time after every round."""

    def __init__(self):
        self.wall, self.cpu = [], []

    def after_central_iteration(self, aggregate, model, *, central_iteration):
        """Records wall and CPU time."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        return False, Metrics()


def main(name: str) -> None:
    """Times a case."""
    torch.set_num_threads(1)
    case = work.CASES[name]
    x, y = network.tensors(*work.data(case))
    model, clock = Trained(case), Clock()
    # pfl requests a few more clients than it trains.
    client_ids = np.concatenate([work.cohorts(case), work.cohorts(case)[:3]])
    next_ids = iter(client_ids.ravel().tolist())
    backend = SimulatedBackend(
        training_data=FederatedDataset(
            lambda k: Dataset([x[k], y[k]], user_id=str(k)), lambda: next(next_ids)
        ),
        val_data=None,
        postprocessors=[WeightByDatapoints()],
    )
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        FederatedAveraging().run(
            algorithm_params=NNAlgorithmParams(
                central_num_iterations=work.WARM + case.rounds,
                evaluation_frequency=10**6,
                train_cohort_size=case.cohort,
                val_cohort_size=0,
            ),
            backend=backend,
            model=PyTorchModel(
                model,
                local_optimizer_create=torch.optim.SGD,
                central_optimizer=torch.optim.SGD(model.parameters(), 1.0),
            ),
            model_train_params=NNTrainHyperParams(
                local_learning_rate=work.RATE,
                local_num_epochs=1,
                local_batch_size=work.BATCH,
            ),
            model_eval_params=NNEvalHyperParams(local_batch_size=50),
            callbacks=[clock],
        )
    first = work.WARM - 1
    cpu = clock.cpu[-1] - clock.cpu[first]
    work.report(np.diff(clock.wall[first:]).tolist(), cpu)


if __name__ == "__main__":
    from pfl.internal.ops import pytorch_ops
    from pfl.internal.ops.selector import set_framework_module

    set_framework_module(pytorch_ops)
    main(*sys.argv[1:])
