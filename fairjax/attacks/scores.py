"""Scores of membership: higher for a record that was likelier a training record.

    loss         -l_i                                                Yeom et al. 2018
    class        share of non-members of class y_i with larger losses  Ye et al. 2022
    calibrated   mean of l_i over models without i, minus l_i     Watson et al. 2022
    likelihood   log p(phi_i | with i) - log p(phi_i | without i)   Carlini et al. 2022
    rmia         share of others z with p(i) / E p(i) >= gamma p(z) / E p(z)
                                                                 Zarifzadeh et al. 2024
    alignment    cosine of an upload and the step along -g_i          Li et al. 2023

l is the attacked model's cross-entropy, and g_i the gradient of record i. The second to
fifth scores need M shadow models. These are trained as the attacked model was, on
records whose membership is known. A score is NaN where the shadow models cannot give
one (no model left the record out).

An attack that does not look at the model has an AUC of 1/2, and at 1 % false positives
it finds 1 % of the members, unless members and non-members differ in themselves:
`difficulty` is the score of such a blind attacker.

Sources: Yeom, Giacomelli, Fredrikson and Jha, "Privacy risk in machine learning:
Analyzing the connection to overfitting", CSF 2018, arXiv:1709.01604, adversary 1, for
all thresholds; Ye, Maddi, Murakonda, Bindschaedler and Shokri, "Enhanced membership
inference attacks against machine learning models", CCS 2022, arXiv:2111.09679, attack
S; Watson, Guo, Cormode and Sablayrolles, "On the importance of difficulty calibration
in membership inference attacks", ICLR 2022, arXiv:2111.08440, on losses; Carlini et
al., "Membership inference attacks from first principles", S&P 2022, arXiv:2112.03570,
the online attack with the variances of all records pooled, as they advise for few
shadow models; Zarifzadeh, Liu and Shokri 2024, see `rmia`; Li, Li and Ribeiro,
"Effective passive membership inference attacks in federated learning against
overparameterized models", ICLR 2023, https://openreview.net/forum?id=QsCSLPP55Ku, the
cosine attack.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from fairjax.core.types import Params


def margin(logits: Float[Array, "*more C"], y: Int[Array, "..."]) -> Array:
    """The logit of the true class's probability, [*more].

        phi = log p_y / (1 - p_y) = z_y - log sum_{c != y} exp z_c

    It saturates nowhere, and its distribution over models is nearly Gaussian.
    """
    one_hot = jnp.arange(logits.shape[-1]) == y[..., None]
    true_logit = jnp.sum(jnp.where(one_hot, logits, 0), axis=-1)
    other_logits = jnp.where(one_hot, -jnp.inf, logits)
    return true_logit - jax.nn.logsumexp(other_logits, axis=-1)


def _mean(values: Float[Array, "M E"], where: Bool[Array, "M E"]) -> Float[Array, "E"]:
    """The mean over the models in `where`; NaN where there are none."""
    number = jnp.sum(where, axis=0)
    total = jnp.sum(jnp.where(where, values, 0), axis=0)
    mean = total / jnp.maximum(number, 1).astype(values.dtype)
    return jnp.where(number > 0, mean, jnp.nan)


def class_quantile(
    loss: Float[Array, "E"],
    y: Int[Array, "E"],
    shadow: Float[Array, "M E"],
    membership: Bool[Array, "M E"],
    *,
    classes: int,
) -> Float[Array, "E"]:
    """1 - alpha_y(l): alpha is the false positive rate of the threshold l in class y.

        alpha_y(l) = share of (model, record of class y that it left out) with loss < l

    So a threshold on the score is a threshold on the loss in every class, with the same
    false positive rate in all classes. The score is NaN in a class without non-members.

    Args:
        loss: the attacked model's loss on every record.
        y: the true class of every record.
        shadow: the losses of the shadow models.
        membership: which records each shadow model was trained on.
        classes: C.
    """

    def per_class(label: Array) -> Array:
        nonmember_mask = ~membership & (y == label)
        sorted_losses = jnp.sort(jnp.where(nonmember_mask, shadow, jnp.inf).ravel())
        rank = jnp.searchsorted(sorted_losses, loss).astype(loss.dtype)
        number = jnp.sum(nonmember_mask).astype(loss.dtype)
        share = 1 - jnp.minimum(rank / jnp.maximum(number, 1), 1)
        return jnp.where(number > 0, share, jnp.nan)

    scores = jax.lax.map(per_class, jnp.arange(classes))
    return scores[y, jnp.arange(y.shape[0])]


def difficulty(
    shadow: Float[Array, "M E"], membership: Bool[Array, "M E"]
) -> Float[Array, "E"]:
    """Minus the mean loss over the shadow models without the record: a blind guess.

    Args:
        shadow: the losses of the shadow models.
        membership: which records each shadow model was trained on.
    """
    return -_mean(shadow, ~membership)


def loss_calibration(
    loss: Float[Array, "E"],
    shadow: Float[Array, "M E"],
    membership: Bool[Array, "M E"],
) -> Float[Array, "E"]:
    """How much lower the loss is than those of shadow models without the record.

    Args:
        loss: the attacked model's loss on every record.
        shadow: the losses of the shadow models.
        membership: which records each shadow model was trained on.
    """
    return -difficulty(shadow, membership) - loss


def likelihood_ratio(
    phi: Float[Array, "E"],
    shadow: Float[Array, "M E"],
    membership: Bool[Array, "M E"],
) -> Float[Array, "E"]:
    """The log-likelihood ratio of two Gaussians, fitted with and without the record.

        mu_i by record, sigma^2 the mean over records of (phi_i - mu_i)^2, each over
        the models with (without) the record

    A record is NaN where no shadow model is with it, or none without it.

    Args:
        phi: `margin` of the attacked model.
        shadow: the margins of the shadow models.
        membership: which records each shadow model was trained on.
    """

    def log_density(where: Array) -> Array:
        mean = _mean(shadow, where)
        square = jnp.where(where, (shadow - mean) ** 2, 0)
        number = jnp.sum(where).astype(phi.dtype)
        variance = jnp.sum(square) / jnp.maximum(number, 1)
        variance = jnp.maximum(variance, jnp.finfo(phi.dtype).tiny)
        return -0.5 * (jnp.log(variance) + (phi - mean) ** 2 / variance)

    return log_density(membership) - log_density(~membership)


def rmia(
    loss: Float[Array, "E"],
    shadow: Float[Array, "M E"],
    membership: Bool[Array, "M E"],
    *,
    gamma: float | Float[Array, ""],
    scale: float | None = None,
    chunk: int = 256,
) -> Float[Array, "E"]:
    """RMIA: the share of other records over which the model gained less.

        score(x) = Pr_z [LR(x, z) >= gamma],
        LR(x, z) = (p_theta(x) / p(x)) / (p_theta(z) / p(z)),

    with p_theta the probability of the true class under the attacked model, and p its
    mean over models with and without the record, half and half. In the online attack
    both halves follow from the shadow models. In the offline attack no shadow model has
    seen the record, and

        p(x) = (p_in + p_out) / 2,    p_in = a p_out + 1 - a.

    The population of z is all other records that have a ratio, because the attacker
    does not know which of them were members. On one attacked model z moves no record
    past another, but with gamma > 1 the records that surpass no other by so much tie.

    Args:
        loss: the attacked model's loss on every record, -log p_theta.
        shadow: the losses of the shadow models.
        membership: which records each shadow model was trained on.
        gamma: the factor by which a record must surpass another, at least 1.
        scale: a in [0, 1] of the offline attack; None: the online attack.
        chunk: records at the same time, which bounds the memory.

    Returns:
        A share in [0, 1]. NaN for a record that no shadow model left out, for a record
        that no shadow model was trained on (online), and where there is no other record
        to compare with.

    Source: Zarifzadeh, Liu and Shokri, "Low-cost high-power membership inference
    attacks", ICML 2024, arXiv:2312.03262, the test and its offline form. Deviates:
    plain softmax and mean, where their experiments soften the probabilities and trim
    the mean; equality counts, which their code leaves out.
    """

    def log_mean(where: Array) -> Array:
        number = jnp.sum(where, axis=0)
        total = jax.nn.logsumexp(-shadow, axis=0, where=where)
        mean = total - jnp.log(jnp.maximum(number, 1).astype(shadow.dtype))
        return jnp.where(number > 0, mean, jnp.nan)

    log_out = log_mean(~membership)
    if scale is None:
        log_sum = jnp.logaddexp(log_mean(membership), log_out)
    else:
        log_offset = jnp.log(jnp.asarray(1 - scale, log_out.dtype))
        log_sum = jnp.logaddexp(
            jnp.log1p(jnp.asarray(scale, log_out.dtype)) + log_out, log_offset
        )
    ratio = -loss - (log_sum - jnp.log(jnp.asarray(2, log_out.dtype)))
    has_ratio = ~jnp.isnan(ratio)
    log_gamma = jnp.log(jnp.asarray(gamma, ratio.dtype))
    numbers = jnp.arange(ratio.shape[0], dtype=jnp.int32)

    def share(pair: tuple[Array, Array]) -> Array:
        record_ratio, number = pair
        population = has_ratio & (numbers != number)
        wins = jnp.sum(population & (record_ratio - ratio >= log_gamma))
        count = jnp.sum(population)
        fraction = wins / jnp.maximum(count, 1)
        return jnp.where((count > 0) & ~jnp.isnan(record_ratio), fraction, jnp.nan)

    return jax.lax.map(share, (ratio, numbers), batch_size=chunk)


def alignment(upload: Params, gradient: Params) -> Float[Array, ""]:
    """cos(d, -g): how well a change d fits the step along a record's negative gradient.

    The cosine is over the coordinates that the upload covers: d and g must be 0 at all
    others. It is 0 if d or g is 0. The uploads of a client that has the record show a
    larger cosine. The mean over rounds is the score.

    Args:
        upload: d.
        gradient: g, of the record's loss.
    """
    dot_product = jnp.asarray(optax.tree.vdot(upload, gradient))
    lengths = optax.tree.norm(upload) * optax.tree.norm(gradient)
    return jnp.where(lengths > 0, -dot_product / jnp.where(lengths > 0, lengths, 1), 0)
