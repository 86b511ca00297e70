"""Hard mode: what silently converts in production fails here."""

import gc
import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What does not ask for more runs on the first of them.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
# Most of a test is XLA compiling a program that then runs once. `make verify` compiles
# as users do.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    flags = ["--xla_cpu_parallel_codegen_split_count=1"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        flags.append("--xla_cpu_use_fusion_emitters=false")  # later ones have no such
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# No program says which lines of Python it is from: nobody asks it.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import hypothesis
import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
# Tracing makes many small objects, and looking for cycles among them is a twentieth of
# the time.
gc.set_threshold(100_000, 20, 100)

hypothesis.settings.register_profile(
    "ci", max_examples=25, deadline=None, derandomize=True, database=None
)
hypothesis.settings.register_profile("deep", max_examples=200, deadline=None)
hypothesis.settings.load_profile("ci")


def pytest_configure(config):
    """What one worker compiled, the others and the processes they start load.

    The folder is new in every session: no result hangs on an earlier one.
    """
    if hasattr(config, "workerinput"):
        return
    programs = tempfile.TemporaryDirectory(prefix="fairjax-")
    config.add_cleanup(programs.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs.name
    jax.config.update("jax_compilation_cache_dir", programs.name)


# Checking annotations makes tests that train up to a third longer: `make test` checks
# them in what calls most of what has arrays, `make verify` in all.
if "JAXTYPING_DISABLE" not in os.environ:
    jaxtyping.config.update("jaxtyping_disable", True)
ANNOTATED = {
    "test_aggregate",
    "test_axes",
    "test_cost",
    "test_folds",
    "test_heterofl",
    "test_losses",
    "test_models",
    "test_specs",
}


@pytest.fixture(autouse=True)
def _annotations(request, monkeypatch):
    """Types, ranks, and that a letter is one size in a signature."""
    if request.path.stem in ANNOTATED:
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", False)


def pytest_collection_finish():
    """What was imported stays, and need not be looked through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _few_resamples():
    """Intervals of a run without XLA's optimisations would take longer than the run."""
    from fairjax.experiment import summary

    summary.RESAMPLES = 50


@pytest.fixture(autouse=True, scope="session")
def _blank():
    """Figures are laid out and not drawn, which takes 2 s a run; see `drawn`."""
    import PIL.Image
    from matplotlib.figure import Figure

    def save(figure, file, **_):
        PIL.Image.new("L", (1, 1)).save(file, format="png")

    real, Figure.savefig = Figure.savefig, save
    yield real
    Figure.savefig = real


@pytest.fixture(scope="module")
def drawn(_blank):
    """Figures as users get them."""
    from matplotlib.figure import Figure

    blank, Figure.savefig = Figure.savefig, _blank
    yield
    Figure.savefig = blank


@pytest.fixture
def unfinal(monkeypatch):
    """Runs end without their final figures, whose compiling takes the longest."""
    from fairjax.experiment import summary

    monkeypatch.setattr(summary, "final", lambda *_: {"last": None, "selected": None})


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of three rounds, and the rows that it told of."""
    from trained import small

    from fairjax.experiment.train import train

    seen = []
    workdir = tmp_path_factory.mktemp("runs") / "run"
    result = train(small(), workdir, log=lambda n, row: seen.append((n, row)))
    return result, seen


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to go on with."""
    return shutil.copytree(finished[0].workdir, tmp_path / "run")


@pytest.fixture(scope="session")
def longer(tmp_path_factory):
    """The workdir of five rounds in one go, profiled."""
    from trained import small

    from fairjax.experiment.train import train

    workdir = tmp_path_factory.mktemp("runs") / "longer"
    train(small(rounds=5), workdir, profile=True)
    return workdir
