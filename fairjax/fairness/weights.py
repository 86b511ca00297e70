"""Rules that weigh clients: pure functions from what is known to a simplex point.

All of them give exactly 0 to a padded slot and, where they ask for losses, to a client
whose loss is no finite number; they sum to 1 over the others, and are all zero for a
cohort without any (the round then changes nothing). They commute with permutations of
the cohort, ties included. Losses are those of each client's own sub-model at the
incoming model.

Exponents are taken relative to the largest, and a loss that is finite may be as large
as float32 holds: however strong a rule, what overflows is the distance of the others,
whose weights are then exactly 0, and state that is carried stays finite.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from fairjax.core import require, simplex
from fairjax.core.types import Cohort, Rule, Scalar, Scores

LOSS = frozenset({"loss"})

_FLOOR = 1e-10
"""Losses are floored here, as in the reference code of q-FFL: log 0 is not a weight."""


def _stateless(
    weigh: Callable[[Cohort, Scores], Float[Array, "K"]], *needs: str
) -> Rule:
    return Rule(
        lambda state, cohort, scores: (weigh(cohort, scores), state), frozenset(needs)
    )


def size() -> Rule:
    """w_k = n_k / sum_j n_j, n_k the training records of client k.

    Source: FedAvg, McMahan et al. 2017.
    """
    return _stateless(lambda cohort, scores: simplex.by_records(scores, cohort.valid))


def uniform() -> Rule:
    """w_k = 1 / K over the valid clients: every hospital counts the same."""
    return _stateless(lambda cohort, scores: simplex.alike(scores, cohort.valid))


def q_ffl(*, q: Scalar) -> Rule:
    """w_k proportional to n_k F_k^q, F_k the loss of client k at the incoming model.

    q = 0 is FedAvg; a larger q moves weight to the clients that are served worst, and
    q -> infinity leaves only the worst. These are the weights under which a step along
    the mean change is a step on the q-FFL objective; the update rule with a Lipschitz
    estimate of the step size is `directions.q_fedavg`.

    Source: Li et al. 2020, "Fair resource allocation in federated learning", eq. (2).
    """
    require.in_range("fairness.q_ffl.q", q, 0)

    def weigh(cohort: Cohort, scores: Scores) -> Float[Array, "K"]:
        valid = simplex.known(scores, cohort.valid)
        log_loss = jnp.log(jnp.maximum(simplex.loss(scores), _FLOOR))
        power = q * _from_largest(log_loss, valid)
        return simplex.softmax(simplex.log_count(scores) + power, valid)

    return _stateless(weigh, "loss")


def term(*, t: Scalar) -> Rule:
    """w_k proportional to n_k exp(t F_k): the gradient's weights under a tilted loss.

        (1 / t) log sum_k p_k exp(t F_k)

    t = 0 is FedAvg, t -> infinity leaves the worst client alone, as does any t at which
    the tilt of every other one overflows. The published code
    normalises by a moving average over rounds; here it is the round's own sum, so that
    the weights are a simplex point.

    Source: TERM, Li et al. 2021, "Tilted empirical risk minimization", lemma 1.
    """
    require.in_range("fairness.term.t", t, 0)

    def weigh(cohort: Cohort, scores: Scores) -> Float[Array, "K"]:
        valid = simplex.known(scores, cohort.valid)
        tilt = t * _from_largest(simplex.loss(scores), valid)
        return simplex.softmax(simplex.log_count(scores) + tilt, valid)

    return _stateless(weigh, "loss")


def _from_largest(
    value: Float[Array, "K"], valid: Bool[Array, "K"]
) -> Float[Array, "K"]:
    """The distance v_k - max_j v_j over valid clients, 0 for the others.

    Of a huge loss: log n_k does not drown in it, and no strength makes it overflow.
    """
    return jnp.where(valid, value - jnp.max(value, where=valid, initial=-jnp.inf), 0)


# ------------------------------------------------------------------------ by loss rank


def _distorted(
    cohort: Cohort,
    scores: Scores,
    distortion: Callable[[Float[Array, "K"]], Float[Array, "K"]],
) -> Float[Array, "K"]:
    """Ordered weights: worst first, client k gets what g gains over its share p_k.

        w_k = (p_k / P_k) (g(A_k + P_k) - g(A_k)),

    A_k the share of the clients with a higher loss, P_k of those with the same one; so
    tied clients divide theirs by records. g is concave, g(0) = 0 and g(1) = 1.
    """
    loss, valid = simplex.loss(scores), simplex.known(scores, cohort.valid)
    share = simplex.by_records(scores, valid)
    above = jnp.sum(jnp.where(loss > loss[:, None], share, 0), axis=1)
    tied = jnp.sum(jnp.where(loss == loss[:, None], share, 0), axis=1)
    gain = distortion(jnp.minimum(above + tied, 1)) - distortion(jnp.minimum(above, 1))
    weights = share / jnp.where(tied > 0, tied, 1) * gain
    return simplex.over_valid(weights, valid)


def cvar(*, alpha: float) -> Rule:
    """Weights of the conditional value at risk: the worst-served share alpha alone.

        max { sum_k w_k F_k : w on the simplex, w_k <= p_k / alpha },   p_k = n_k / n

    alpha = 1 is FedAvg, alpha -> 0 leaves the worst client. A client across the border
    of the share counts with its part.

    Source: Rockafellar and Uryasev 2000; in federated learning Laguel et al. 2021, "A
    superquantile approach to federated learning with heterogeneous devices".
    """
    require.in_range("fairness.cvar.alpha", alpha, 0, 1, open_low=True)
    return _stateless(
        lambda cohort, scores: _distorted(
            cohort, scores, lambda share: jnp.minimum(share / alpha, 1)
        ),
        "loss",
    )


def ordered(*, power: float) -> Rule:
    """Ordered weights that fall with the rank: `_distorted` by g(u) = u^power.

    power = 1 is FedAvg; a smaller one moves weight smoothly to higher losses, and
    power -> 0 leaves the worst client alone.

    Source: ordered weighted averaging, Yager 1988; the distortion is the proportional
    hazards transform, Wang 1995.
    """
    require.in_range("fairness.ordered.power", power, 0, 1, open_low=True)
    return _stateless(
        lambda cohort, scores: _distorted(cohort, scores, lambda share: share**power),
        "loss",
    )


GROUPINGS = ("client", "tier", "hospital_group")


def gifair(*, c: float, groups: str, hospitals: Sequence[int] = ()) -> Rule:
    """w_k = p_k + lambda r_k / |A_k|, r_k the rank of its group's mean loss.

        r_k = sum over groups g of sign(L_k - L_g),   lambda = c min_k p_k |A_k| / (d-1)

    with L the mean loss of a group's clients, |A_k| the clients of k's group and d the
    number of groups: the gradient's weights of sum_k p_k F_k + lambda sum over pairs of
    groups |L_g - L_h|. Tied groups share a rank. c = 0 is FedAvg; below 1 no weight is
    negative. The published algorithm scales each client's loss by w_k / p_k and
    averages by p_k, which is the same to first order in the learning rate.

    Args:
        c: share of the largest admissible lambda, in [0, 1).
        groups: "client", where every client is a group, "tier" or "hospital_group".
        hospitals: group of every hospital, for "hospital_group".

    Source: GIFAIR-FL, Yue et al. 2023, eqs. (2) and (4).
    """
    require.in_range("fairness.gifair.c", c, 0, 1, open_high=True)
    require.one_of("fairness.gifair.groups", groups, GROUPINGS)

    def weigh(cohort: Cohort, scores: Scores) -> Float[Array, "K"]:
        loss, valid = simplex.loss(scores), simplex.known(scores, cohort.valid)
        share = simplex.by_records(scores, valid)
        group = cohort.tier if groups == "tier" else cohort.client
        if groups == "hospital_group":
            group = jnp.asarray(hospitals)[cohort.client]
        together = (group == group[:, None]) & valid
        members = jnp.maximum(jnp.sum(together, axis=1), 1).astype(share.dtype)
        mean = jnp.sum(jnp.where(together, loss, 0) / members[:, None], axis=1)
        # Every group speaks with one voice: each of its clients with 1 / |A|.
        voice = jnp.where(valid, 1 / members, 0)
        rank = jnp.sum(voice * jnp.sign(mean[:, None] - mean), axis=1, where=valid)
        number = jnp.maximum(jnp.round(jnp.sum(voice)) - 1, 1)
        most = jnp.min(share * members, where=valid, initial=jnp.inf) / number
        weights = share + c * jnp.where(jnp.isfinite(most), most, 0) * rank / members
        return simplex.over_valid(weights, valid)

    return _stateless(weigh, "loss")


# ----------------------------------------------------------------- adversarial weights


def afl(*, rate: float) -> Rule:
    """Agnostic federated learning: the weights climb the losses by projected ascent.

        lambda <- Proj_simplex(lambda + rate F),   w = lambda before the step,

    from lambda_k = n_k / n; rate = 0 is FedAvg. The saddle point minimises the loss of
    the worst mixture of hospitals. All take part in every round; the model of a round
    is the last iterate, not the average over rounds of the convergence theorem.

    Source: Mohri et al. 2019, algorithm 1.
    """
    require.in_range("fairness.afl.rate", rate, 0)

    def init(params: PyTree, counts: Int[Array, "N"], tiers: int) -> Float[Array, "N"]:
        share = counts.astype(jnp.float32)
        return share / jnp.sum(share)

    def weigh(
        state: Float[Array, "N"], cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        valid = simplex.known(scores, cohort.valid)
        mass = jnp.where(valid, state[cohort.client], 0)
        weights = simplex.restricted(mass, simplex.by_records(scores, valid))
        climbed = ascend(mass, rate, simplex.loss(scores), valid, jnp.sum(mass))
        slot = jnp.where(valid, cohort.client, len(state))
        return weights, state.at[slot].set(climbed.astype(state.dtype), mode="drop")

    return Rule(weigh, LOSS, everyone=True, init=init)


def ascend(
    mass: Float[Array, "K"],
    rate: float,
    loss: Float[Array, "K"],
    valid: Bool[Array, "K"],
    total: Float[Array, ""],
) -> Float[Array, "K"]:
    """Proj(mass + rate * loss) onto {x >= 0, sum x = total}, 0 where not valid.

    Who is away keeps its mass where `total` is what the others had; of 0 it stays 0.
    """
    high = jnp.where(valid, jnp.ones_like(mass), 0)
    scale = jnp.where(total > 0, total, 1)
    # A common shift moves no projection, nor does how far beyond 1 behind a mass is.
    step = jnp.maximum(rate * _from_largest(loss, valid) / scale, -2)
    climbed = mass / scale + step
    return total * simplex.project(climbed, jnp.zeros_like(mass), high)
