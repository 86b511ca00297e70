"""Hard mode: what silently converts in production fails here."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test is XLA compiling a program that then runs once. `make verify` compiles
# as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")

hypothesis.settings.register_profile(
    "ci", max_examples=25, deadline=None, derandomize=True, database=None
)
hypothesis.settings.register_profile("deep", max_examples=500, deadline=None)
hypothesis.settings.load_profile("ci")
