"""Third stage of a run: the round, from its rule and method to its protection."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

from fairjax.core import batching, objectives, require
from fairjax.core.method import Method
from fairjax.core.problem import LocalProblem
from fairjax.core.rule import Rule
from fairjax.core.spec import Spec
from fairjax.core.types import Model, Objective
from fairjax.data import augment
from fairjax.experiment.config import (
    conversion,
    lookup,
    mechanisms,
    optimizers,
    paths,
    privacy,
    robustness,
)
from fairjax.experiment.config.build_data import DataFacts, patients, sample_shape
from fairjax.experiment.config.build_model import byte_pixels
from fairjax.experiment.config.calibration import RunFacts
from fairjax.experiment.config.schema import Config, Local
from fairjax.experiment.config.validate import CheckedConfig
from fairjax.fairness import compose, personal
from fairjax.privacy.guarantee import Guarantee
from fairjax.robust import faults as injected


def round_spec(
    checked: CheckedConfig, facts: DataFacts, model: Model
) -> tuple[Spec, Guarantee]:
    """What a round of a config does, and its privacy guarantee.

    Args:
        checked: the config and its rules; the fields in `build.VALUES` may be traced.
        facts: what the data say.
        model: the network that travels.

    Raises:
        InputError: rule, method, mechanism and data do not fit together.
    """
    c, rule = checked.config, checked.rule
    splits, num_groups = facts.splits, 0
    if facts.attribute is not None:
        num_groups = len(splits.groups[facts.attribute].values)
    method = personal.with_local_leaves(lookup.method(c, model.axes), rule)
    privacy.check_method(c, method)
    objective, optimizer = _objective(c, method), _optimizer(c)
    server = optimizers.SERVERS[c.server.optimizer](c.server.learning_rate)
    run_facts = _run_facts(checked, facts, model, method)
    local_schedule = _local_schedule(c, run_facts)
    if "validation" in rule.reads and not np.all(splits.val.count):
        expected = f"above 0 for rule {c.fairness.rule}: every hospital validates"
        require.fail(
            "data.partition.val_fraction", expected, c.data.partition.val_fraction
        )
    with lookup.initial_state_names(c):  # an accountant counts what a first state holds
        guarantee, dp = mechanisms.build(c, run_facts)
    rule = _defended_rule(c, rule, guarantee, facts)
    image_pixels, _ = byte_pixels(c, splits)
    local = LocalProblem(
        model,
        method,
        rule.wrap(objective),
        optimizer,
        local_schedule,
        getattr(lookup.options_of(c.model), "moments", "static"),
        dp,
        augment.chain(c.data.augment, image_pixels),
        c.execution.unroll,
    )
    spec = Spec(
        local=local,
        rule=rule,
        protection=robustness.protection(c, guarantee.protection, facts.cohort),
        server=method.server.optimizer(server, facts.cohort / len(splits.clients)),
        schedule=optimizers.schedule(c.local, c.rounds),
        server_schedule=optimizers.schedule(c.server, c.rounds),
        finite_guard=c.robust.finite_guard,
        transmission=injected.upload_faults(facts.faults, robustness.deadline(c)),
        denominator=c.fairness.denominator,
        attribute=facts.attribute,
        groups=num_groups,
        max_validation_records=int(np.max(splits.val.count)),
    )
    return spec, guarantee


def spec_with_values(
    c: Config, values: Mapping[str, Any], facts: DataFacts, model: Model
) -> Spec:
    """The round of a checked config with some numbers replaced.

    Args:
        c: a checked config.
        values: {field in `build.VALUES`: value, traced or not}.
        facts: those of the run.
        model: the run's.
    """
    # The accountant needs a number: it keeps the config's, and the noise alone changes.
    values = dict(values)
    sigma = values.pop("privacy.noise_multiplier", None)
    c = conversion.with_values(c, values)
    rules = lookup.rules(c)
    checked = CheckedConfig(c, rules, lookup.composed_rule(c, rules))
    spec, guarantee = round_spec(checked, facts, model)
    if sigma is None:
        return spec
    assert guarantee.with_noise is not None
    protection, dp = guarantee.with_noise(sigma)
    return dataclasses.replace(
        spec,
        local=spec.local._replace(dp=dp),
        protection=robustness.protection(c, protection, facts.cohort),
    )


def _objective(c: Config, method: Method) -> Objective:
    """The method's objective, or cross-entropy, with the proximal term if any."""
    if method.objective is not None and c.local.class_weights != "none":
        expected = f"none while submodel {c.submodel.name} sets the objective"
        require.fail("local.class_weights", expected, c.local.class_weights)
    objective = method.objective or objectives.mean_cross_entropy(
        balanced=c.local.class_weights == "balanced"
    )
    if c.local.fedprox_mu:
        objective = objectives.proximal(objective, c.local.fedprox_mu)
    return objective


def _optimizer(c: Config) -> optax.GradientTransformation:
    """The local optimiser, behind the clip of the gradient's norm if any."""
    optimizer = optimizers.OPTIMIZERS[c.local.optimizer](c)
    if c.local.max_grad_norm:
        optimizer = optax.chain(
            optax.clip_by_global_norm(c.local.max_grad_norm), optimizer
        )
    return optimizer


def _run_facts(
    checked: CheckedConfig, facts: DataFacts, model: Model, method: Method
) -> RunFacts:
    splits = facts.splits
    return RunFacts(
        facts.tiers,
        np.asarray(splits.train.count),
        patients(splits.train),
        splits.shared,
        splits.clients,
        len(splits.classes),
        model,
        method,
        checked.rule,
        sample_shape(splits),
        bool(privacy.loss_rules(checked.rules)),
    )


def _local_schedule(c: Config, run_facts: RunFacts) -> batching.LocalSchedule:
    """Steps and batches of every client; epochs go over patients if they are units."""
    has_steps = c.local.steps is not None
    units = mechanisms.protected_patients(c, run_facts)
    with paths.field_names(paths.fields_of(Local, "local")):
        return batching.local_schedule(
            run_facts.counts,
            batch_size=c.local.batch_size,
            epochs=None if has_steps else c.local.epochs,
            steps=c.local.steps,
            units=units,
        )


def _defended_rule(
    c: Config, rule: Rule, guarantee: Guarantee, facts: DataFacts
) -> Rule:
    """The rule as privacy shows it clients, with the weight cap and false claims."""
    if guarantee.tier_records:
        rule = compose.tier_rule(rule, guarantee.tier_records)
    rule = injected.with_false_claims(robustness.rule(c, rule), facts.faults)
    if rule.full_participation and facts.cohort < len(facts.splits.clients):
        expected = f"0 (all hospitals) for rule {c.fairness.rule}"
        require.fail("clients_per_round", expected, c.clients_per_round)
    return rule
