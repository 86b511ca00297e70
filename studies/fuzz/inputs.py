"""The broken inputs of studies/fuzz/run.py: config fields, tables and files of runs."""

import contextlib
import functools
import gzip
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from configs import breast_cancer, default
from fairjax import report
from fairjax.data import assignment, augment, datasets, federation
from fairjax.experiment import cli
from fairjax.experiment import train as training
from fairjax.experiment.config import (
    build,
    conversion,
    optimizers,
    registry,
    schema,
    validate,
)
from fairjax.experiment.config.options import data as data_options
from fairjax.experiment.io import checkpoint
from fairjax.experiment.io import workdir as files
from scripts import train
from studies import experiment

Random = np.random.Generator


class Attempt(NamedTuple):
    """A command that reads a broken input."""

    main: Callable[[Any], None]
    define: cli.Define = lambda values, argv: None
    argv: Sequence[str] = ("fuzz.py",)


Make = Callable[[Random, pathlib.Path], Attempt]
"""(random numbers, an empty folder for files) -> an attempt."""


# ------------------------------------------------------------------------ broken bytes

TOKENS = (
    *(b"\0", b"\n", b"\r\n", b",", b'"', b"'", b" ", b"{", b"}", b"[", b"]", b":"),
    *(b"nan", b"-inf", b"1e999", b"-1", b"0", b"1.5", b"null", b"true", b"?", b""),
    *(b"9" * 400, b"[" * 2000, b"a" * 300, b"../../x", b"\x1b[2J"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", "\N{GRINNING FACE}".encode()),
)


def pick(rng: Random, options: Sequence[Any]) -> Any:
    """A random one of the options."""
    return options[rng.integers(len(options))]


def mutate(rng: Random, content: bytes) -> bytes:
    """The bytes after one to three random changes."""
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(content) + 1))
        end = min(len(content), start + int(rng.integers(40)))
        before, segment, after = content[:start], content[start:end], content[end:]
        flipped = bytes(byte ^ (1 << rng.integers(8)) for byte in segment[:1])
        content = pick(
            rng,
            (
                before,
                before + after,
                before + segment + segment + after,
                before + flipped + segment[1:] + after,
                before + rng.bytes(len(segment)) + after,
                before + pick(rng, TOKENS) + after,
            ),
        )
    return content


def _garble(rng: Random, text: str) -> str:
    return mutate(rng, text.encode(errors="replace")).decode(errors="replace")


# ------------------------------------------------------------------ fields of a config

FIELDS = cli.fields_of(default.get_config())
WORDS = (
    *(
        *registry.MODELS,
        *registry.METHODS,
        *registry.RULES,
        *optimizers.OPTIMIZERS,
        *optimizers.SERVERS,
    ),
    *(
        *optimizers.SCHEDULES,
        *data_options.NORMALISATIONS,
        *schema.ASSIGNMENTS,
        *assignment.PARTITIONS,
    ),
    *(*datasets.DATASETS, *augment.AUGMENTS, "client_dp", "record_dp", "local_dp"),
    *("masked", "sliced", "fixed", "tier_term+q_ffl", "size+size"),
)
USUAL = {
    bool: ("True", "False"),
    int: ("1", "2", "3", "8"),
    float: ("0.25", "0.5", "1.0", "2"),
    str: WORDS,
    tuple: ("()", "(1.0,)", "(0.5,1.0)", "(0.25,0.5,0.75,1.0)", "(2,)", "('flip',)"),
}
"""Values that often fit a field of a type."""
UNUSUAL = (
    *("", " ", "None", "nan", "inf", "-inf", "1e400", "-0.0", "0x10", "1_000", "-1"),
    *(str(2**31), str(2**63), "9" * 400, "1+2j", "...", "(1", "'", "\\", "(" * 300),
    *("(nan,)", "(None,)", "(1e400,)", "(-1,)", "(True,)", "(2j,)", "(b'',)", "({},)"),
    *("([],)", "((),)", "((2,),)", "((1,0,1),)", "(1,0,2)", "('a',)", "(0.5,'a')"),
    *("(2147483648,)", "(9999999999999,2)", "[1,2]", "{1:2}", "{1,2}", "1or 2", "="),
    *("__import__('os').abort()", "(__import__('os').abort(),)", "lambda: 0", ","),
    *("../x", "a/b", "/", "~", "\0", "\n", "\x1b[2J", "\udcff", "a" * 5000),
)
CHOSEN_BY = {"model": "name", "submodel": "name", "fairness": "rule"}
"""Config group -> the field that selects the options in use."""


def overrides(rng: Random, folder: pathlib.Path) -> Attempt:
    """Up to four config fields with values that may fit or not; some are misspelt."""
    argv = ["fuzz.py", "--config=configs/breast_cancer.py", f"--workdir={folder}/run"]
    for _ in range(rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1])):
        field = pick(rng, list(FIELDS))
        usual = rng.random() < 0.75
        value = pick(rng, USUAL[FIELDS[field]] if usual else UNUSUAL + WORDS)
        group, *owner = field.split(".")[:-1] or [""]
        if owner and group in CHOSEN_BY and rng.random() < 0.9:
            argv.append(f"--config.{group}.{CHOSEN_BY[group]}={owner[0]}")
        if rng.random() < 0.05:
            field = _garble(rng, field)
        if rng.random() < 0.1:
            value = _garble(rng, value)
        argv.append(f"--config.{field}={value}")

    def main(options: Any) -> None:
        validate.check(options.config, cli.override_paths(options))
        build.run(options.config)

    return Attempt(main, train.define, argv)


# ------------------------------------------------------------------- the user's files


def _read_attempt(rng: Random, name: str, path: pathlib.Path, **roles: Any) -> Attempt:
    """Reads a file as a run would, and assigns its records to clients."""
    clients, normalise = int(rng.integers(1, 5)), pick(rng, data_options.NORMALISATIONS)

    def main(_: Any) -> None:
        table = datasets.load(name, path=str(path), **roles)
        federation.build(
            table,
            partition="iid" if table.client is None else "natural",
            num_clients=clients,
            alpha=1.0,
            min_size=1,
            test_fraction=0.25,
            val_fraction=0.1,
            normalise=normalise,
            seed=0,
        )

    return Attempt(main)


def csv(rng: Random, folder: pathlib.Path) -> Attempt:
    """A small table whose header, cells, roles, encoding and bytes may be broken."""
    cells = {"age": "41 52.5 ?", "y": "0 1", "site": "a b", "sex": "f m", "who": "p q"}
    header = list(cells)[: rng.choice([1, 2, 4, 5], p=[0.03, 0.04, 0.03, 0.9])]
    rows = int(rng.choice([0, 1, 4, 12], p=[0.05, 0.05, 0.4, 0.5]))
    lines = [header]
    lines += [[pick(rng, cells[name].split()) for name in header] for _ in range(rows)]
    for _ in range(rng.choice([0, 1, 2], p=[0.7, 0.2, 0.1])):
        line = pick(rng, lines)
        line[rng.integers(len(line))] = pick(rng, TOKENS).decode(errors="replace")
    coding = pick(rng, ("utf-8",) * 18 + ("utf-16", "latin-1"))
    text = "".join(",".join(line) + "\n" for line in lines)
    content = text.encode(coding, errors="replace")
    is_compressed = rng.random() < 0.2
    content = gzip.compress(content) if is_compressed else content
    path = folder / ("input.csv.gz" if is_compressed else "input.csv")
    path.write_bytes(mutate(rng, content) if rng.random() < 0.3 else content)
    roles: dict[str, Any] = {
        role: pick(rng, (None, *header)) if rng.random() < 0.1 else usual
        for role, usual in {"label": "y", "client": "site", "patient": "who"}.items()
    }
    entries = (*header, "age:40:60", "age:60:40", "age:nan", "sex:1", ":", "")
    extra = int(rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1]))
    roles["group"] = ("sex", *(pick(rng, entries) for _ in range(extra)))
    return _read_attempt(rng, "csv", path, **roles)


SIZES = (0, 1, 2, 7, -1, 2**31, 2**40, 10**15, 2**63 - 1, 2**64, 10**30)
KINDS = ("|u1", "<f8", "<i4", "<U0", "<U9", "|O", "|V0", "<c16", "<M8[s]")


def npz(rng: Random, folder: pathlib.Path) -> Attempt:
    """A small archive whose arrays, headers, directory and bytes may be broken."""
    shape = pick(rng, 5 * ((3,), (2, 2), (2, 2, 3)) + ((0,), ()))
    dtype = pick(rng, 5 * (np.uint8, np.float32, np.float16) + (np.int64, bool, object))
    columns = [name for name in ("client", "patient", "group") if rng.random() < 0.4]
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "val", "test")[:: pick(rng, (1, 2))]:
        n = int(rng.choice([0, 1, 4, 12], p=[0.02, 0.08, 0.4, 0.5]))
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, *shape)).astype(dtype)
        arrays[f"{split}_labels"] = rng.integers(0, 3, pick(rng, ((n,), (n, 1))))
        for name in columns:
            values = rng.choice(["a", "b", "", "\0"], n, p=[0.5, 0.4, 0.05, 0.05])
            arrays[f"{split}_{name}"] = values
    file = io.BytesIO()
    packing = pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, array in arrays.items():
            member = f"{name}.npy" if rng.random() < 0.98 else f"../{name}"
            archive.writestr(member, _array(rng, array))
    path, content = folder / "input.npz", file.getvalue()
    path.write_bytes(mutate(rng, content) if rng.random() < 0.2 else content)
    return _read_attempt(rng, "npz", path)


def _array(rng: Random, array: np.ndarray) -> bytes:
    """An .npy file; a few are of another array, are broken, or have a false header."""
    if rng.random() < 0.02:
        n = len(array)
        alternatives = (np.array(3), np.full(n, 2**40), np.full(n, np.nan), array[:-1])
        array = pick(rng, (*alternatives, np.full(n, "x" * 300)))
    file = io.BytesIO()
    if rng.random() < 0.97:
        np.save(file, array, allow_pickle=True)
        content = file.getvalue()
        return mutate(rng, content) if rng.random() < 0.02 else content
    false_shape = tuple(pick(rng, SIZES) for _ in range(rng.integers(4)))
    header = {"descr": pick(rng, KINDS), "fortran_order": False, "shape": false_shape}
    np.lib.format.write_array_header_2_0(file, header)
    return file.getvalue() + array.tobytes()


# ------------------------------------------------------------------ the files of a run


def run_attempt(
    content: Mapping[str, bytes], rng: Random, folder: pathlib.Path
) -> Attempt:
    """The files of a run, one or two of which are broken.

    Args:
        content: the intact files by name.
        rng: the source of randomness.
        folder: where the files are written.
    """
    broken = dict(content)
    for name in rng.choice(list(content), rng.integers(1, 3), replace=False):
        lines = content[name].splitlines()
        if rng.random() < 0.5:
            broken[name] = mutate(rng, content[name])
        elif name.endswith(".jsonl"):
            index = rng.integers(len(lines))
            lines[index] = json.dumps(_change(rng, json.loads(lines[index]))).encode()
            broken[name] = b"".join(line + b"\n" for line in lines)
        else:
            value = json.loads(content[name])
            broken[name] = json.dumps(_change(rng, value)).encode()
    for name, text in broken.items():
        (folder / name).write_bytes(text)

    intact = json.loads(content["config.json"])
    config = conversion.to_typed(conversion.from_plain(intact))

    def resume(_: Any) -> None:
        files.check(folder, config)
        files.rows(folder / "metrics.jsonl")

    def read_report(_: Any) -> None:
        report.headline(folder)
        report.table(folder)
        runs = report.comparison.read_runs([folder])
        report.comparison.markdown(runs, ["eval/accuracy"], "t")

    return Attempt(pick(rng, (resume, read_report, read_report)))


def _change(rng: Random, value: Any) -> Any:
    """The JSON value with one of its parts, at any depth, replaced by another kind."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        alternatives = (
            None,
            True,
            -1,
            0.5,
            10**400,
            "",
            "x" * 300,
            [],
            [[]],
            {},
            {"a": 1},
        )
        return pick(rng, alternatives)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = pick(rng, keys)
    inner = _change(rng, value[key])
    if isinstance(value, dict):
        return value | {key: inner}
    return [*value[:key], inner, *value[key + 1 :]]


WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2)
STATE = {"params": {"w": WEIGHTS}, "round": np.int32(1)}
ABOUT = checkpoint.CheckpointMeta({"seed": 0}, {"fairjax": "0.1.0"})


@functools.cache
def checkpoint_files() -> dict[str, bytes]:
    """The files of a checkpoint by path."""
    with experiment.temporary() as name:
        folder = pathlib.Path(name)
        with checkpoint.Checkpoints(folder, keep=2, run_meta=ABOUT) as checkpoints:
            checkpoints.save(1, STATE)
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


def checkpoint_attempt(rng: Random, folder: pathlib.Path) -> Attempt:
    """A checkpoint with one or two broken files, or with false metadata."""
    broken = dict(checkpoint_files())
    if rng.random() < 0.5:
        for name in rng.choice(list(broken), rng.integers(1, 3), replace=False):
            broken[name] = mutate(rng, broken[name])
    else:
        name = "1/meta/metadata"
        meta = json.loads(broken[name])
        del meta["sha256"]
        claim = pick(rng, list(meta))
        meta[claim] = _change(rng, meta[claim])
        broken[name] = json.dumps(
            meta | {"sha256": checkpoint.meta_digest(meta)}
        ).encode()
    for name, content in broken.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    def main(_: Any) -> None:
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr):
            restored = checkpoint.restore_latest(folder, STATE, ABOUT)
        if restored is None or not np.array_equal(
            restored.state["params"]["w"], WEIGHTS
        ):
            raise AssertionError("another state")
        if not stderr.getvalue().rstrip("\n").isprintable():
            raise AssertionError(stderr.getvalue())

    return Attempt(main)


def run_files() -> dict[str, bytes]:
    """The files of a run of two rounds."""
    config = default.preset(breast_cancer.get_config(), "smoke")
    config.selection_metric = experiment.SELECT
    with (
        experiment.temporary() as folder,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        workdir = training.train(config, pathlib.Path(folder) / "run").workdir
        return {path.name: path.read_bytes() for path in workdir.glob("*.json*")}
