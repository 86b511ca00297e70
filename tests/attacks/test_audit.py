"""A private run, attacked and audited: the rows that attack.json gets."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from configs import default
from fairjax import attacks
from fairjax.attacks import audit, canaries, membership
from fairjax.core import require, round
from fairjax.experiment.config import build
from fairjax.experiment.resume import initial_state

FIELDS = {
    "data.name": "breast_cancer",
    "data.partition.num_clients": 3,
    "model.mlp.hidden": (8,),
    "tiers.budget": (0.5, 1.0),
    "tiers.proportions": (1.0, 2.0),
    "submodel.heterofl.masked_loss": False,
    "rounds": 2,
    "eval_every": 2,
}
PRIVATE = {
    "privacy.mechanism": "record_dp",
    "privacy.noise_multiplier": 2.0,
    "privacy.accountant": "rdp",
    "local.steps": 1,
}


def config_of(fields):
    config = default.get_config()
    config.update_from_flattened_dict(FIELDS | fields)
    return config


@pytest.fixture(scope="module")
def finished():
    """Two rounds of record_dp whose sums are secret: the run, and its state."""
    run = build.run(config_of(PRIVATE | {"privacy.secure_sum": "quantized"}))
    whole = functools.partial(
        round.run,
        draw=lambda state: run.draw(state.key, state.round),
        spec=run.spec,
        layout=run.layout,
        rounds=2,
    )
    data = jax.tree.map(jnp.asarray, run.splits.train)
    return run, jax.jit(whole)(initial_state(run), data)


@pytest.fixture(scope="module")
def rows(finished, tmp_path_factory):
    folder, options = tmp_path_factory.mktemp("attacked"), {"shadows": 3, "chunk": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(membership, "RESAMPLES", 20)
        made = attacks.attack("membership", *finished, folder, options)
    assert json.loads((folder / attacks.FILE).read_text()) == made
    return made


def test_there_is_a_row_for_every_attack_and_tier(rows, finished):
    run, _ = finished
    told = [(row["variant"], row["observable"], row["tier"]) for row in rows]
    kinds = [(name, "model") for name in ("loss", "class", "calibrated")]
    kinds += [(name, "model") for name in ("likelihood", "rmia", "rmia_offline")]
    kinds.append(("update", "models"))
    assert told == [(*kind, tier) for kind in kinds for tier in (None, 0, 1)]
    everybody = rows[0]
    assert everybody["members"] == len(run.splits.train.y)
    assert everybody["nonmembers"] == len(run.splits.test.y)
    assert {row["mechanism"] for row in rows} == {"record_dp"}
    json.dumps(rows, allow_nan=False)


def test_figures_are_null_with_a_reason_or_lie_in_their_interval(rows):
    for row in rows:
        assert row["auc_low"] - 0.02 <= row["auc"] <= row["auc_high"] + 0.02
        few = []
        for name, others, rate in (("1", 100, "1%"), ("0.1", 1000, "0.1%")):
            ends = [row[f"tpr_at_{name}{end}"] for end in ("_low", "", "_high")]
            unknown = row["nonmembers"] < others
            assert ends == ([None] * 3 if unknown else sorted(ends))
            few += [rate] * unknown
        assert f"too few for {' and '.join(few)} false positives" in row["reason"]
        assert (row["shadows"] == 3) == (row["variant"] in membership.CALIBRATED)
    known = [row for row in rows if row["tier"] is None]
    assert len({row["blind_auc"] for row in known}) == 1
    for row in rows:
        if row["tier"] is None:
            assert row["roc"][-1] == [row["nonmembers"], row["members"]]
            allowed = [right for wrong, right in row["roc"] if wrong <= 1]
            if row["nonmembers"] >= 100:
                share = allowed[-1] / row["members"]
                assert row["tpr_at_1"] == pytest.approx(share)
        else:
            assert row["roc"] is None


def test_what_the_audit_shows_is_below_what_is_accounted(finished):
    run, _ = finished
    rows = audit.audit(run, audit.Audit(rounds=1, runs=9, chunk=9))
    assert [row["canary"] for row in rows] == list(canaries.CANARIES)
    for row in rows:
        assert row["variant"] == "record"
        assert row["observable"] == "uploads"
        assert row["epsilon"] == max(run.guarantee.epsilon_by_party(1).values())
        assert 0 <= row["epsilon_low"] <= row["epsilon"]
        assert row["exceeds"] is False
        assert row["runs"] == 18
        assert row["confidence"] == pytest.approx(1 - 0.05 / 4)
    json.dumps(rows, allow_nan=False)


def test_a_canary_that_is_not_known_is_refused(finished):
    with pytest.raises(require.InputError, match=r'--canary: .* Did you mean "loud"'):
        audit.audit(finished[0], audit.Audit(canary=("lord",)))


def test_a_run_that_promises_nothing_cannot_be_audited():
    run = build.run(config_of({}))
    with pytest.raises(require.InputError, match=r"privacy\.mechanism"):
        audit.audit(run, audit.Audit())
