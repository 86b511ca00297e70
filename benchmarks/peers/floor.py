"""The work in JAX written by hand, which can do nothing else.

    python -m benchmarks.peers.floor <case> round | client

`round` runs one program per round, with vmapped clients. `client` runs one program per
client with unrolled steps, so that XLA's own convolutions run outside of loops.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import work
from benchmarks.peers.work import Case


def init(case: Case) -> list[tuple[jax.Array, jax.Array]]:
    """A random (kernel, bias) for every layer."""
    rng, before, shapes = np.random.default_rng(2), case.shape[-1], []
    for width in case.channels:
        shapes.append((3, 3, before, width))
        before = width
    side = (case.shape[0] - 2 * len(case.channels)) // 2 if case.channels else 1
    before *= side**2
    for width in (*case.hidden, case.classes):
        shapes.append((before, width))
        before = width
    return [
        (
            jnp.asarray(rng.normal(size=s) / np.sqrt(np.prod(s[:-1])), jnp.float32),
            jnp.zeros(s[-1]),
        )
        for s in shapes
    ]


def loss(params: list, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy of a batch."""
    for number, (kernel, bias) in enumerate(params):
        if kernel.ndim == 4:
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "VALID", dimension_numbers=numbers
            )
        else:
            if x.ndim == 4:
                n, h, w, c = x.shape
                x = x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4)).reshape(n, -1)
            x = x @ kernel
        x = x + bias
        x = jax.nn.relu(x) if number < len(params) - 1 else x
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1))


def main(name: str, form: str) -> None:
    """Times a case."""
    case = work.CASES[name]
    x, y = (jnp.asarray(array) for array in work.data(case))
    x = x.reshape(case.clients, -1, work.BATCH, *case.shape)
    y = y.reshape(case.clients, -1, work.BATCH)
    params, steps = init(case), x.shape[1]

    def client(params, x, y):
        def step(params, batch):
            grads = jax.grad(loss)(params, *batch)
            return jax.tree.map(lambda p, g: p - work.RATE * g, params, grads), None

        unroll = steps if form == "client" else 1
        return jax.lax.scan(step, params, (x, y), unroll=unroll)[0]

    @jax.jit
    def train_cohort(params, clients):
        trained = jax.vmap(client, (None, 0, 0))(params, x[clients], y[clients])
        return jax.tree.map(lambda leaf: leaf.mean(0), trained)

    train_client = jax.jit(lambda params, k: client(params, x[k], y[k]))
    mean = jax.jit(lambda all: jax.tree.map(lambda *p: sum(p) / len(p), *all))

    def one_round(clients: np.ndarray) -> None:
        nonlocal params
        if form == "round":
            params = train_cohort(params, clients)
        else:
            params = mean([train_client(params, k) for k in clients])
        jax.block_until_ready(params)

    work.time_rounds(one_round, case)


if __name__ == "__main__":
    main(*sys.argv[1:])
