"""Gives broken input to all that reads any, and counts what came of it.

    python scripts/fuzz.py
    python scripts/fuzz.py --inputs=400 --seed=1

An input may be accepted, or refused as a command refuses: one line, exit code 2,
nothing printed, nothing written. All else is a defect, which is named with the numbers
that make its input again, and the exit code is 1.

Writes results/fuzz.json, and from it the table in results/README.md.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import contextlib
import functools
import gzip
import io
import json
import pathlib
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from configs import breast_cancer, default
from fairjax import report
from fairjax.core import require
from fairjax.data import augment, datasets, federation
from fairjax.experiment import cli
from fairjax.experiment import train as training
from fairjax.experiment.config import build, registry, validate
from fairjax.experiment.io import checkpoint
from fairjax.experiment.io import workdir as files
from scripts import experiment, train
from scripts.experiment import fill

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "fuzz.json"
BEGIN = "<!-- results/fuzz.json -->"

Random = np.random.Generator


class Attempt(NamedTuple):
    """A command, which is given what is broken."""

    main: Callable[[Any], None]
    define: cli.Define = lambda values, argv: None
    argv: Sequence[str] = ("fuzz.py",)


Make = Callable[[Random, pathlib.Path], Attempt]
"""(random numbers, an empty folder for files) -> an attempt."""


# ---------------------------------------------------------------------- broken bytes

TOKENS = (
    *(b"\0", b"\n", b"\r\n", b",", b'"', b"'", b" ", b"{", b"}", b"[", b"]", b":"),
    *(b"nan", b"-inf", b"1e999", b"-1", b"0", b"1.5", b"null", b"true", b"?", b""),
    *(b"9" * 400, b"[" * 2000, b"a" * 300, b"../../x", b"\x1b[2J"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", "\N{GRINNING FACE}".encode()),
)


def pick(rng: Random, options: Sequence[Any]) -> Any:
    """One of the options."""
    return options[rng.integers(len(options))]


def mutated(rng: Random, content: bytes) -> bytes:
    """The bytes after one to three changes."""
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(content) + 1))
        end = min(len(content), start + int(rng.integers(40)))
        before, part, after = content[:start], content[start:end], content[end:]
        flipped = bytes(byte ^ (1 << rng.integers(8)) for byte in part[:1])
        content = pick(
            rng,
            (
                before,
                before + after,
                before + part + part + after,
                before + flipped + part[1:] + after,
                before + rng.bytes(len(part)) + after,
                before + pick(rng, TOKENS) + after,
            ),
        )
    return content


def _garbled(rng: Random, text: str) -> str:
    return mutated(rng, text.encode(errors="replace")).decode(errors="replace")


# ------------------------------------------------------------------ fields of a config

FIELDS = cli.fields_of(default.get_config())
WORDS = (
    *(
        *registry.MODELS,
        *registry.METHODS,
        *registry.RULES,
        *registry.OPTIMIZERS,
        *registry.SERVERS,
    ),
    *(
        *registry.SCHEDULES,
        *registry.NORMALISATIONS,
        *registry.ASSIGNMENTS,
        *federation.LAWS,
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
"""What often fits a field of this type."""
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
"""The field of a group that says whose options are in use."""


def overrides(rng: Random, folder: pathlib.Path) -> Attempt:
    """Up to four fields, of which some are misspelt, set to what may fit or not."""
    argv = ["fuzz.py", "--config=configs/breast_cancer.py", f"--workdir={folder}/run"]
    for _ in range(rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1])):
        field = pick(rng, list(FIELDS))
        usual = rng.random() < 0.75
        value = pick(rng, USUAL[FIELDS[field]] if usual else UNUSUAL + WORDS)
        group, *owner = field.split(".")[:-1] or [""]
        if owner and group in CHOSEN_BY and rng.random() < 0.9:
            argv.append(f"--config.{group}.{CHOSEN_BY[group]}={owner[0]}")
        if rng.random() < 0.05:
            field = _garbled(rng, field)
        if rng.random() < 0.1:
            value = _garbled(rng, value)
        argv.append(f"--config.{field}={value}")

    def main(options: Any) -> None:
        validate.check(options.config, cli.overridden(options))
        build.build(options.config)

    return Attempt(main, train.define, argv)


# ------------------------------------------------------------------- the user's files


def _reading(rng: Random, name: str, path: pathlib.Path, **roles: Any) -> Attempt:
    """Reads a file as a run would, and deals its records to hospitals."""
    clients, normalise = int(rng.integers(1, 5)), pick(rng, registry.NORMALISATIONS)

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
    packed = rng.random() < 0.2
    content = gzip.compress(content) if packed else content
    path = folder / ("input.csv.gz" if packed else "input.csv")
    path.write_bytes(mutated(rng, content) if rng.random() < 0.3 else content)
    roles: dict[str, Any] = {
        role: pick(rng, (None, *header)) if rng.random() < 0.1 else usual
        for role, usual in {"label": "y", "client": "site", "patient": "who"}.items()
    }
    entries = (*header, "age:40:60", "age:60:40", "age:nan", "sex:1", ":", "")
    more = int(rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1]))
    roles["group"] = ("sex", *(pick(rng, entries) for _ in range(more)))
    return _reading(rng, "csv", path, **roles)


SIZES = (0, 1, 2, 7, -1, 2**31, 2**40, 10**15, 2**63 - 1, 2**64, 10**30)
KINDS = ("|u1", "<f8", "<i4", "<U0", "<U9", "|O", "|V0", "<c16", "<M8[s]")


def npz(rng: Random, folder: pathlib.Path) -> Attempt:
    """A small archive whose arrays, headers, directory and bytes may be broken."""
    shape = pick(rng, 5 * ((3,), (2, 2), (2, 2, 3)) + ((0,), ()))
    dtype = pick(rng, 5 * (np.uint8, np.float32, np.float16) + (np.int64, bool, object))
    named = [name for name in ("client", "patient", "group") if rng.random() < 0.4]
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "val", "test")[:: pick(rng, (1, 2))]:
        n = int(rng.choice([0, 1, 4, 12], p=[0.02, 0.08, 0.4, 0.5]))
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, *shape)).astype(dtype)
        arrays[f"{split}_labels"] = rng.integers(0, 3, pick(rng, ((n,), (n, 1))))
        for name in named:
            some = rng.choice(["a", "b", "", "\0"], n, p=[0.5, 0.4, 0.05, 0.05])
            arrays[f"{split}_{name}"] = some
    file = io.BytesIO()
    packing = pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, array in arrays.items():
            member = f"{name}.npy" if rng.random() < 0.98 else f"../{name}"
            archive.writestr(member, _array(rng, array))
    path, content = folder / "input.npz", file.getvalue()
    path.write_bytes(mutated(rng, content) if rng.random() < 0.2 else content)
    return _reading(rng, "npz", path)


def _array(rng: Random, array: np.ndarray) -> bytes:
    """An .npy file; now and then of another array, broken, or with a lie as header."""
    if rng.random() < 0.02:
        n = len(array)
        others = (np.array(3), np.full(n, 2**40), np.full(n, np.nan), array[:-1])
        array = pick(rng, (*others, np.full(n, "x" * 300)))
    file = io.BytesIO()
    if rng.random() < 0.97:
        np.save(file, array, allow_pickle=True)
        content = file.getvalue()
        return mutated(rng, content) if rng.random() < 0.02 else content
    claimed = tuple(pick(rng, SIZES) for _ in range(rng.integers(4)))
    header = {"descr": pick(rng, KINDS), "fortran_order": False, "shape": claimed}
    np.lib.format.write_array_header_2_0(file, header)
    return file.getvalue() + array.tobytes()


# ------------------------------------------------------------------ the files of a run


def run(content: Mapping[str, bytes], rng: Random, folder: pathlib.Path) -> Attempt:
    """The files of a run by name, one or two of which are broken."""
    broken = dict(content)
    for name in rng.choice(list(content), rng.integers(1, 3), replace=False):
        lines = content[name].splitlines()
        if rng.random() < 0.5:
            broken[name] = mutated(rng, content[name])
        elif name.endswith(".jsonl"):
            at = rng.integers(len(lines))
            lines[at] = json.dumps(_changed(rng, json.loads(lines[at]))).encode()
            broken[name] = b"".join(line + b"\n" for line in lines)
        else:
            value = json.loads(content[name])
            broken[name] = json.dumps(_changed(rng, value)).encode()
    for name, text in broken.items():
        (folder / name).write_bytes(text)

    def resumed(_: Any) -> None:
        files.check(folder, json.loads(content["config.json"]))
        files.rows(folder / "metrics.jsonl")

    def reported(_: Any) -> None:
        report.headline(folder)
        report.table(folder)
        found = report.comparison.read([folder])
        report.comparison.markdown(found, ["eval/accuracy"], "t")

    return Attempt(pick(rng, (resumed, reported, reported)))


def _changed(rng: Random, value: Any) -> Any:
    """The JSON with one of its values, however deep, of another kind."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        other = (None, True, -1, 0.5, 10**400, "", "x" * 300, [], [[]], {}, {"a": 1})
        return pick(rng, other)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    at = pick(rng, keys)
    inner = _changed(rng, value[at])
    if isinstance(value, dict):
        return value | {at: inner}
    return [*value[:at], inner, *value[at + 1 :]]


WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2)
STATE = {"params": {"w": WEIGHTS}, "round": np.int32(1)}
ABOUT = checkpoint.About({"seed": 0}, {"fairjax": "0.1.0"})


@functools.cache
def step() -> dict[str, bytes]:
    """The files of a checkpoint by path."""
    with experiment.temporary() as name:
        folder = pathlib.Path(name)
        with checkpoint.Checkpoints(folder, keep=2, about=ABOUT) as checkpoints:
            checkpoints.save(1, STATE)
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


def steps(rng: Random, folder: pathlib.Path) -> Attempt:
    """A step one or two of whose files are broken, or whose description lies."""
    broken = dict(step())
    if rng.random() < 0.5:
        for name in rng.choice(list(broken), rng.integers(1, 3), replace=False):
            broken[name] = mutated(rng, broken[name])
    else:
        name = "1/meta/metadata"
        meta = json.loads(broken[name])
        del meta["sha256"]
        claim = pick(rng, list(meta))
        meta[claim] = _changed(rng, meta[claim])
        broken[name] = json.dumps(meta | {"sha256": checkpoint.sealed(meta)}).encode()
    for name, content in broken.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    def main(_: Any) -> None:
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            found = checkpoint.newest(folder, STATE, ABOUT)
        if found is None or not np.array_equal(found.state["params"]["w"], WEIGHTS):
            raise AssertionError("another state")
        if not told.getvalue().rstrip("\n").isprintable():
            raise AssertionError(told.getvalue())

    return Attempt(main)


def finished() -> dict[str, bytes]:
    """The files of a run of two rounds."""
    config = default.preset(breast_cancer.get_config(), "smoke")
    config.select = experiment.SELECT
    with (
        experiment.temporary() as folder,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        workdir = training.train(config, pathlib.Path(folder) / "run").workdir
        return {path.name: path.read_bytes() for path in workdir.glob("*.json*")}


# ------------------------------------------------------------------------- the counts


class Defect(Exception):
    """What is neither an acceptance nor a refusal."""


def outcome(make: Make, rng: Random) -> str:
    """Gives one input to its command: "accepted" or "refused".

    Raises:
        Defect: neither.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    with experiment.temporary() as folder:
        attempt = make(rng, pathlib.Path(folder))
        before = _content(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.run(attempt.main, attempt.define, attempt.argv)
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            raise Defect(f"{type(error).__name__}: {error}") from error
        if _content(folder) != before:
            raise Defect("something was written")
    said = out.getvalue(), err.getvalue()
    if (code, *said) == (0, "", ""):
        return "accepted"
    if code == 2 and not said[0] and said[1].splitlines() == [said[1].rstrip("\n")]:
        return "refused"
    raise Defect(f"exit code {code} and {said}")


def _content(folder: str) -> dict[str, bytes]:
    paths = pathlib.Path(folder).rglob("*")
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


class Kind(NamedTuple):
    """A kind of input."""

    title: str
    make: Make


def kinds(content: Mapping[str, bytes]) -> dict[str, Kind]:
    """All kinds, with the files of a run to be broken."""
    return {
        "overrides": Kind("fields of a config on the command line", overrides),
        "csv": Kind("csv, read and dealt to hospitals", csv),
        "npz": Kind("npz, read and dealt to hospitals", npz),
        "run": Kind("the files of a run", functools.partial(run, content)),
        "step": Kind("a step of checkpoints", steps),
    }


def counts(
    content: Mapping[str, bytes], inputs: int, seed: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per kind of how its inputs came out, and what the defects are.

    Args:
        content: the files of a run.
        inputs: of all kinds together, which take turns.
        seed: of every input, with its number.
    """
    rows, defects = [], []
    made = kinds(content)
    for place, (name, kind) in enumerate(made.items()):
        row = {"kind": name, "input": kind.title, "accepted": 0, "refused": 0}
        row |= {"defect": 0, "slowest_s": 0.0}
        for number in range(place, inputs, len(made)):
            started = time.perf_counter()
            try:
                came = outcome(kind.make, np.random.default_rng([seed, number]))
            except Defect as defect:
                came = "defect"
                defects.append(f"{name} [{seed}, {number}]: {defect}")
            row[came] += 1
            row["slowest_s"] = max(row["slowest_s"], time.perf_counter() - started)
        rows.append(row)
    return rows, defects


def table(results: dict[str, Any]) -> str:
    """The counts as a Markdown table."""
    heads = ["input", "accepted", "refused in one line", "defects"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for row in results["runs"]:
        numbers = [f"{row[came]:,}" for came in ("accepted", "refused", "defect")]
        lines.append(f"| {row['input']} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    flags.DEFINE_integer("inputs", 10_000, "Of all kinds.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of all inputs.", flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Counts, and writes both files."""
    inputs = require.count("--inputs", options.inputs)
    seed = require.in_range("--seed", options.seed, 0)
    content = finished()
    started = time.perf_counter()
    rows, defects = counts(content, inputs, seed)
    results = {
        "command": f"python scripts/fuzz.py --inputs={inputs} --seed={seed}",
        **experiment.surroundings(),
        "seconds": time.perf_counter() - started,
        "runs": rows,
    }
    files.write_json(RESULTS, results)
    page = RESULTS.parent / "README.md"
    page.write_text(fill(page.read_text(), BEGIN, table(results)))
    for defect in defects:
        print(f"fuzz.py: {defect}", file=sys.stderr)
    if defects:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, define)
