"""Architectures as `types.Model`; only this package imports flax.

`mlp` and `cnn` stay linen modules, because recorded runs start from the random draws of
linen. The other models are plain functions of a table of parameters (`leaves`), which
states shape, axes and block of every parameter once.
"""

from fairjax.models.adapt import (
    computing_in,
    from_functions,
    from_linen,
    from_nnx,
)
from fairjax.models.cnn import cnn
from fairjax.models.convnet import lenet, two_conv
from fairjax.models.mlp import mlp
from fairjax.models.resmlp import resmlp
from fairjax.models.resnet import resnet
from fairjax.models.vit import vit

__all__ = [
    "cnn",
    "computing_in",
    "from_functions",
    "from_linen",
    "from_nnx",
    "lenet",
    "mlp",
    "resmlp",
    "resnet",
    "two_conv",
    "vit",
]
