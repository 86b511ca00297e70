"""Strict settings: conversions that are silent in production fail in tests."""

import gc
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs without a sharding run on the first of these devices.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
# Compilation dominates the time of most tests, whose programs run once. `make verify`
# compiles as users do.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    flags = ["--xla_cpu_parallel_codegen_split_count=1"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        # Later versions do not have this flag.
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Compiled programs need no Python locations, which nothing here reads.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import hypothesis
import jax
import jaxtyping
import pytest

# --jaxtyping-packages in pyproject.toml uses it, but imports no more than `tests`.
import tests.annotated  # noqa: F401

jax.config.update("jax_numpy_dtype_promotion", "strict")
# Tracing makes many small objects; searching them for cycles takes a twentieth of the
# time.
gc.set_threshold(100_000, 20, 100)

hypothesis.settings.register_profile(
    "ci", max_examples=25, deadline=None, derandomize=True, database=None
)
hypothesis.settings.register_profile("deep", max_examples=200, deadline=None)
hypothesis.settings.load_profile("ci")


def pytest_configure(config):
    """Sets a compilation cache that all workers and their processes share.

    The folder is new in every session, so results do not depend on earlier sessions.
    """
    if hasattr(config, "workerinput"):
        return
    programs = tempfile.TemporaryDirectory(prefix="fairjax-")
    config.add_cleanup(programs.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs.name
    jax.config.update("jax_compilation_cache_dir", programs.name)


# Checking annotations makes tests that train up to a third slower. `make test` checks
# them in the modules below, which call most functions of arrays; `make verify` checks
# them in all modules.
if "JAXTYPING_DISABLE" not in os.environ:
    jaxtyping.config.update("jaxtyping_disable", True)
TESTS = pathlib.Path(__file__).parent
ANNOTATED = {
    "core/test_aggregate.py",
    "core/test_axes.py",
    "core/test_losses.py",
    "experiment/config/test_build.py",
    "experiment/config/test_schedules.py",
    "experiment/config/test_tier_changes.py",
    "models/test_models.py",
    "robust/test_aggregators.py",
    "submodels/test_cost.py",
    "submodels/test_heterofl.py",
}


assert all((TESTS / name).is_file() for name in ANNOTATED)


@pytest.fixture(autouse=True)
def _annotations(request, monkeypatch):
    """Checks types, ranks and that a letter has one size within a signature."""
    if request.path.relative_to(TESTS).as_posix() in ANNOTATED:
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", False)


def pytest_collection_finish():
    """Excludes imported modules, which stay, from further garbage collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _few_resamples():
    """Reduces resamples; without XLA's optimisations intervals outlast the run."""
    from fairjax.experiment import summary

    summary.RESAMPLES = 50


@pytest.fixture(autouse=True, scope="session")
def _blank():
    """Replaces figures by a blank image; drawing takes 2 s a run, see `drawn`."""
    import PIL.Image
    from matplotlib.figure import Figure

    def save(figure, file, **_):
        PIL.Image.new("L", (1, 1)).save(file, format="png")

    real, Figure.savefig = Figure.savefig, save
    yield real
    Figure.savefig = real


@pytest.fixture(scope="module")
def drawn(_blank):
    """Draws figures as users get them."""
    from matplotlib.figure import Figure

    blank, Figure.savefig = Figure.savefig, _blank
    yield
    Figure.savefig = blank


@pytest.fixture
def unfinal(monkeypatch):
    """Ends runs without final figures, which take the longest to compile."""
    from fairjax.experiment import summary

    monkeypatch.setattr(summary, "final", lambda *_: {"last": None, "selected": None})


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of three rounds, and the rows that it logged."""
    from fairjax.experiment.train import train
    from tests.trained import small

    seen = []
    workdir = tmp_path_factory.mktemp("runs") / "run"
    result = train(small(), workdir, log=lambda n, row: seen.append((n, row)))
    return result, seen


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, which a test may continue."""
    return shutil.copytree(finished[0].workdir, tmp_path / "run")


@pytest.fixture(scope="session")
def longer(tmp_path_factory):
    """The workdir of a run of five rounds without interruption, profiled."""
    from fairjax.experiment.train import train
    from tests.trained import small

    workdir = tmp_path_factory.mktemp("runs") / "longer"
    train(small(rounds=5), workdir, profile=True)
    return workdir
