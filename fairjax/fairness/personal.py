"""Rules by which every client keeps a model or leaves; weights follow records."""

import jax
from jaxtyping import PyTree

from fairjax.core import objectives, require, trees
from fairjax.core.method import Method
from fairjax.core.rule import Personal, Rule
from fairjax.core.types import Params, Scope


def ditto(*, strength: float) -> Rule:
    """Ditto: a personal model per client, kept near the plain one.

        v_k <- v_k - rate (grad F_k(v_k) + strength (v_k - w)),

    w the plain model as it arrives, over the coordinates that the client's sub-model
    holds. The batches are those on which the client trains the plain model. The plain
    model does not depend on v: it is FedAvg's. strength = 0 trains alone, from the same
    start.

    Args:
        strength: pull towards the plain model, from 0.

    Raises:
        InputError: the strength is negative or not finite.

    Source: Li et al., "Ditto: fair and robust federated learning through
    personalization", ICML 2021, arXiv:2012.04221, algorithm 1.
    """
    require.in_range("strength", strength, 0)
    return Rule(
        personal=Personal(lambda objective: objectives.proximal(objective, strength))
    )


def fedbn() -> Rule:
    """FedBN: scale and bias of every norm stay with their client.

    Every client is evaluated with its own scale and bias, and its batch norms use
    moments of its own training records. FedBN is published for batch norm; this rule
    keeps group and layer norms too.

    Source: Li et al., "FedBN: federated learning on non-IID features via local batch
    normalization", ICLR 2021, arXiv:2102.07623.
    """
    return Rule(local_leaves=lambda path: "norm" in path.lower())


def private_head() -> Rule:
    """FedPer: every client keeps its own head on shared features, trained together.

    Source: Arivazhagan et al., "Federated learning with personalization layers", 2019,
    arXiv:1912.00818, with one personal layer.
    """
    return Rule(local_leaves=lambda path: path.startswith(("head", "exit")))


def with_local_leaves(method: Method, rule: Rule) -> Method:
    """The method with the rule's local leaves in the scope "client".

    The method's `scopes` raise an InputError for a model without such leaves.
    """
    is_local_leaf = rule.local_leaves
    if is_local_leaf is None:
        return method

    def assign_scopes(params: Params) -> PyTree[Scope]:
        shared = jax.tree.map(lambda _: "shared", params)
        scopes = shared if method.scopes is None else method.scopes(params)
        scope_leaves = jax.tree.structure(params).flatten_up_to(scopes)
        paths = trees.leaves_by_path(params)
        if not any(map(is_local_leaf, paths)):
            require.fail("rule", "a model with leaves that it keeps", "none")
        new_scopes = [
            "client" if is_local_leaf(path) else scope
            for path, scope in zip(paths, scope_leaves, strict=True)
        ]
        return jax.tree.structure(params).unflatten(new_scopes)

    return method._replace(scopes=assign_scopes)
