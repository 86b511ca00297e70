"""The work in plain PyTorch: clients one after the other, no framework.

    python -m benchmarks.peers.torch_loop <case> [resnet18 <clients a round>]

The module uses the GPU if there is one.
"""

import sys

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.peers import network, work


def main(name: str, model_name: str = "", cohort: str = "") -> None:
    """Times a case."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = work.CASES[name]
    if cohort:
        case = case._replace(cohort=int(cohort))
    x, y = (tensor.to(device) for tensor in network.tensors(*work.data(case)))
    model = network.resnet18(case.classes) if model_name else network.make(case)
    model = model.to(device)

    def one_round(clients: np.ndarray) -> None:
        start = {key: leaf.clone() for key, leaf in model.state_dict().items()}
        total = {key: torch.zeros_like(leaf) for key, leaf in start.items()}
        for k in clients:
            model.load_state_dict(start)
            optimizer = torch.optim.SGD(model.parameters(), work.RATE)
            for first in range(0, case.records, work.BATCH):
                rows = slice(first, first + work.BATCH)
                optimizer.zero_grad()
                cross_entropy(model(x[k, rows]), y[k, rows]).backward()
                optimizer.step()
            for key, leaf in model.state_dict().items():
                total[key] += leaf / len(clients)
        model.load_state_dict(total)
        if device == "cuda":
            torch.cuda.synchronize()

    work.time_rounds(one_round, case)


if __name__ == "__main__":
    main(*sys.argv[1:])
