"""Networks, losses, gradients and federated means in plain NumPy, for references.

The module does not use fairjax. A parameter tree is a dictionary of layers, each a
dictionary of float64 arrays, with the names of the models. A loss is written as its
source prints it. Complex steps give its gradient without the rounding of a subtraction:
df/dw = Im f(w + ih) / h at h = 1e-30 (Squire and Trapp 1998). Losses therefore use only
operations that complex numbers have; comparisons are of real parts.
"""

import numpy as np

STEP = 1e-30


def plain(tree):
    """A fairjax tree as dictionaries of float64 arrays."""
    if isinstance(tree, dict):
        return {name: plain(node) for name, node in tree.items()}
    return np.array(tree, np.float64)


def each(f, *trees):
    """f of the arrays at the same place in trees of dictionaries."""
    if isinstance(trees[0], dict):
        return {name: each(f, *(tree[name] for tree in trees)) for name in trees[0]}
    return f(*trees)


def named(tree, before=()):
    """{path: array}, a path being the tuple of its names."""
    if not isinstance(tree, dict):
        return {before: tree}
    found = {}
    for name, node in tree.items():
        found |= named(node, (*before, name))
    return found


def nested(paths):
    """The tree that `named` came from."""
    tree = {}
    for path, leaf in paths.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def leaves(tree):
    """The arrays of a tree, in the order of its names."""
    return [leaf for _, leaf in sorted(named(tree).items())]


def gap(got, expected):
    """Largest absolute difference between a fairjax tree and a NumPy tree."""
    got, expected = named(plain(got)), named(expected)
    assert got.keys() == expected.keys()
    return max(np.abs(got[path] - expected[path]).max() for path in got)


# ----------------------------------------------------------------------------- networks


def relu(x):
    return np.where(x.real > 0, x, 0)


def affine(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def perceptron(params, x, divide=1.0):
    """Logits of dense layers with ReLU; hidden activations are divided by `divide`."""
    for name in sorted(set(params) - {"head"}):
        x = relu(affine(params[name], x) / divide)
    return affine(params["head"], x)


def residual(params, x, divide=1.0):
    """Logits of every head of a residual perceptron, first to last.

    The batch norm of a block divides by the standard deviation of the batch, with
    divisor n; a block without a step has step 1.
    """
    x, logits = affine(params["stem"], x), []
    for number in sorted(int(name[5:]) for name in params if name.startswith("block")):
        block = params[f"block{number}"]
        h = affine(block["inner"], x) / divide
        if "norm" in block:
            h = h - h.mean(axis=0)
            h = h / np.sqrt((h**2).mean(axis=0) + 1e-5)
            h = h * block["norm"]["scale"] + block["norm"]["bias"]
        x = x + block.get("step", 1.0) * affine(block["outer"], relu(h))
        if f"exit{number}" in params:
            logits.append(affine(params[f"exit{number}"], x))
    if "head" in params:
        logits.append(affine(params["head"], x))
    return logits


# ------------------------------------------------------------------------------- losses


def log_softmax(z):
    z = z - z.real.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def cross_entropy(logits, y):
    """Mean over records."""
    return -log_softmax(logits)[np.arange(len(y)), y].mean()


def divergence(teacher, pupil, temperature=1.0):
    """KL(teacher || pupil), summed over classes, mean over records. The teacher has no
    gradient: its imaginary part is dropped."""
    p, q = (log_softmax(z / temperature) for z in (teacher.real, pupil))
    return (np.exp(p) * (p - q)).sum(axis=1).mean()


# -------------------------------------------------------------------------------- steps


def gradient(loss, params):
    """d loss / d params, one complex step for every coordinate."""
    moved = each(lambda leaf: np.array(leaf, np.complex128), params)

    def of(leaf):
        slope = np.zeros(leaf.shape)
        for place in np.ndindex(leaf.shape):
            leaf[place] += 1j * STEP
            slope[place] = loss(moved).imag / STEP
            leaf[place] -= 1j * STEP
        return slope

    return each(of, moved)


def descend(loss, params, *, steps, rate, momentum=0.0, decay=0.0, clip=None):
    """PyTorch's SGD: clipping, then decay added to the gradient, then momentum."""
    speed = each(np.zeros_like, params)
    for _ in range(steps):
        slope = gradient(loss, params)
        if clip is not None:
            norm = np.sqrt(sum((leaf**2).sum() for leaf in leaves(slope)))
            slope = each(lambda g, norm=norm: g * min(1.0, clip / norm), slope)
        slope = each(lambda g, w: g + decay * w, slope, params)
        speed = each(lambda v, g: momentum * v + g, speed, slope)
        params = each(lambda w, v: w - rate * v, params, speed)
    return params


# --------------------------------------------------------------------------- sub-models


def at(tree, path):
    """The leaf at a path."""
    for name in path:
        tree = tree[name]
    return tree


def places(path, leaf, dims, units):
    """Indices of a smaller leaf in a leaf.

    dims: {path: name per dimension or None}.  units: {name: units of the sub-model}.
    """
    if not leaf.ndim:
        return ()
    names = dims.get(path, (None,) * leaf.ndim)
    return np.ix_(
        *(
            units[name] if name in units else np.arange(length)
            for name, length in zip(names, leaf.shape, strict=True)
        )
    )


def cut(params, dims, units, without=()):
    """The smaller network: the given units of every leaf, and no layer in `without`."""
    return nested(
        {
            path: leaf[places(path, leaf, dims, units)]
            for path, leaf in named(params).items()
            if path[0] not in without
        }
    )


def averaged(params, clients, dims):
    """The next model: the mean over the clients that send a coordinate, else its old
    value.

    clients: (smaller tree after training, units of it that are sent, weight) each; a
    leaf that a client does not send is not in its tree.
    """
    total, count = (each(np.zeros_like, params) for _ in range(2))
    for trained, units, weight in clients:
        for path, leaf in named(trained).items():
            sums, held = (at(tree, path) for tree in (total, count))
            where = places(path, sums, dims, units)
            sums[where] += weight * leaf
            held[where] += weight
    return each(
        lambda s, n, w: np.where(n > 0, s / np.where(n > 0, n, 1), w),
        total,
        count,
        params,
    )
