"""Was this record trained on? Scores of records, higher for a likelier member.

    loss         -l_i                                                Yeom et al. 2018
    by class     share of non-members of class y_i with larger losses  Ye et al. 2022
    calibrated   mean of l_i over models without i, minus l_i     Watson et al. 2022
    likelihood   log p(phi_i | with i) - log p(phi_i | without i)   Carlini et al. 2022
    relative     share of others z with p(i) / E p(i) >= gamma p(z) / E p(z)
                                                                 Zarifzadeh et al. 2024
    alignment    cosine of an upload and the step that i asks for     Li et al. 2023

l is the attacked model's cross-entropy. The second to fifth rest on M shadow models,
trained as the attacked one on records of which it is known whether they were members.
A score that shadow models cannot give (no one left the record out) is NaN.

An attack that does not look at the model has an AUC of 1/2 and at 1 % false positives
finds 1 % of the members, unless members and non-members differ in themselves:
`difficulty` is the score of such a blind attacker.

Sources: Yeom, Giacomelli, Fredrikson and Jha 2018, adversary 1, for all thresholds;
Ye, Maddi, Murakonda, Bindschaedler and Shokri 2022, attack S; Watson, Guo, Cormode and
Sablayrolles 2022, on losses; Carlini et al. 2022, the online attack with the variances
of all records pooled, as they advise for few shadow models; Zarifzadeh, Liu and Shokri
2024, see `relative`; Li, Li and Ribeiro 2023, the cosine attack.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from scipy.stats import binom

from fairjax.attacks.epsilon import upper
from fairjax.core.types import Params


def margin(logits: Float[Array, "*more C"], y: Int[Array, "..."]) -> Array:
    """The logit of the true class's probability, [*more].

        phi = log p_y / (1 - p_y) = z_y - log sum_{c != y} exp z_c

    It saturates nowhere, and over models it is nearly Gaussian.
    """
    of_class = jnp.arange(logits.shape[-1]) == y[..., None]
    own = jnp.sum(jnp.where(of_class, logits, 0), axis=-1)
    others = jnp.where(of_class, -jnp.inf, logits)
    return own - jax.nn.logsumexp(others, axis=-1)


def _mean(values: Float[Array, "M E"], where: Bool[Array, "M E"]) -> Float[Array, "E"]:
    """Over the models in `where`; NaN where there are none."""
    number = jnp.sum(where, axis=0)
    total = jnp.sum(jnp.where(where, values, 0), axis=0)
    mean = total / jnp.maximum(number, 1).astype(values.dtype)
    return jnp.where(number > 0, mean, jnp.nan)


def by_class(
    loss: Float[Array, "E"],
    y: Int[Array, "E"],
    shadow: Float[Array, "M E"],
    inside: Bool[Array, "M E"],
    *,
    classes: int,
) -> Float[Array, "E"]:
    """1 - alpha_y(l): alpha is the false positive rate of the threshold l in class y.

        alpha_y(l) = share of (model, record of class y that it left out) with loss < l

    So a threshold on the score is one on the loss in every class, of the same false
    positive rate in all of them. Without non-members of a class: NaN.

    Args:
        loss: of the attacked model.
        y: the true class.
        shadow: losses of the shadow models.
        inside: which records each of them was trained on.
        classes: C.
    """

    def of(label: Array) -> Array:
        counts = ~inside & (y == label)
        ranked = jnp.sort(jnp.where(counts, shadow, jnp.inf).ravel())
        below = jnp.searchsorted(ranked, loss).astype(loss.dtype)
        number = jnp.sum(counts).astype(loss.dtype)
        share = 1 - jnp.minimum(below / jnp.maximum(number, 1), 1)
        return jnp.where(number > 0, share, jnp.nan)

    scores = jax.lax.map(of, jnp.arange(classes))
    return scores[y, jnp.arange(y.shape[0])]


def difficulty(
    shadow: Float[Array, "M E"], inside: Bool[Array, "M E"]
) -> Float[Array, "E"]:
    """Minus the mean loss over shadow models without the record: a blind guess."""
    return -_mean(shadow, ~inside)


def calibrated(
    loss: Float[Array, "E"],
    shadow: Float[Array, "M E"],
    inside: Bool[Array, "M E"],
) -> Float[Array, "E"]:
    """How much lower the loss is than those of shadow models without the record."""
    return -difficulty(shadow, inside) - loss


def likelihood(
    phi: Float[Array, "E"],
    shadow: Float[Array, "M E"],
    inside: Bool[Array, "M E"],
) -> Float[Array, "E"]:
    """The log-likelihood ratio of two Gaussians, fitted with and without the record.

        mu_i by record, sigma^2 the mean over records of (phi_i - mu_i)^2, each over
        the models with (without) the record

    Args:
        phi: `margin` of the attacked model.
        shadow: those of the shadow models.
        inside: which records each of them was trained on.
    """

    def log_density(where: Array) -> Array:
        mean = _mean(shadow, where)
        square = jnp.where(where, (shadow - mean) ** 2, 0)
        number = jnp.sum(where).astype(phi.dtype)
        variance = jnp.sum(square) / jnp.maximum(number, 1)
        variance = jnp.maximum(variance, jnp.finfo(phi.dtype).tiny)
        return -0.5 * (jnp.log(variance) + (phi - mean) ** 2 / variance)

    return log_density(inside) - log_density(~inside)


def relative(
    loss: Float[Array, "E"],
    shadow: Float[Array, "M E"],
    inside: Bool[Array, "M E"],
    *,
    gamma: float | Float[Array, ""],
    scale: float | None = None,
    chunk: int = 256,
) -> Float[Array, "E"]:
    """RMIA: how many others the record surpasses in what the model gained on it.

        score(x) = Pr_z [LR(x, z) >= gamma],
        LR(x, z) = (p_theta(x) / p(x)) / (p_theta(z) / p(z)),

    with p_theta the probability of the true class under the attacked model, and p its
    mean over models with and without the record, half and half. Online both halves are
    those of the shadow models; offline no shadow model has seen the record, and

        p(x) = (p_in + p_out) / 2,    p_in = a p_out + 1 - a.

    The population of z are all other records that have a ratio, as the attacker does
    not know which of them were members; on one attacked model z moves no record past
    another, but gamma > 1 makes the records tie that surpass nobody by so much.

    Args:
        loss: of the attacked model, -log p_theta.
        shadow: losses of the shadow models.
        inside: which records each of them was trained on.
        gamma: by what factor it must surpass another, at least 1.
        scale: a in [0, 1] of the offline attack; None: online.
        chunk: records side by side, which bounds the memory.

    Returns:
        A share in [0, 1]. NaN for a record that no shadow model left out, or online
        that none was trained on, and where there is no other to compare it with.

    Source: Zarifzadeh, Liu and Shokri 2024, "Low-Cost High-Power Membership Inference
    Attacks" (ICML, PMLR 235; arXiv:2312.03262), the test and its offline form.
    Deviates: plain softmax and mean, where their experiments soften the probabilities
    and trim the mean; equality counts, which their code leaves out.
    """

    def log_mean(where: Array) -> Array:
        number = jnp.sum(where, axis=0)
        total = jax.nn.logsumexp(-shadow, axis=0, where=where)
        mean = total - jnp.log(jnp.maximum(number, 1).astype(shadow.dtype))
        return jnp.where(number > 0, mean, jnp.nan)

    out = log_mean(~inside)
    if scale is None:
        twice = jnp.logaddexp(log_mean(inside), out)
    else:
        rest = jnp.log(jnp.asarray(1 - scale, out.dtype))
        twice = jnp.logaddexp(jnp.log1p(jnp.asarray(scale, out.dtype)) + out, rest)
    ratio = -loss - (twice - jnp.log(jnp.asarray(2, out.dtype)))
    known = ~jnp.isnan(ratio)
    least = jnp.log(jnp.asarray(gamma, ratio.dtype))
    numbers = jnp.arange(ratio.shape[0], dtype=jnp.int32)

    def share(at: tuple[Array, Array]) -> Array:
        mine, number = at
        others = known & (numbers != number)
        surpassed = jnp.sum(others & (mine - ratio >= least))
        count = jnp.sum(others)
        part = surpassed / jnp.maximum(count, 1)
        return jnp.where((count > 0) & ~jnp.isnan(mine), part, jnp.nan)

    return jax.lax.map(share, (ratio, numbers), batch_size=chunk)


def alignment(upload: Params, gradient: Params) -> Float[Array, ""]:
    """cos(d, -g): how well a change d fits the step that a record's gradient asks for.

    Over the coordinates of which d speaks: it is to be 0 at all others, and g too. 0 if
    one of them is. A hospital whose record it is leaves a larger cosine in its uploads;
    the mean over rounds is the score.
    """
    inner = jnp.asarray(optax.tree.vdot(upload, gradient))
    lengths = optax.tree.norm(upload) * optax.tree.norm(gradient)
    return jnp.where(lengths > 0, -inner / jnp.where(lengths > 0, lengths, 1), 0)


def found(
    score: Float[Array, "E"],
    member: Bool[Array, "E"],
    where: Bool[Array, "E"],
    *,
    rate: float = 0.01,
) -> Float[Array, ""]:
    """Share of the members found by the threshold with this false positive rate.

    With n non-members, floor(rate n) of them may lie above the threshold; what ties
    with it is not called a member.

    Args:
        score: of every record.
        member: whether it was one.
        where: the records that count; their scores are numbers.
        rate: of false positives, at most.

    Returns:
        The true positive rate; NaN with fewer than 1 / rate non-members, of whom none
        could be a false positive, or without members.
    """
    out, inside = where & ~member, where & member
    # A hair more: 0.29 * 100 is below 29 in floats.
    number = jnp.sum(out).astype(score.dtype)
    allowed = jnp.floor(number * rate * (1 + 1e-6)).astype(jnp.int32)
    ranked = jnp.sort(jnp.where(out, score, -jnp.inf), descending=True)
    above = inside & (score > ranked[allowed])
    members = jnp.sum(inside)
    share = jnp.sum(above) / jnp.maximum(members, 1)
    return jnp.where((allowed > 0) & (members > 0), share, jnp.nan)


def interval(
    inside: Float[np.ndarray, "members"],
    outside: Float[np.ndarray, "others"],
    *,
    rate: float,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Between what the share of members found at a false positive rate lies.

    The share is Pr(s > t) of a member, at the least t that no more than `rate` of
    non-members exceed. Neither t nor the share at it is known, and four statements
    bound both, each wrong with probability (1 - confidence) / 4 at most: t lies between
    two order statistics of the non-members, as how many of n exceed it is
    Binomial(n, rate); at either of them, which the members did not choose, the share
    has a Clopper-Pearson bound. So the interval holds for every distribution of the
    scores, with ties too, and for every n; a bootstrap of the extreme order statistics
    that a low rate asks for does not. With few non-members no score is surely above t
    (fewer than 437 for 1 % and a confidence of 95 %), and the lower end is 0.

    Args:
        inside: scores of members, as independent draws; numbers.
        outside: those of non-members.
        rate: of false positives.
        confidence: that the share lies in it.

    Returns:
        (low, high), which `found` lies between; (0, 1) without members or non-members.

    Source: Clopper and Pearson 1934; David and Nagaraja 2003, Order Statistics, 7.1,
    for the quantile; the union bound over the four.
    """
    members, others = len(inside), len(outside)
    if not members or not others:
        return 0.0, 1.0
    error = (1 - confidence) / 4
    ranked = np.sort(outside)[::-1]
    above = int(binom.ppf(error, others, rate)) - 1
    below = int(binom.ppf(1 - error, others, rate))
    highest = ranked[above] if above >= 0 else np.inf
    lowest = ranked[below] if below < others else -np.inf
    hits = (int(np.sum(inside > threshold)) for threshold in (highest, lowest))
    few, many = hits
    low = 1 - upper(np.asarray(members - few), members, 1 - error)
    high = upper(np.asarray(many), members, 1 - error)
    return float(low), float(high)


def curve(
    inside: Float[np.ndarray, "members"],
    outside: Float[np.ndarray, "others"],
    *,
    points: int = 50,
) -> list[tuple[int, int]]:
    """The ROC curve, thinned evenly in the logarithm of its false positives.

    As in `found`, the threshold is the score of a non-member, which is not called, nor
    is what ties with it: where non-members tie, fewer are called than a point allows,
    and the point is not there.

    Args:
        inside: scores of members; numbers.
        outside: those of non-members.
        points: at most, the ends among them.

    Returns:
        (false positives, true positives) as counts, fewest first, from the threshold
        that no non-member exceeds to that which everybody does; empty without members
        or non-members.
    """
    members, others = len(inside), len(outside)
    if not members or not others:
        return []
    ranked, found_at = np.sort(outside)[::-1], np.sort(inside)
    steps = np.geomspace(1, others, max(points - 1, 1)).round().astype(int)
    made = {}
    for allowed in [0, *np.unique(steps[steps < others]).tolist()]:
        threshold = ranked[allowed]
        wrong = int(np.sum(ranked > threshold))
        made[wrong] = members - int(np.searchsorted(found_at, threshold, side="right"))
    made[others] = members
    return sorted(made.items())
