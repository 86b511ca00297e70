"""Networks, losses and gradients in plain NumPy, for references of whole rounds.

Nothing of fairjax is used. A parameter tree is a dictionary of layers, each a
dictionary of float64 arrays, named as the models name theirs. A loss is written as its
source prints it, and its gradient is taken by complex steps, which no subtraction
rounds: df/dw = Im f(w + ih) / h at h = 1e-30 (Squire and Trapp 1998). Losses therefore
use nothing that complex numbers do not have: comparisons are of real parts.
"""

import numpy as np

STEP = 1e-30


def plain(tree):
    """A fairjax tree as dictionaries of float64 arrays."""
    if isinstance(tree, dict):
        return {name: plain(node) for name, node in tree.items()}
    return np.array(tree, np.float64)


def each(f, *trees):
    """f of the arrays that stand at the same place in trees of dictionaries."""
    if isinstance(trees[0], dict):
        return {name: each(f, *(tree[name] for tree in trees)) for name in trees[0]}
    return f(*trees)


def leaves(tree):
    """The arrays of a tree, in the order of its names."""
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in leaves(tree[name])]
    return [tree]


def gradient(loss, params):
    """d loss / d params, one complex step for every coordinate."""
    moved = each(lambda leaf: leaf.astype(np.complex128), params)

    def of(leaf):
        slope = np.zeros(leaf.shape)
        for place in np.ndindex(leaf.shape):
            leaf[place] += 1j * STEP
            slope[place] = loss(moved).imag / STEP
            leaf[place] -= 1j * STEP
        return slope

    return each(of, moved)


def relu(x):
    return np.where(x.real > 0, x, 0)


def log_softmax(z):
    z = z - z.real.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def cross_entropy(logits, y):
    """Mean over records."""
    return -log_softmax(logits)[np.arange(len(y)), y].mean()


def affine(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def perceptron(params, x, divide=1.0):
    """Logits of dense layers with ReLU; hidden activations are divided by `divide`."""
    for name in sorted(set(params) - {"head"}):
        x = relu(affine(params[name], x) / divide)
    return affine(params["head"], x)


def gap(got, expected):
    """Largest absolute difference between a fairjax tree and one from here."""
    pairs = zip(leaves(plain(got)), leaves(expected), strict=True)
    return max(np.abs(a - b).max() for a, b in pairs)
