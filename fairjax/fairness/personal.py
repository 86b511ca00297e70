"""Rules by which every hospital keeps something for itself; they weigh by records."""

import jax
from jaxtyping import PyTree

from fairjax.core import client, require, trees
from fairjax.core.types import Method, Params, Personal, Rule, Scope


def ditto(*, strength: float) -> Rule:
    """Ditto: a personal model per client, held near the plain one.

        v_k <- v_k - rate (grad F_k(v_k) + strength (v_k - w)),

    w the plain model as it arrives, over the coordinates that the client's sub-model
    holds; the batches are those of its other training. The plain model does not depend
    on v: it is FedAvg's. strength = 0 trains alone, from the same start.

    Source: Ditto, Li et al. 2021, algorithm 1.
    """
    require.in_range("fairness.ditto.strength", strength, 0)
    return Rule(
        personal=Personal(lambda objective: client.proximal(objective, strength))
    )


def fedbn() -> Rule:
    """FedBN: scale and bias of every norm stay with their client.

    Such a client is evaluated with its own, and its batch norms with moments of its own
    training records. Published for batch norm; group and layer norms are kept alike.

    Source: FedBN, Li et al. 2021, "FedBN: federated learning on non-IID features via
    local batch normalization".
    """
    return Rule(keeps=lambda path: "norm" in path.lower())


def private_head() -> Rule:
    """Every client keeps a head of its own on shared features, trained together.

    Source: FedPer, Arivazhagan et al. 2019, with one personal layer.
    """
    return Rule(keeps=lambda path: path.startswith(("head", "exit")))


def keep(method: Method, rule: Rule) -> Method:
    """The method with the leaves that a rule keeps in the scope "client".

    Its `private` raises an InputError for a model that has none of them.
    """
    keeps = rule.keeps
    if keeps is None:
        return method

    def private(params: Params) -> PyTree[Scope]:
        shared = jax.tree.map(lambda _: "shared", params)
        scopes = shared if method.private is None else method.private(params)
        named = jax.tree.structure(params).flatten_up_to(scopes)
        paths = trees.named(params)
        if not any(map(keeps, paths)):
            require.fail("fairness.rule", "a model with leaves that it keeps", "none")
        kept = [
            "client" if keeps(path) else scope
            for path, scope in zip(paths, named, strict=True)
        ]
        return jax.tree.structure(params).unflatten(kept)

    return method._replace(private=private)
