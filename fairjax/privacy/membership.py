"""Was this record trained on? Scores of records, higher for a likelier member.

    loss         -l_i                                                Yeom et al. 2018
    by class     share of non-members of class y_i with larger losses  Ye et al. 2022
    calibrated   mean of l_i over models without i, minus l_i     Watson et al. 2022
    likelihood   log p(phi_i | with i) - log p(phi_i | without i)   Carlini et al. 2022
    alignment    cosine of an upload and the step that i asks for     Li et al. 2023

l is the attacked model's cross-entropy. The second to fourth rest on M shadow models,
trained as the attacked one on records of which it is known whether they were members.
A score that shadow models cannot give (no one left the record out) is NaN.

An attack that does not look at the model has an AUC of 1/2 and at 1 % false positives
finds 1 % of the members, unless members and non-members differ in themselves:
`difficulty` is the score of such a blind attacker.

Sources: Yeom, Giacomelli, Fredrikson and Jha 2018, adversary 1, for all thresholds;
Ye, Maddi, Murakonda, Bindschaedler and Shokri 2022, attack S; Watson, Guo, Cormode and
Sablayrolles 2022, on losses; Carlini et al. 2022, the online attack with the variances
of all records pooled, as they advise for few shadow models; Li, Li and Ribeiro 2023,
the cosine attack.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from fairjax.types import Params


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
