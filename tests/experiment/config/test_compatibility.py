"""A rule and a method that the package does not know, under everything it offers.

Both are added as CONTRIBUTING says: a function, and an entry in the registry with a
dataclass of options. What they may be combined with follows from their properties
alone, and their groups of the config from the dataclasses.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from fairjax.core import axes as unit_axes
from fairjax.core import require, round, simplex
from fairjax.core.method import Method
from fairjax.core.rule import Rule
from fairjax.core.types import Size, Submodel, Units
from fairjax.experiment import cli, resume
from fairjax.experiment.config import (
    build,
    compatibility,
    privacy,
    registry,
    validate,
)
from fairjax.experiment.config.options import fields as option_fields
from fairjax.experiment.config.options.fields import option
from fairjax.robust import aggregators
from scripts import train as train_script
from tests.fakes import equal, gap
from tests.trained import small


@dataclasses.dataclass(frozen=True)
class Nash:
    """Options of `nash`."""

    bound: float = option(10.0, "M, nats; above typical losses")


@dataclasses.dataclass(frozen=True)
class Largest:
    """Options of `largest`."""

    share: float | None = option(
        None, "share of every width, whatever the tier; not given: the tier's budget"
    )


def nash(*, bound):
    """Nash welfare: w_k proportional to n_k / (M - F_k), the gradient of log(M - F)."""

    def weigh(state, cohort, stats):
        valid = simplex.has_finite_loss(stats, cohort.valid)
        utility = jnp.maximum(bound - simplex.loss(stats), 1e-3)
        log_weights = simplex.log_count(stats) - jnp.log(utility)
        return simplex.softmax(log_weights, valid), state

    return Rule(weigh, frozenset({"losses"}), "losses")


def largest(axes, budget, *, share):
    """Every tier trains the hidden units of largest incoming norm."""
    shares = budget if share is None else (share,) * len(budget)
    sizes = [unit_axes.prefix_sizes(axes, share) for share in shares]

    def submodel(key, round, params, client):
        masks = {}
        for name in sizes[0]:
            kernel = params[name]["kernel"]
            order = jnp.argsort(-jnp.linalg.norm(kernel, axis=0))
            rank = (
                jnp.zeros(len(order), jnp.int32).at[order].set(jnp.arange(len(order)))
            )
            size = jnp.asarray([tier[name] for tier in sizes])[client.tier]
            masks[name] = rank < size
        return Submodel(Units(masks, {}))

    return Method(submodel=submodel, size=lambda tier: Size(sizes[tier], {}))


@pytest.fixture(autouse=True)
def strangers(monkeypatch):
    entry = registry.RuleEntry(lambda options, c: nash(**vars(options)), Nash)
    monkeypatch.setitem(registry.RULES, "nash", entry)
    entry = registry.MethodEntry(
        lambda options, c, axes: largest(axes, c.tiers.budget, **vars(options)),
        Largest,
    )
    monkeypatch.setitem(registry.METHODS, "largest", entry)


def config_of(**fields):
    config = small(clients_per_round=0)
    fields = {"fairness__rule": "nash", "submodel__name": "largest"} | fields
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    return config


def two_rounds(config):
    run = build.run(config)
    state = resume.initial_state(run)

    @jax.jit
    def step(state):
        cohort = run.draw(state.key, state.round)
        return round.step(
            state, run.splits.train, cohort, spec=run.spec, layout=run.layout
        )

    infos = []
    for _ in range(2):
        state, info = step(state)
        infos.append(info)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))
    return run, state, infos


CLIENT_DP = {
    "privacy__mechanism": "client_dp",
    "privacy__noise_multiplier": 0.1,
    "privacy__sampling": "full",
    "fairness__denominator": "fixed",
    "fairness__cap": 2.0,
}
WORKS = {
    "alone": {},
    "client_dp": CLIENT_DP,
    "client_dp in a secure sum": CLIENT_DP
    | {
        "privacy__secure_sum": "masked",
        # Every tier has as many clients as privacy.secure.minimum asks for.
        "data__partition__num_clients": 8,
        "tiers__budget": (0.5, 1.0),
        "tiers__proportions": (1.0, 1.0),
    },
    "a secure sum": {"privacy__secure_sum": "quantized"},
    "a norm bound": {"robust__norm_bound": 2.0},
    "a fixed denominator": {"fairness__denominator": "fixed"},
    "composed": {"fairness__rule": "nash+logit_adjust"},
    "capped": {"fairness__cap": 1.5, "fairness__warmup": 1},
    "sliced": {"execution__form": "sliced"},
    "scanned": {"execution__batching": "scan"},
    "in chunks": {"execution__batching": "chunk", "execution__chunk": 3},
}


@pytest.mark.parametrize("name", WORKS)
def test_what_their_properties_allow_runs(name):
    two_rounds(config_of(**WORKS[name]))


@pytest.mark.parametrize("aggregator", aggregators.AGGREGATORS)
def test_an_aggregator_takes_the_rule_if_it_has_a_use_for_its_weights(aggregator):
    config = config_of(
        robust__aggregator=aggregator,
        robust__num_byzantine=0,
        data__partition__num_clients=8,
    )
    if aggregator not in aggregators.UNWEIGHTED:
        two_rounds(config)
        return
    with pytest.raises(ValueError, match=r"^fairness\.rule: .*; got 'nash'"):
        build.run(config)
    # The method alone goes with every aggregator.
    config.fairness.rule = "size"
    two_rounds(config)


@pytest.mark.parametrize("mechanism", ["record_dp", "local_dp"])
def test_a_mechanism_that_protects_no_losses_refuses_the_rule(mechanism):
    config = config_of(privacy__mechanism=mechanism, privacy__noise_multiplier=1.0)
    with pytest.raises(ValueError, match=r"^fairness\.rule: .*; got 'nash'"):
        build.run(config)
    config.fairness.rule = "size"
    two_rounds(config)


def by_counts(cohort, stats):
    return simplex.record_weights(stats, cohort.valid)


def stateless(weigh):
    return lambda state, cohort, stats: (weigh(cohort, stats), state)


LOSSES = frozenset({"losses"})
UNDERSTATED = {
    "a message that tells who came": Rule(
        stateless(by_counts), broadcast=lambda state, cohort, stats: cohort.valid
    ),
    "a state that client_dp does not carry": Rule(
        stateless(by_counts), init=lambda params, facts: facts.count
    ),
    "no weights from losses": Rule(None, LOSSES, "losses"),
    "an objective": Rule(wrap=lambda objective: lambda *args: objective(*args)),
    "a direction": Rule(combine=lambda state, cohort, stats, weights: (0, 0, state)),
}


@pytest.mark.parametrize("name", UNDERSTATED)
def test_client_dp_takes_no_rule_by_what_it_omits(name, monkeypatch):
    entry = registry.RuleEntry(lambda options, c: UNDERSTATED[name])
    monkeypatch.setitem(registry.RULES, "understated", entry)
    config = config_of(**CLIENT_DP | {"fairness__rule": "understated"})
    with pytest.raises(ValueError, match=r"^fairness\.rule: .*; got 'understated'"):
        build.run(config)


def test_client_dp_takes_no_rule_of_patient_groups(monkeypatch):
    entry = registry.RuleEntry(lambda options, c: nash(bound=10.0), patient_group=True)
    monkeypatch.setitem(registry.RULES, "by_patients", entry)
    config = config_of(**CLIENT_DP | {"fairness__rule": "by_patients"})
    with pytest.raises(ValueError, match=r"patient groups with client_dp"):
        validate.check(config)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(reads=frozenset({"loss"})), 'Did you mean "losses"'),
        (Rule(weights_from="loses"), 'Did you mean "losses"'),
        (Rule(weights_from="updates"), "'updates', as weights_from"),
        (Rule(reads=frozenset({"validation"})), "beside 'validation'"),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"robust__norm_bound": 2.0}])
def test_properties_that_contradict_each_other_are_refused(
    rule, message, fields, monkeypatch
):
    monkeypatch.setitem(
        registry.RULES, "odd", registry.RuleEntry(lambda options, c: rule)
    )
    with pytest.raises(ValueError, match=rf"^rule odd: .*{message}"):
        validate.check(config_of(fairness__rule="odd", **fields))


def test_every_setting_has_a_row_and_no_other_takes_a_rule():
    settings = {*privacy.MECHANISMS, *aggregators.AGGREGATORS}
    assert settings <= {*compatibility.CONDITIONS, *compatibility.UNCONDITIONAL}
    with pytest.raises(KeyError):
        compatibility.allows("clientdp", Rule())


def test_a_rule_sees_the_updates_only_if_it_reads_them():
    """An aggregator holds the stack; a rule by counts beside it does not."""
    seen = []

    def weigh(state, cohort, stats):
        seen.append(stats)
        return simplex.record_weights(stats, cohort.valid), state

    run = build.run(small(clients_per_round=0, robust__aggregator="median"))
    for reads in (frozenset(), frozenset({"updates"})):
        spec = dataclasses.replace(run.spec, rule=Rule(weigh, reads))
        step = functools.partial(round.step, spec=spec, layout=run.layout)
        state = resume.initial_state(dataclasses.replace(run, spec=spec))
        cohort = run.draw(state.key, state.round)
        jax.eval_shape(step, state, run.splits.train, cohort)
        assert (seen[-1].delta is None) == ("updates" not in reads)


def test_a_rule_that_does_not_read_labels_sees_no_correct_predictions():
    seen = []

    def weigh(state, cohort, stats):
        seen.append(stats.group_stats.correct)
        return simplex.record_weights(stats, cohort.valid), state

    run = build.run(small(clients_per_round=0))
    for reads in (LOSSES, LOSSES | {"labels"}):
        spec = dataclasses.replace(run.spec, rule=Rule(weigh, reads, "losses"))
        state = resume.initial_state(dataclasses.replace(run, spec=spec))
        cohort = run.draw(state.key, state.round)
        round.step(state, run.splits.train, cohort, spec=spec, layout=run.layout)
        assert bool(np.all(np.isnan(seen[-1]))) == ("labels" not in reads)


@pytest.mark.parametrize("mechanism", ["record_dp", "local_dp"])
def test_a_method_that_reads_labels_is_refused_where_they_are_protected(
    mechanism, monkeypatch
):
    def labelled(axes, share):
        return largest(axes, (1.0,), share=share)._replace(reads_labels=True)

    entry = registry.METHODS["largest"]._replace(
        method=lambda options, c, axes: labelled(axes, 0.5)
    )
    monkeypatch.setitem(registry.METHODS, "largest", entry)
    fields = {"privacy__mechanism": mechanism, "privacy__noise_multiplier": 1.0}
    with pytest.raises(
        ValueError, match=r"^submodel\.name: .* labels with " + mechanism
    ):
        build.run(config_of(fairness__rule="size", **fields))


@pytest.mark.parametrize("bound", [10.0, 3.0])
def test_the_rule_weighs_as_its_equation_says(bound):
    config = config_of(submodel__name="fedavg", fairness__nash__bound=bound)
    run, _, infos = two_rounds(config)
    count = np.asarray(run.splits.train.count, np.float64)
    expected = count / (bound - np.asarray(infos[0].incoming_losses, np.float64))
    np.testing.assert_allclose(infos[0].weights, expected / expected.sum(), rtol=1e-5)


def test_the_method_is_the_same_masked_and_sliced():
    masked, sliced = (
        two_rounds(config_of(execution__form=form))[1] for form in ("masked", "sliced")
    )
    assert gap(masked.params, sliced.params) < 1e-5
    fedavg = two_rounds(config_of(submodel__name="fedavg"))[1]
    assert not equal(masked.params, fedavg.params)


def test_the_method_reads_its_option():
    run = build.run(config_of(submodel__largest__share=0.5))
    sizes = [run.spec.local.method.size(tier).axes for tier in range(4)]
    assert sizes == [sizes[0]] * 4


def parsed(*flags):
    argv = ["train.py", f"--config={default.__file__}", "--workdir=unused", *flags]
    options = cli.parse(train_script.define, argv)
    validate.check(options.config, cli.override_paths(options))
    return options.config


IN_USE = ("--config.fairness.rule=nash", "--config.submodel.name=largest")


def test_options_are_set_on_the_command_line():
    config = parsed(
        *IN_USE,
        "--config.fairness.nash.bound=5.0",
        "--config.submodel.largest.share=0.5",
    )
    assert config.fairness.nash.bound == 5.0
    assert config.submodel.largest.share == 0.5


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--config.fairness.nash.bound=5.0",
            "fairness.nash.bound: expected fairness.rule='nash' for this option; "
            "got 'size'",
        ),
        (
            "--config.submodel.largest.share=0.5",
            "submodel.largest.share: expected submodel.name='largest' for this option; "
            "got 'heterofl'",
        ),
    ],
)
def test_an_option_is_refused_where_its_owner_is_not_in_use(flag, message):
    with pytest.raises(require.InputError) as refusal:
        parsed(flag)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--config.fairness.nash.bond=5.0", "fairness.nash.bound"),
        ("--config.submodel.largest.shares=0.5", "submodel.largest.share"),
    ],
)
def test_a_misspelt_option_is_refused_with_the_nearest_name(flag, nearest):
    with pytest.raises(require.InputError) as refusal:
        parsed(*IN_USE, flag)
    field = flag.partition("=")[0]
    assert str(refusal.value) == (
        f'{field}: expected a field of the config; got none. Did you mean "{nearest}"?'
    )


def test_the_page_describes_their_options():
    assert "| `nash` | `bound` | `float` | `10.0` | M, nats" in option_fields.describe(
        registry.RULES
    )
    assert "| `largest` | `share` | `float` | not given |" in option_fields.describe(
        registry.METHODS
    )
    assert "| `nash` | yes | no | no | yes |" in compatibility.table()
