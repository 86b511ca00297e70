"""First stage of a run: the data, who owns which records, and who is of which tier."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from fairjax.core import require
from fairjax.core.types import FederatedData
from fairjax.data import datasets, federation
from fairjax.data.tiers import assign_tiers
from fairjax.experiment.config import lookup, registry, robustness
from fairjax.experiment.config.schema import Config
from fairjax.robust import faults as injected
from fairjax.robust.faults import Fault


class DataFacts(NamedTuple):
    """The data of a run and the facts that follow from them."""

    splits: federation.Splits
    tiers: Int[np.ndarray, "N"]
    """Tier of every client before the first round."""
    cohort: int
    """K."""
    faults: tuple[Fault, ...]
    attribute: int | None
    """Column of the patient attribute that the rule reads; None if it reads none."""
    client_groups: tuple[str, ...]
    """Names of the groups of clients, in order; () without groups."""
    group_of: tuple[int, ...]
    """Group of every client."""


def data_facts(c: Config) -> DataFacts:
    """Loads the data of a checked config, and injects the faults that change them.

    Raises:
        InputError: the data cannot be read, or do not have what the config asks for.
    """
    splits = _splits(c)
    clients = len(splits.clients)
    if c.clients_per_round > clients:
        require.fail(
            "clients_per_round", f"at most the {clients} hospitals", c.clients_per_round
        )
    faults = robustness.faults(c, clients, _data_seed(c))
    train = injected.corrupt_records(splits.train, faults, _data_seed(c))
    splits = dataclasses.replace(splits, train=train)
    tiers = assign_tiers(
        np.asarray(train.count),
        np.asarray(train.labels),
        proportions=c.tiers.proportions,
        assignment=c.tiers.assignment,
        seed=_data_seed(c),
        correlation=c.tiers.correlation,
    )
    tiers = injected.claimed_tiers(tiers, faults, len(c.tiers.budget) - 1)
    attribute = _attribute(c, splits)
    client_groups = _client_groups(c, splits)
    return DataFacts(
        splits,
        tiers,
        c.clients_per_round or clients,
        tuple(faults),
        attribute,
        client_groups,
        registry.client_groups(c),
    )


def sample_shape(splits: federation.Splits) -> jax.ShapeDtypeStruct:
    """The shape of a batch of one record."""
    return jax.ShapeDtypeStruct((1, *splits.train.x.shape[1:]), jnp.float32)


def patients(train: FederatedData) -> Int[np.ndarray, "N"] | None:
    """Training patients of every client; None where the data name none."""
    if train.patient is None:
        return None
    return np.array(
        [len(patient_ids) for patient_ids in federation.records_per_patient(train)]
    )


def _data_seed(c: Config) -> int:
    """The seed for data partition, tier assignment and fault selection."""
    return c.seed if c.data.partition.seed is None else c.data.partition.seed


def _splits(c: Config) -> federation.Splits:
    table = datasets.load(
        c.data.name,
        data_dir=c.data.data_dir,
        path=c.data.path,
        label=c.data.label,
        client=c.data.client,
        patient=c.data.patient,
        group=c.data.group,
    )
    partition = c.data.partition
    splits = federation.build(
        table,
        partition=partition.name,
        num_clients=partition.num_clients,
        alpha=partition.alpha,
        min_size=partition.min_size,
        test_fraction=partition.test_fraction,
        val_fraction=partition.val_fraction,
        normalise=c.data.normalise,
        seed=_data_seed(c),
        shards=partition.shards,
        classes=partition.classes,
    )
    has_positive = c.data.positive is not None
    return federation.with_positive(
        splits, c.data.positive if has_positive else table.positive
    )


def _attribute(c: Config, splits: federation.Splits) -> int | None:
    """Column of the patient attribute that the rule reads; None if it reads none."""
    group_rules = [
        rule_name
        for rule_name in c.fairness.rule.split("+")
        if lookup.by_patient_group(c, rule_name)
    ]
    if not group_rules:
        return None
    binary_rules = [name for name in group_rules if registry.RULES[name].binary]
    is_binary = bool(binary_rules)
    if is_binary and len(splits.classes) != 2:
        expected = f"another rule than {binary_rules[0]}, which needs two classes"
        require.fail("fairness.rule", expected, f"{len(splits.classes)} classes")
    num_values = {attribute.name: len(attribute.values) for attribute in splits.groups}
    candidates = [
        name for name, values in num_values.items() if values == 2 or not is_binary
    ]
    if not candidates:
        kind = (
            "a patient attribute of two values" if is_binary else "a patient attribute"
        )
        require.fail("fairness.rule", f"data with {kind}", c.fairness.rule)
    if c.fairness.group is None:
        return list(num_values).index(candidates[0])
    require.one_of("fairness.group", c.fairness.group, candidates)
    return list(num_values).index(c.fairness.group)


def _client_groups(c: Config, splits: federation.Splits) -> tuple[str, ...]:
    """Names of the groups of clients, in order; () without groups."""
    group_by_client, clients = c.fairness.client_group, splits.clients
    if group_by_client and len(group_by_client) != len(clients):
        preview = ", ".join(clients[:4]) + (", ..." if len(clients) > 4 else "")
        expected = f"{len(clients)} groups, one per hospital ({preview})"
        require.fail("fairness.client_group", expected, group_by_client)
    if group_by_client and "client_group" in (
        attribute.name for attribute in splits.groups
    ):
        expected = "no column of that name, which groups of hospitals have"
        require.fail("data.group", expected, "client_group")
    return tuple(sorted(set(group_by_client)))
