"""Personal, fine-tuned and local models of clients, against runs by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from fairjax.core import inference, layout, round
from fairjax.core.types import ClientView
from fairjax.evaluation import personalised
from fairjax.experiment import train
from fairjax.fairness import personal
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.heterofl import heterofl
from tests import fakes

DATA = fakes.federation()
TEST = fakes.federation(counts=(4, 9, 2, 5), seed=7)
TIERS = (0, 1, 2, 1)


def everybody():
    return ClientView(
        jnp.arange(4, dtype=jnp.int32),
        jnp.asarray(TIERS, jnp.int32),
        jnp.ones(4, bool),
        DATA.count,
        DATA.labels,
    )


def narrowed(rule=None):
    """HeteroFL in three tiers."""
    model = fakes.small_mlp(hidden=(8,))
    method = heterofl(model.axes, (0.25, 0.5, 1.0), scaler=False, masked_loss=False)
    return fakes.spec(model, method, rule=rule, epochs=1)


def one_round(spec, state, cohort):
    step = jax.jit(
        lambda state: round.step(
            state, DATA, cohort, spec=spec, layout=layout.vmapped()
        )[0]
    )
    return step(state)


def answers(own, spec):
    return personalised.predict(
        own, TEST, DATA, everybody(), spec=spec, max_records=int(TEST.count.max())
    )


def by_hand(spec, models):
    """Logits of every record by the model of its client, masked to its tier."""
    units = spec.local.method.submodel
    parts = []
    for who, (offset, count) in enumerate(zip(TEST.offset, TEST.count, strict=True)):
        params = models(who)
        kept = units(
            jax.random.key(0),
            jnp.asarray(0),
            params,
            jax.tree.map(lambda leaf, who=who: leaf[who], everybody()),
        )
        x = TEST.x[offset : offset + count]
        parts.append(inference.predict(spec.local, params, x, kept))
    return jnp.concatenate(parts)


def test_every_record_is_predicted_by_the_model_of_its_client():
    """Copies of the model differ by client, and tiers differ in width."""
    spec = narrowed(personal.ditto(strength=0.1))
    state = fakes.start(spec, DATA)
    after = one_round(spec, state, fakes.cohort())
    own = personalised.personal_models(after, spec=spec)
    mine = lambda who: jax.tree.map(lambda leaf: leaf[who], after.personal)  # noqa: E731
    np.testing.assert_allclose(answers(own, spec), by_hand(spec, mine), rtol=1e-5)


def test_local_leaves_predict_for_their_client():
    model = fakes.small_mlp()
    method = personal.with_local_leaves(fedavg(model.axes), personal.private_head())
    spec = fakes.spec(model, method, rule=personal.private_head(), epochs=1)
    after = one_round(spec, fakes.start(spec, DATA), fakes.cohort())

    def mine(who):
        bank = after.leaf_copies["client"]
        head = {name: bank[f"head/{name}"][who] for name in ("kernel", "bias")}
        return {**after.params, "head": head}

    got = answers(personalised.personal_models(after, spec=spec), spec)
    np.testing.assert_allclose(got, by_hand(spec, mine), rtol=1e-5, atol=1e-6)


def test_local_training_is_a_federation_of_one():
    """Three rounds, client by client, on the batches of the run's key."""
    spec = narrowed()
    state = fakes.start(spec, DATA)
    got = personalised.train_local_models(
        state, DATA, everybody(), spec=spec, layout=layout.vmapped(), rounds=3
    )
    for who in (0, 2):
        single = state
        for _ in range(3):
            single = one_round(spec, single, fakes.cohort((who,), (TIERS[who],)))
        mine = jax.tree.map(lambda leaf, who=who: leaf[who], got)
        assert fakes.gap(mine, single.params) < 1e-6
        assert fakes.gap(mine, state.params) > 1e-2


def test_fine_tuning_is_one_more_round_that_is_not_sent():
    spec = narrowed()
    state = one_round(spec, fakes.start(spec, DATA), fakes.cohort())
    own = personalised.fine_tuned_models(state, DATA, spec=spec)
    member = jax.tree.map(lambda leaf: leaf[1], everybody())
    params, kept = own(member)
    single = one_round(spec, state, fakes.cohort((1,), (1,)))
    assert fakes.gap(params, single.params) < 1e-6
    np.testing.assert_allclose(kept.forward.axes["hidden0"].sum(), 4)


@pytest.mark.usefixtures("unfinal")
def test_a_run_reports_which_clients_would_have_been_better_off_alone(tmp_path):
    c = default.get_config()
    c.update_from_flattened_dict(
        {
            "rounds": 2,
            "eval_every": 1,
            "baselines": True,
            "data.partition.num_clients": 4,
            "fairness.rule": "ditto",
            "execution.batching": "vmap",
        }
    )
    summary = train.train(c, tmp_path / "run").summary
    made = summary["baselines"]
    models = ("full", "own", "personal", "tuned", "alone")
    assert [row["client"] for row in made["clients"]] == [
        row["client"] for row in summary["data"]["hospitals"]
    ]
    for model in models[:-1]:
        for figure, better in (("accuracy", np.less), ("loss", np.greater)):
            pairs = [
                (row[model][figure], row["alone"][figure]) for row in made["clients"]
            ]
            expected = np.mean([better(mine, alone) for mine, alone in pairs])
            assert made["worse_off"][model][figure] == expected
    each = [row["personal"]["accuracy"] for row in made["clients"]]
    mean = summary["metrics"]["eval/accuracy/personal/client_mean"]
    np.testing.assert_allclose(mean, np.mean(each), rtol=1e-6)
    np.testing.assert_allclose(made["mean"]["personal"]["accuracy"], mean, rtol=1e-6)
