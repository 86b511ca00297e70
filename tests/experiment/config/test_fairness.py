"""Rules by their config names: in rounds, in every situation; refused configs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default, heart_disease
from fairjax.core import layout, require, round
from fairjax.core.rule import CohortStats, FederationFacts
from fairjax.core.types import Cohort, FederatedData
from fairjax.experiment import resume
from fairjax.experiment.config import build, conversion, lookup, registry, validate
from fairjax.fairness import personal
from fairjax.models import resmlp
from fairjax.submodels.heterofl import heterofl
from tests import fakes

NEUTRAL = {
    "q_ffl": {"q": 0.0},
    "tier_afl": {"rate": 0.0},
    "agnostic": {"rate": 0.0, "domain": "group"},
    "logit_adjust": {"tau": 0.0},
    "ditto": {},
}
"""One rule of every kind at the setting at which the plain model is FedAvg's;
tests/fairness/test_weights.py covers all rules."""


def config(rule, options=None, **fields):
    c = default.get_config()
    c.update_from_flattened_dict({"fairness.rule": rule, **fields})
    for name, value in (options or {}).items():
        c.fairness[rule][name] = value
    return c


def stepping(rule, data, denominator="cover", model=None):
    """(first state, (state, data, cohort) -> ...) of HeteroFL in three tiers."""
    model = model or fakes.small_mlp(hidden=(8,))
    method = heterofl(model.axes, (0.5, 0.5, 1.0), scaler=False, masked_loss=False)
    method = personal.with_local_leaves(method, rule)
    groups = {"attribute": 0, "groups": 2} if "losses" in rule.reads else {}
    spec = fakes.spec(
        model, method, rule=rule, denominator=denominator, epochs=1, **groups
    )

    @jax.jit
    def step(state, data, cohort):
        laid = layout.vmapped()
        return round.step(state, data, cohort, spec=spec, layout=laid, validation=data)

    return fakes.start(spec, data), step


def after(rule, data, denominator="cover"):
    """The plain model after two rounds, and the reports."""
    return twice(stepping(rule, data, denominator), data)


def twice(started, data):
    (state, step), infos = started, []
    for _ in range(2):
        state, info = step(state, data, fakes.cohort())
        infos.append(info)
    return state.params, infos


def rule_of(config):
    """The rule of a config, composed of those that it names."""
    c = conversion.to_typed(config)
    return lookup.composed_rule(c, lookup.rules(c))


@functools.cache
def named(name):
    """`stepping` by a rule's name, compiled once for all tests."""
    return stepping(rule_of(config(name)), DATA)


def federation():
    """The federation of `fakes` with an attribute of two groups, some unknown."""
    data = fakes.federation()
    rows = len(data.y)
    group = np.random.default_rng(1).integers(-1, 2, (rows, 1)).astype(np.int32)
    return FederatedData(
        data.x, data.y, jnp.asarray(group), data.offset, data.count, data.labels
    )


DATA = federation()


@functools.cache
def plain():
    """The model of FedAvg."""
    return after(rule_of(config("size")), DATA)[0]


@pytest.mark.parametrize("name", registry.RULES)
def test_every_rule_trains_beside_sub_models(name):
    if name == "fedbn":
        with pytest.raises(require.InputError, match="leaves that it keeps"):
            named(name)
        return
    params, infos = twice(named(name), DATA)
    for info in infos:
        np.testing.assert_allclose(info.weights.sum(), 1, rtol=1e-4)
        assert np.all(np.asarray(info.weights) >= 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    if name not in ("size", "ditto"):
        assert fakes.gap(params, plain()) > 1e-6


@pytest.mark.parametrize("name", NEUTRAL)
def test_the_neutral_setting_is_fedavg_in_a_round(name):
    params, _ = after(rule_of(config(name, NEUTRAL[name])), DATA)
    assert fakes.gap(params, plain()) < 1e-5


def test_a_composed_rule_gives_weights_and_adjusts():
    both = after(rule_of(config("tier_term+logit_adjust")), DATA)
    weights = after(rule_of(config("tier_term")), DATA)
    objective = after(rule_of(config("logit_adjust")), DATA)
    np.testing.assert_allclose(both[1][0].weights, weights[1][0].weights, rtol=1e-5)
    assert fakes.gap(both[0], weights[0]) > 1e-4
    assert fakes.gap(both[0], objective[0]) > 1e-5


def test_cap_and_warm_up_come_from_the_config():
    free = rule_of(config("term", {"t": 40.0}))
    c = config("term", {"t": 40.0}, **{"fairness.cap": 1.5, "fairness.warmup": 1})
    first, second = after(rule_of(c), DATA)[1]
    share = np.asarray(fakes.COUNTS) / sum(fakes.COUNTS)
    np.testing.assert_allclose(first.weights, share, rtol=1e-5)
    assert np.all(second.weights <= 1.5 * share * (1 + 1e-5))
    assert np.any(np.asarray(after(free, DATA)[1][1].weights) > 1.5 * share)


REFUSED = {
    "fairness.rule": [
        (
            {"fairness.rule": "term+cvar"},
            r"one rule that gives weights; got 'term\+cvar'",
        ),
        (
            {"fairness.rule": "term+term"},
            r"every rule once; got 'term\+term'",
        ),
        (
            {"fairness.rule": "ditto+ditto"},
            r"every rule once; got 'ditto\+ditto'",
        ),
        ({"fairness.rule": "tern"}, "term"),
        ({"fairness.rule": "term+logit_ajust"}, "logit_adjust"),
    ],
    "fairness.group": [
        ({"fairness.group": "sex"}, "none with rule size"),
    ],
    "fairness.client_group": [
        (
            {"fairness.rule": "agnostic", "fairness.agnostic.domain": "client_group"},
            "for every hospital with rule agnostic",
        ),
        (
            {"fairness.rule": "gifair", "fairness.gifair.groups": "client_group"},
            "for every hospital with rule gifair",
        ),
        ({"fairness.client_group": ("north", "north")}, "two groups"),
        ({"fairness.client_group": ("north", 2)}, "a group's name .*got 2"),
    ],
    "fairness.agnostic.domain": [
        (
            {"fairness.rule": "agnostic", "fairness.agnostic.domain": "clientgroup"},
            'Did you mean "client_group"',
        ),
    ],
    "fairness.denominator": [
        (
            {"fairness.rule": "fedfv", "fairness.denominator": "fixed"},
            "cover with rule fedfv",
        ),
        ({"fairness.denominator": "covers"}, "cover"),
    ],
    "fairness.cap": [
        ({"fairness.cap": 0.5, "fairness.rule": "term"}, ">= 1"),
        (
            {"fairness.cap": 2.0, "fairness.rule": "fedmgda"},
            "a rule that gives weights",
        ),
    ],
    "local.optimizer": [
        ({"fairness.rule": "q_fedavg", "local.optimizer": "adam"}, "sgd for q_fedavg"),
    ],
    "local.momentum": [
        ({"fairness.rule": "q_fedavg", "local.momentum": 0.9}, "0 for q_fedavg"),
    ],
    "local.max_grad_norm": [
        ({"fairness.rule": "q_fedavg", "local.max_grad_norm": 1.0}, "0 for q_fedavg"),
    ],
    "submodel.depthfl.feddyn": [
        (
            {
                "fairness.rule": "q_fedavg+logit_adjust",
                "submodel.name": "depthfl",
                "submodel.depthfl.feddyn": 0.1,
            },
            "0 for q_fedavg",
        ),
    ],
    "fairness.cvar.alpha": [
        ({"fairness.rule": "cvar", "fairness.cvar.alpha": 0.0}, "0, 1"),
    ],
}


@pytest.mark.parametrize(
    ("where", "fields", "what"),
    [(where, *case) for where, cases in REFUSED.items() for case in cases],
)
def test_impossible_configs_are_refused_by_name(where, fields, what):
    c = default.get_config()
    c.update_from_flattened_dict(fields)
    with pytest.raises(require.InputError, match=rf"^{where}.*{what}"):
        validate.check(c)


def test_q_fedavg_reads_the_decay_of_the_config():
    """Heart disease has weight decay: 1 + q |g| (|g| + 0.1 |w|) / (L F)."""
    c = heart_disease.get_config()
    c.fairness.rule = "q_fedavg"
    validate.check(c)
    rule, d, w = rule_of(c), jnp.asarray([[0.3, 0.4]]), jnp.asarray([3.0, 4.0])
    known = CohortStats(
        jnp.ones(1, int),
        jnp.ones(1),
        delta={"w": d},
        cover={"w": jnp.ones((1, 2))},
        incoming={"w": w},
    )
    alone = fakes.cohort((0,), (0,))
    given, _ = rule.weights((), alone, known)
    _, den, _ = rule.combine((), alone, known, given)
    length, lipschitz = 0.5 / 0.03, 1 / 0.03
    expected = 1 + length * (length + 0.1 * 5) / lipschitz
    np.testing.assert_allclose(den["w"], expected, rtol=1e-5)


def test_a_rule_for_full_participation_refuses_a_partial_cohort():
    c = config("afl", clients_per_round=3)
    with pytest.raises(
        require.InputError, match=r"^clients_per_round: .*all hospitals.* afl"
    ):
        build.run(c)


def test_every_client_has_a_group_in_the_clients_order():
    """Groups are numbered by name; a list that is too short is refused."""
    c = config("agnostic", {"domain": "client_group"})
    c.data.partition.num_clients = 4
    c.fairness.client_group = ("south", "north", "south", "east")
    run = build.run(c)
    assert run.client_groups == ("east", "north", "south")
    assert run.group_of == (2, 1, 2, 0)
    assert run.spec.rule.init({}, FederationFacts(jnp.ones(4, int), 4)).scale.shape == (
        3,
    )
    c.fairness.client_group = ("south", "north", "south")
    what = r"^fairness\.client_group: .*4 groups, one per hospital \(hospital_0, "
    with pytest.raises(require.InputError, match=what):
        build.run(c)


@pytest.mark.parametrize(
    ("rule", "group", "column"),
    [("fairfed", None, 1), ("agnostic", None, 0), ("agnostic", "sex", 1)],
)
def test_the_attribute_of_a_rule(tmp_path, rule, group, column):
    """Without a name it is the first that fits: fairfed takes only two values."""
    rows = [f"{'abc'[i % 3]},{'mf'[i % 2]},{i},{i % 2}" for i in range(60)]
    (tmp_path / "mine.csv").write_text("\n".join(["band,sex,dose,ill", *rows]))
    data = {"path": str(tmp_path / "mine.csv"), "label": "ill", "name": "csv"}
    fields = {f"data.{name}": value for name, value in data.items()}
    c = config(rule, **fields, **{"data.group": ("band", "sex")})
    c.data.partition.num_clients = 4
    c.fairness.agnostic.domain = "group"
    c.fairness.group = group
    spec = build.run(c).spec
    assert (spec.attribute, spec.groups) == (column, (3, 2)[column])
    c.fairness.group = "band"
    if rule == "fairfed":
        with pytest.raises(require.InputError, match=r"^fairness\.group: .*sex"):
            build.run(c)


def test_data_without_an_attribute_are_refused():
    with pytest.raises(
        require.InputError, match=r"^fairness\.rule: .*two values.*fairfed"
    ):
        build.run(config("fairfed"))


# -------------------------------------------------------------------------- situations

OWNER = np.repeat(np.arange(4), fakes.COUNTS)


def changed(**leaves):
    """The federation with other leaves, of the same shapes."""
    return dataclasses.replace(DATA, **leaves)


def counted(*counts):
    return changed(count=jnp.asarray(counts, jnp.int32))


def of_one_class():
    """Client 1 has no class but 2."""
    y = jnp.where(OWNER == 1, 2, DATA.y)
    labels = DATA.labels.at[1].set(jnp.asarray([0, 0, 7]))
    return changed(y=y, labels=labels)


ALL, NONE = fakes.cohort(), fakes.cohort(valid=4 * [False])
SITUATIONS = {
    "usual": (DATA, ALL),
    "padded slots alone": (DATA, NONE),
    "one client": (DATA, fakes.cohort(valid=[False, False, True, False])),
    "one record each": (counted(1, 1, 1, 1), ALL),
    "one record at one": (counted(10, 7, 23, 1), ALL),
    "no records at one": (counted(10, 0, 23, 5), ALL),
    "no records at all": (counted(0, 0, 0, 0), ALL),
    "one class at one": (of_one_class(), ALL),
    "one tier": (DATA, fakes.cohort(tiers=(1, 1, 1, 1))),
    "a tier without a client": (DATA, fakes.cohort(valid=[True, True, False, True])),
    "constant features": (changed(x=jnp.ones_like(DATA.x)), ALL),
    "features of zero": (changed(x=jnp.zeros_like(DATA.x)), ALL),
    "losses that are huge": (changed(x=1e9 * DATA.x), ALL),
    "changes that are long": (changed(x=1e18 * DATA.x), ALL),
    "losses whose sums overflow": (changed(x=3e37 * DATA.x), ALL),
    "losses that overflow": (changed(x=1e38 * jnp.sign(DATA.x)), ALL),
    "one client of no number": (
        changed(x=jnp.where(OWNER[:, None] == 2, jnp.nan, DATA.x)),
        ALL,
    ),
    "no number anywhere": (changed(x=jnp.full_like(DATA.x, jnp.nan)), ALL),
    "no patient group known": (changed(group=jnp.full_like(DATA.group, -1)), ALL),
}
"""Name -> (records, cohort), all of one shape, so that a rule is compiled once."""
MODERATE = {"usual", "one client", "one record each", "one tier", "one class at one"}
"""Situations in which a round must move the model."""


def started(name):
    if name != "fedbn":
        return named(name)
    model = resmlp(classes=3, width=4, hidden=4, depth=1, norm="layer")
    return stepping(rule_of(config(name)), DATA, model=model)


@pytest.mark.parametrize("name", registry.RULES)
def test_a_rule_survives_every_situation(name):
    first, step = started(name)
    for situation, (data, cohort) in SITUATIONS.items():
        before = first
        for _ in range(2):
            state, info = step(before, data, cohort)
            plain = jax.device_get(dataclasses.replace(state, key=None))
            loss, weights, valid, coverage, *_ = jax.device_get(info)
            for leaf in jax.tree.leaves(plain):
                assert np.all(np.isfinite(leaf)), situation
            total = weights.sum()
            assert total == 0 or abs(total - 1) < 1e-4, situation
            assert np.all(weights >= 0), situation
            assert np.all(weights[~valid] == 0), situation
            # Without clients the loss is unknown, not 0.
            assert np.isnan(loss) if total == 0 else np.isfinite(loss), situation
            same = fakes.equal(plain.params, jax.device_get(before.params))
            if total == 0:
                assert same, situation
                assert coverage == 0, situation
            elif situation in MODERATE:
                assert not same, situation
            before = state
    assert step._cache_size() == 1


def test_which_clients_count_in_these_situations():
    """The situations are as their names say."""
    first, step = started("size")
    valid = {
        situation: step(first, data, cohort)[1].valid.tolist()
        for situation, (data, cohort) in SITUATIONS.items()
    }
    without_clients = [situation for situation, each in valid.items() if not any(each)]
    assert without_clients == [
        "padded slots alone",
        "no records at all",
        "changes that are long",
        "losses whose sums overflow",
        "losses that overflow",
        "no number anywhere",
    ]
    assert valid["one client of no number"] == [True, True, False, True]
    assert valid["no records at one"] == [True, False, True, True]
    assert valid["losses that are huge"] == [False, True, False, True]
    assert valid["one record each"] == valid["features of zero"] == 4 * [True]


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name == "inclusivefl" else pytest.mark.slow)
        for name in registry.METHODS
    ],
)
@pytest.mark.parametrize("rule", ["fedbn", "private_head"])
def test_clients_keep_leaves_under_every_method(method, rule):
    """Traced, not run; also if tiers have copies of the leaves or share changes."""
    c = default.get_config()
    c.update_from_flattened_dict(
        {
            "fairness.rule": rule,
            "submodel.name": method,
            "data.partition.num_clients": 4,
            "model.name": "resmlp",
            "model.resmlp.norm": "layer",
            "model.resmlp.width": 8,
            "model.resmlp.hidden": 4,
        }
    )
    run = build.run(c)
    if (rule, method) == ("private_head", "lora"):
        # Factors are named after their kernels, and none belongs to a head.
        with pytest.raises(
            require.InputError, match="a model with leaves that it keeps"
        ):
            resume.initial_state(run)
        return
    state = resume.initial_state(run)

    def step(state):
        data = jax.tree.map(jnp.asarray, run.splits.train)
        cohort = Cohort(jnp.arange(2), jnp.asarray(run.tiers[:2]), jnp.ones(2, bool))
        return round.step(state, data, cohort, spec=run.spec, layout=run.layout)

    new, _ = jax.eval_shape(step, state)
    assert require.describe(new) == require.describe(state)
