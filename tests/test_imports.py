"""A package imports only from packages on a lower line, and only edges touch files."""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest

from fairjax.experiment.config import default, renames

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "fairjax"

SIGNALS = "experiment.io.preemption"
"""What writes files imports it before JAX is loaded: it counts as a package."""

# Every room imports only from rooms on a lower line. What is on the same line is apart.
FLOORS = [
    {"core"},
    {"models", "submodels", "fairness", "privacy", "metrics"},
    {"robust", "evaluation"},
    {SIGNALS},
    {"data", "report"},
    {"experiment"},
    {"attacks"},
]
EDGES = {"data", "report", "experiment", "attacks", SIGNALS}
"""Only these may touch disk, clock, TFDS, orbax or ml_collections."""
PURE = {
    "experiment/breakdowns.py",
    "experiment/headlines.py",
    "experiment/model_selection.py",
    "experiment/rows.py",
}
"""Files of an edge that touch nothing; experiment/config knows configs alone."""
CONFIGS = {
    "experiment/cli.py",
    "experiment/config/build.py",
    "experiment/config/conversion.py",
    "experiment/config/default.py",
    "experiment/config/options/fields.py",
    "experiment/config/validate.py",
    "experiment/sweep.py",
    "experiment/train.py",
    "experiment/vmapped.py",
    "attacks/__init__.py",
}
"""Files that a ConfigDict reaches."""
CORE = {"jax", "jaxtyping", "numpy", "optax"}
"""What core imports beside itself and Python's own."""
EDGE_ONLY = {
    "ml_collections",
    "orbax",
    "tensorflow_datasets",
    "sklearn",
    "matplotlib",
    "rich",
    "absl",
    "os",
    "pathlib",
    "signal",
    "time",
    "subprocess",
}


def room_of(parts):
    """The room of a module's dotted parts below fairjax."""
    inner = ".".join(parts[:3])
    return inner if inner == SIGNALS else parts[0]


def room(path):
    return room_of(path.relative_to(PACKAGE).with_suffix("").parts)


def files():
    return sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """(top-level package or fairjax room, full name) of every import of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            yield (room_of(rest) if first == "fairjax" and rest else first), name


def test_every_room_has_a_floor():
    rooms = {room(path) for path in files()} - {"__init__"}
    assert rooms == set.union(*FLOORS)


@pytest.mark.parametrize(
    "path", [p for p in files() if room(p) != "__init__"], ids=lambda p: room(p)
)
def test_arrows_point_down(path):
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    here = room(path)
    for there, name in imports(path):
        if name.startswith("fairjax.") and there != here:
            assert floor[there] < floor[here], f"{here} imports {name}"


def test_core_stands_alone():
    for path in files():
        if room(path) == "core":
            outside = {there for there, _ in imports(path)} - {"core", *CORE}
            assert outside <= sys.stdlib_module_names, path


def test_only_models_import_flax():
    users = {room(path) for path in files() if "flax" in dict(imports(path))}
    assert users == {"models"}


def test_only_accounting_imports_dp_accounting_and_only_when_asked():
    users = {path.name for path in files() if "dp_accounting" in dict(imports(path))}
    assert users == {"accounting.py"}
    top = ast.parse((PACKAGE / "privacy" / "accounting.py").read_text()).body
    modules = [node for node in top if isinstance(node, ast.Import | ast.ImportFrom)]
    assert "dp_accounting" not in " ".join(map(ast.unparse, modules))


def place(path):
    return path.relative_to(PACKAGE).as_posix()


def is_pure(path):
    inside = place(path)
    # The table of old names reads the config.json of runs that are reported.
    is_config = inside.startswith("experiment/config/") and path.stem != "renames"
    return room(path) not in EDGES or inside in PURE or is_config


def test_only_edges_touch_the_world():
    pure = [path for path in files() if is_pure(path)]
    assert PURE <= {place(path) for path in pure}
    for path in pure:
        allowed = {"ml_collections"} if room(path) == "experiment" else set()
        assert EDGE_ONLY & dict(imports(path)).keys() <= allowed, path


def test_modules_import_each_other_in_no_circle():
    modules = {
        ".".join(("fairjax", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in files()
    }
    graph = {
        module: {
            name if name in modules else name.rpartition(".")[0]
            for _, name in imports(path)
        }
        & modules.keys() - {module}
        for module, path in modules.items()
    }
    assert sum(map(len, graph.values())) > 500
    graphlib.TopologicalSorter(graph).prepare()


def test_nothing_that_is_read_is_executed():
    """No pickle, no eval: of what users give, config files alone are code."""
    folders = [
        PACKAGE,
        *(PACKAGE.parent / name for name in ("scripts", "studies", "benchmarks")),
    ]
    loads = 0
    for path in [path for folder in folders for path in folder.rglob("*.py")]:
        rooms = {name.partition(".")[0] for _, name in imports(path)}
        assert not rooms & {"pickle", "dill", "marshal", "shelve", "joblib"}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "compile", "__import__"}, path
            if called == "np.load":
                loads += 1
                assert "allow_pickle=False" in map(ast.unparse, node.keywords), path
    assert loads


def test_below_the_edges_nothing_jits_or_keeps_state():
    for path in files():
        if not is_pure(path):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Global), path
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"jit", "pjit"}, path


def test_a_config_reaches_few_files():
    users = {place(path) for path in files() if "ConfigDict" in path.read_text()}
    assert users == CONFIGS


def config_paths():
    """Dotted paths of all fields and groups of a config."""
    paths = set()
    for path in renames.flatten(default.get_config().to_dict()):
        parts = path.split(".")
        paths |= {".".join(parts[:n]) for n in range(2, len(parts) + 1)}
    return paths


def test_no_pure_function_names_a_config_field():
    """It complains in the names of its own arguments; `config.paths` translates."""
    fields, found = config_paths(), []
    assert "fairness.q_ffl.q" in fields
    for path in files():
        if room(path) in EDGES or room(path) == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = (
                    set(re.findall(r"[a-z_]+(?:\.[a-z_0-9]+)+", node.value)) & fields
                )
                found += [f"{place(path)}:{node.lineno}: {name}" for name in named]
    assert not found


def test_a_config_is_read_in_its_typed_form():
    """Nobody takes a config without its type, and no field is read by a key.

    `report` and `experiment.sweep` read the config.json of finished runs.
    """
    for path in files():
        if room(path) == "report" or place(path) == "experiment/sweep.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{place(path)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.FunctionDef) and room(path) in EDGES:
                for arg in [*node.args.args, *node.args.kwonlyargs]:
                    kind = arg.annotation and ast.unparse(arg.annotation)
                    assert arg.arg not in {"c", "config"} or kind not in {
                        None,
                        "Any",
                    }, where
            is_get = isinstance(node, ast.Attribute) and node.attr == "get"
            if is_get or isinstance(node, ast.Subscript):
                assert ast.unparse(node.value) not in {"run.config", "c"}, where


def test_no_drawer_for_odds_and_ends():
    names = {path.stem for path in files()}
    assert not names & {"utils", "util", "helpers", "common", "misc"}
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                assert not node.name.endswith(("Manager", "Helper")), path


def test_importing_the_package_loads_no_edge():
    """A user who imports the pure functions pays for jax and optax, nothing else."""
    light = {"os", "pathlib", "signal", "time", "subprocess", "absl"}
    heavy = sorted(EDGE_ONLY - light)
    code = (
        "import sys, fairjax, fairjax.fairness.weights, fairjax.submodels.heterofl;"
        "import fairjax.privacy.accounting;"
        f"print([n for n in {[*heavy, 'flax', 'dp_accounting']} if n in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
