"""Architectures as `types.Model`; the only room that imports flax."""

from fairjax.models.cnn import cnn
from fairjax.models.mlp import mlp

__all__ = ["cnn", "mlp"]
