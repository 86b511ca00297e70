"""Architectures as `types.Model`; the only room that imports flax."""

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
