"""The work in Flower's simulation, on Ray.

python -m benchmarks.peers.flower <case>
"""

import functools
import os
import sys
import threading
import time

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import numpy as np
import psutil
import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.nn.functional import cross_entropy

from benchmarks.peers import network, work

ROUNDS = 4
"""Timed rounds, a tenth of the other frameworks' or fewer: each takes seconds."""


def processes() -> list[psutil.Process]:
    """This process and all its descendants."""
    current = psutil.Process()
    return [current, *current.children(recursive=True)]


def cpu() -> float:
    """CPU seconds of all processes so far."""
    total = 0.0
    for process in processes():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


class Memory(threading.Thread):
    """The largest resident memory of all processes together, sampled."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak_mb, self.over = 0.0, threading.Event()

    def run(self) -> None:
        """Samples memory until `over` is set."""
        while not self.over.wait(0.05):
            total = 0
            for process in processes():
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_mb = max(self.peak_mb, total / 2**20)


@functools.cache
def loaded(name: str):
    """(records, labels, model) of a case, loaded once per worker."""
    torch.set_num_threads(1)
    case = work.CASES[name]
    return *network.tensors(*work.data(case)), network.make(case)


def arrays(model: torch.nn.Module) -> list[np.ndarray]:
    """The parameters of a model."""
    return [leaf.numpy().copy() for leaf in model.state_dict().values()]


class Hospital(NumPyClient):
    """One client."""

    def __init__(self, name: str, number: int):
        self.name, self.number = name, number

    def fit(self, parameters, config):
        """Trains for one epoch."""
        (x, y, model), case = loaded(self.name), work.CASES[self.name]
        named_arrays = zip(model.state_dict(), parameters, strict=True)
        model.load_state_dict(
            {key: torch.as_tensor(leaf) for key, leaf in named_arrays}
        )
        optimizer = torch.optim.SGD(model.parameters(), work.RATE)
        for start in range(0, case.records, work.BATCH):
            rows = slice(start, start + work.BATCH)
            optimizer.zero_grad()
            loss = cross_entropy(model(x[self.number, rows]), y[self.number, rows])
            loss.backward()
            optimizer.step()
        return arrays(model), case.records, {}


class Timed(FedAvg):
    """FedAvg that records the times at which rounds begin."""

    wall, cpu = [], []

    def configure_fit(self, *args, **kwargs):
        """Records wall and CPU time."""
        self.wall.append(time.perf_counter())
        self.cpu.append(cpu())
        return super().configure_fit(*args, **kwargs)

    def aggregate_fit(self, round, results, failures):
        """Refuses a round in which a client failed."""
        if failures:
            raise RuntimeError(f"{len(failures)} clients failed: {failures[0]}")
        return super().aggregate_fit(round, results, failures)


def main(name: str) -> None:
    """Times a case."""
    case = work.CASES[name]

    def client(context):
        return Hospital(name, int(context.node_config["partition-id"])).to_client()

    def server(context):
        strategy = Timed(
            fraction_fit=case.cohort / case.clients,
            fraction_evaluate=0.0,
            min_fit_clients=case.cohort,
            min_available_clients=case.clients,
            initial_parameters=ndarrays_to_parameters(arrays(network.make(case))),
        )
        # The start of an extra round marks the end of the last timed one.
        config = ServerConfig(num_rounds=work.WARM + ROUNDS + 1)
        return ServerAppComponents(strategy=strategy, config=config)

    memory = Memory()
    memory.start()
    run_simulation(
        server_app=ServerApp(server_fn=server),
        client_app=ClientApp(client_fn=client),
        num_supernodes=case.clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    memory.over.set()
    wall = Timed.wall[work.WARM : work.WARM + ROUNDS + 1]
    busy = Timed.cpu[work.WARM + ROUNDS] - Timed.cpu[work.WARM]
    work.report(np.diff(wall).tolist(), busy, memory.peak_mb)


if __name__ == "__main__":
    # Ray's workers find the classes of this module under its name, not as __main__.
    from benchmarks.peers import flower

    flower.main(*sys.argv[1:])
