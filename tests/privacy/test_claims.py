"""No accepted configuration shows more than it claims; planted faults do.

Neighbouring federations run through the library's own round, see `claims`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from fairjax.core import client
from fairjax.experiment.config import build
from fairjax.privacy import client_level, means, records
from tests.privacy import claims

SMALL = {
    "record_dp": {"method": "heterofl", "fold": "median"},
    "local_dp": {"method": "fedrolex"},
    "client_dp": {"method": "heterofl", "rule": "term", "secure_sum": "masked"},
}
"""Mechanism -> the values of its case that are fixed, not drawn."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("claims") / "table.npz"
    claims.table(path)
    return path


def exceeding(path, case, cases):
    rows = claims.shown(build.run(claims.config_of(path, case)), cases=cases)
    # The runs could not refute a claim above the ceiling.
    assert all(row["epsilon"] < row["ceiling"] for row in rows), case
    return [(case, row) for row in rows if row["exceeds"]]


@pytest.mark.parametrize("mechanism", SMALL)
def test_no_claim_is_exceeded(path, mechanism):
    case = claims.sampled(path, mechanism, 0, **SMALL[mechanism])
    assert not exceeding(path, case, len(SMALL))


PARTS = 16


@functools.cache
def whole(path):
    return [case for name in claims.MECHANISMS for case in claims.cover(path, name)]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_claim_of_the_cover_is_exceeded(path, part):
    """Every pair of values that is accepted together is in some case."""
    cases = whole(path)
    for case in cases[part::PARTS]:
        assert not exceeding(path, case, len(cases))


# ----------------------------------------------------------------------- planted faults


def unclipped(tree, bound):
    return tree, jnp.zeros(())


def losses_decide(patch):
    """The guard reads a loss that has no noise."""
    update = client.update

    def guarded(*args, **settings):
        *rest, info = update(*args, **settings)
        return *rest, info._replace(finite=info.finite & jnp.isfinite(info.loss))

    patch.setattr(client, "update", guarded)


def records_are_not_clipped(patch):
    patch.setattr(records.clipping, "to_norm", unclipped)


def noise_is_small(patch):
    gaussian = client_level.noise.gaussian
    patch.setattr(
        client_level.noise,
        "gaussian",
        lambda key, tree, std: gaussian(key, tree, std / 100),
    )


def failures_show(patch):
    made = client_level.local
    patch.setattr(
        client_level, "local", lambda **of: made(**of)._replace(hides_failure=False)
    )


def changes_are_not_clipped(patch):
    patch.setattr(client_level.clipping, "to_norm", unclipped)


def who_came_divides(patch):
    """The sum is divided by the cohort's weights, not by those of the population."""
    made = client_level.central

    def central(population, **settings):
        inner = made(population, **settings)

        def release(key, state, cohort, valid, sums, public):
            came = jnp.sum(jnp.where(valid, population.weight[cohort.client], 0))
            share = came / jnp.sum(population.weight)
            public = public._replace(
                den=jax.tree.map(lambda den: den * share, public.den)
            )
            return inner.release(key, state, cohort, valid, sums, public)

        return inner._replace(release=release)

    patch.setattr(client_level, "central", central)


def losses_have_no_noise(patch):
    release = means.TierLossRelease.release
    patch.setattr(
        means.TierLossRelease,
        "release",
        lambda self, key, sums: release(self._replace(noise_multiplier=0.0), key, sums),
    )


def nothing_is_guarded(patch):
    whole = build.run

    def built(config):
        run = whole(config)
        return dataclasses.replace(
            run, spec=dataclasses.replace(run.spec, finite_guard=False)
        )

    patch.setattr(build, "run", built)


RECORD = ("record_dp", "poisson", "heterofl", "size", "mean", "off", "cover")
LOCAL = ("local_dp", "full", "heterofl", "size", "mean", "off", "cover")
CLIENT = ("client_dp", "full", "heterofl", "size", "mean", "off", "fixed")
BY_LOSS = ("client_dp", "full", "heterofl", "afl", "mean", "off", "fixed")
FAULTS = {
    losses_decide: (RECORD, "spike"),
    records_are_not_clipped: (RECORD, "loud"),
    failures_show: (LOCAL, "overflow"),
    who_came_divides: (CLIENT, "loud"),
    noise_is_small: (CLIENT, "loud"),
    losses_have_no_noise: (BY_LOSS, "loud"),
}
MORE = {
    changes_are_not_clipped: (LOCAL, "loud"),
    nothing_is_guarded: (CLIENT, "overflow"),
}
CASES = [
    *(pytest.param(fault, id=fault.__name__) for fault in FAULTS),
    *(pytest.param(each, id=each.__name__, marks=pytest.mark.slow) for each in MORE),
]


@pytest.mark.parametrize("fault", CASES)
def test_a_planted_fault_is_found(path, fault, monkeypatch):
    case, canary = (FAULTS | MORE)[fault]
    fault(monkeypatch)
    config = claims.config_of(path, case)
    if fault is changes_are_not_clipped:
        config.local.learning_rate = 0.1
    (row,) = claims.shown(build.run(config), cases=len(CASES), canary=(canary,))
    assert row["exceeds"], row
