"""What the builders of all privacy mechanisms share.

That is the facts of a run, the settings of its accounting, the noise multiplier that
its budget allows, and the number of coordinates that are noised.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from fairjax.core import axes, require, scopes
from fairjax.core.method import Method
from fairjax.core.rule import Rule
from fairjax.core.types import ClientView, Model
from fairjax.experiment.config.schema import Config
from fairjax.privacy import accounting
from fairjax.privacy.accounting import Mechanism


class RunFacts(NamedTuple):
    """What a guarantee has to know of a run."""

    tiers: Int[np.ndarray, "N"]
    counts: Int[np.ndarray, "N"]
    """Training records of every client."""
    patients: Int[np.ndarray, "N"] | None
    """Training patients of every client; None where the data name none."""
    shared: Mapping[tuple[int, ...], int]
    """See `Splits.shared`."""
    clients: Sequence[str]
    """Names of the clients."""
    classes: int
    model: Model
    method: Method
    rule: Rule
    x: jax.ShapeDtypeStruct
    """A batch of inputs."""
    weights_follow_losses: bool = False
    """Whether a rule turns losses into weights, see `compatibility.follows_losses`."""


def check_delta(c: Config, num_units: int, noun: str) -> None:
    """Refuses a delta of 1 / n or more, for n units that are protected.

    Args:
        c: a checked config.
        num_units: n.
        noun: what the message calls the units.
    """
    if c.privacy.delta * num_units >= 1:
        expected = f"below 1 / {num_units}, the {noun} that are protected"
        require.fail("privacy.delta", expected, c.privacy.delta)


def accounting_settings(c: Config) -> dict[str, Any]:
    """Delta and accountant of a checked config."""
    accountant = c.privacy.accountant
    if accountant == "auto":
        is_fixed_size = (
            c.privacy.mechanism == "client_dp" and c.privacy.sampling == "fixed"
        )
        accountant = "rdp" if is_fixed_size else "pld"
    return {"delta": c.privacy.delta, "accountant": accountant}


def noise_multiplier(
    c: Config,
    settings: dict[str, Any],
    parties: Callable[[float], dict[str, Mechanism]],
    shared: Mapping[tuple[int, ...], int] | None = None,
) -> float:
    """The noise multiplier of the config, or the smallest that the budget allows.

    Args:
        c: a checked config.
        settings: see `accounting_settings`.
        parties: noise multiplier -> what each party is exposed to.
        shared: see `Guarantee.shared`; None: no patient is at several clients.
    """
    if c.privacy.noise_multiplier is not None:
        return c.privacy.noise_multiplier
    assert c.privacy.epsilon is not None  # `privacy.check` asks for one of the two
    return accounting.calibrate(
        lambda sigma: list(parties(sigma).values()),
        c.rounds,
        epsilon=c.privacy.epsilon,
        combinations=shared or {},
        **settings,
    )


def public_facts(c: Config, *facts: str) -> tuple[str, ...]:
    """What has to be public for a guarantee to hold.

    Args:
        c: a checked config.
        *facts: those of the mechanism, which come first.
    """
    all_facts = [*facts, "tier of every hospital"]
    constants = "constants that stand for missing inputs"
    if c.data.normalise != "none":
        constants += " and that inputs are normalised by"
    all_facts.append(constants)
    if c.model.init_from is not None:
        all_facts.append(f"the model that the run starts from ({c.model.init_from})")
    return tuple(all_facts)


def upload_size(c: Config, facts: RunFacts) -> int:
    """Coordinates of an upload: the plain model and all tiers' copies."""

    def upload(x: jax.Array) -> Any:
        params = facts.model.init(jax.random.key(0), x)
        bank = scopes.init(facts.method, params, 1, len(c.tiers.budget))
        copies = scopes.by_tier(bank, params, params, jnp.zeros((), jnp.int32))
        return params, {path: num for path, (num, _) in copies.items()}

    return _size(jax.eval_shape(upload, facts.x))


def local_tree_size(facts: RunFacts) -> int:
    """Coordinates that a local step trains: those of the local tree."""
    method, zero = facts.method, jnp.zeros((), jnp.int32)
    labels = jnp.ones(facts.classes, jnp.int32)

    def tree(x: jax.Array) -> Any:
        key = jax.random.key(0)
        params = facts.model.init(key, x)
        if method.local.to_local is None:
            return params
        client = ClientView(zero, zero, zero == 0, zero + 1, labels)
        submodel = method.submodel(key, zero, params, client)
        forward, update = (
            axes.masks(params, facts.model.axes, units)
            for units in (submodel.forward, submodel.update or submodel.forward)
        )
        memory = None if method.memory is None else method.memory.init(params)
        return method.local.to_local(key, params, submodel, memory, forward, update)[0]

    return _size(jax.eval_shape(tree, facts.x))


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
