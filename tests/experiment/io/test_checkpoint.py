"""Checkpoints: every save is on disk, and only what was saved is valid."""

import errno
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import require, trees
from fairjax.experiment.io import checkpoint
from fairjax.experiment.io.checkpoint import (
    CheckpointMeta,
    Checkpoints,
    restore_latest,
    set_aside,
)

ABOUT = CheckpointMeta(
    {"seed": 0, "local.max_grad_norm": None}, {"fairjax": "0.1.0", "numpy": "2.0"}
)


def state(value, dtype=jnp.float32):
    w = jnp.arange(64 * 64.0).reshape(64, 64) / 7 + value
    return {
        "params": {"w": w.astype(dtype)},
        "best": jnp.asarray(jnp.inf),
        "round": jnp.asarray(int(value)),
        "key": jax.random.key(int(value)),
        "none": None,
    }


def save(folder, rounds, keep=3, about=ABOUT, make=state):
    with Checkpoints(folder, keep=keep, run_meta=about) as checkpoints:
        for number in rounds:
            checkpoints.save(number, make(number))


def found(folder, like=None, about=ABOUT, **which):
    return restore_latest(folder, state(0) if like is None else like, about, **which)


def same(one, other):
    """Byte for byte."""
    pair = [jax.tree.leaves(trees.unwrap_keys(each)) for each in (one, other)]
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(*pair, strict=True)
    )


def steps(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def parts(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def truncate(step):
    """Cuts the largest file of a step, as a full disk or a lost page would."""
    largest = max(parts(step), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip(path, at=0.5):
    """Turns one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 16
    path.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    save(folder, [1, 2, 3])
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "steps")


# ------------------------------------------------------------------------ what is saved


def test_every_save_is_a_step_and_the_newest_stay(tmp_path, capsys):
    save(tmp_path, range(1, 8))
    assert steps(tmp_path) == [5, 6, 7]
    last = found(tmp_path)
    assert (last.round, last.skipped_steps) == (7, {})
    assert same(last.state, state(7))
    assert last.state["params"]["w"].dtype == jnp.float32
    assert last.state["none"] is None
    assert capsys.readouterr().err == ""


def test_a_round_is_found_by_its_number(saved):
    assert same(found(saved, round=2).state, state(2))
    assert found(saved, round=4) is None


def test_a_round_whose_step_is_not_valid_is_not_found(copied, capsys):
    truncate(copied / "2")
    assert found(copied, round=2) is None
    assert capsys.readouterr().err.startswith(f"{copied / '2'}: skipped: ")
    assert steps(copied) == [1, 2, 3]


def test_an_empty_or_missing_folder_has_no_step(tmp_path):
    assert found(tmp_path) is None
    assert found(tmp_path / "none") is None
    assert list(tmp_path.iterdir()) == []


def test_no_save_is_dropped(tmp_path):
    """A save at an existing step is refused, and one below it is written."""
    with Checkpoints(tmp_path, keep=3, run_meta=ABOUT) as checkpoints:
        checkpoints.save(5, state(5))
        with pytest.raises(ValueError, match="step 5 already exists"):
            checkpoints.save(5, state(6))
        checkpoints.save(3, state(3))
    assert steps(tmp_path) == [3, 5]
    assert same(found(tmp_path).state, state(5))


def test_at_least_one_step_is_kept(tmp_path):
    with pytest.raises(require.InputError, match="keep: expected a whole number above"):
        Checkpoints(tmp_path, keep=0, run_meta=ABOUT)


def test_what_is_removed_can_be_saved_again(tmp_path):
    save(tmp_path, [2, 5, 9])
    with Checkpoints(tmp_path, keep=3, run_meta=ABOUT) as checkpoints:
        checkpoints.keep_only(5)
        checkpoints.save(9, state(7))
    assert steps(tmp_path) == [5, 9]
    assert same(found(tmp_path).state, state(7))
    with Checkpoints(tmp_path, keep=3, run_meta=ABOUT) as checkpoints:
        checkpoints.keep_only(None)
    assert steps(tmp_path) == []


def test_what_a_killed_save_left_is_removed(copied):
    (copied / "3").rename(copied / "3.orbax-checkpoint-tmp")
    save(copied, [3])
    assert [path.name for path in copied.glob("*tmp*")] == []
    assert steps(copied) == [1, 2, 3]


def test_a_disk_that_is_full_costs_the_save_and_no_step(tmp_path):
    """A limit on the size of files makes a write fail as a full disk does."""
    save(tmp_path, [1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match=r"File too large") as failed:  # noqa: PT012
        with Checkpoints(tmp_path, keep=3, run_meta=ABOUT) as checkpoints:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
            try:
                checkpoints.save(2, state(2))
                checkpoints.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.errno == errno.EFBIG
    assert failed.value.filename == str(tmp_path)
    assert same(found(tmp_path).state, state(1))
    save(tmp_path, [2])
    assert same(found(tmp_path).state, state(2))


# ------------------------------------------------------------------ what is believed


def newer(of, step):
    """A copy of step 3 under a higher number."""
    shutil.copytree(of / "3", of / str(step))


def emptied(step):
    shutil.rmtree(step)
    step.mkdir()


def data(step):
    """The file of the arrays."""
    return max(step.glob("state/ocdbt.process_0/d/*"), key=lambda p: p.stat().st_size)


def not_finite(folder):
    shutil.rmtree(folder / "3")

    def broken(number):
        bad = state(number)
        bad["params"]["w"] = bad["params"]["w"].at[3, 5].set(jnp.nan)
        return bad

    save(folder, [3], make=broken)


def forged(step, **claims):
    """Puts false claims into a step's meta with a matching digest, as anybody can."""
    path = step / "meta" / "metadata"
    meta = json.loads(path.read_text())
    del meta["sha256"]
    meta |= claims
    path.write_text(json.dumps(meta | {"sha256": checkpoint.meta_digest(meta)}))


def vast(folder):
    """Half a gigabyte of zeros, sparse on disk, that claims to be the state."""
    shutil.rmtree(folder / "3")

    def zeros(number):
        large = state(number)
        large["params"]["w"] = np.zeros(2**27, np.float32)
        return large

    save(folder, [3], make=zeros)
    forged(folder / "3", tree=require.describe(state(3)))


def linked(folder):
    (folder / "3").rename(folder.parent / "elsewhere")
    (folder / "3").symlink_to(folder.parent / "elsewhere")


DAMAGE = {
    "truncated": (lambda f: truncate(f / "3"), 2, ""),
    "a flipped bit of the arrays": (
        lambda f: flip(data(f / "3")),
        2,
        "its state is not the one that was written",
    ),
    "a flipped bit of the description": (lambda f: flip(f / "3/meta/metadata"), 2, ""),
    "without its manifest": (lambda f: (f / "3/state/manifest.ocdbt").unlink(), 2, ""),
    "without its description": (lambda f: shutil.rmtree(f / "3" / "meta"), 2, ""),
    "without its state": (lambda f: shutil.rmtree(f / "3" / "state"), 2, ""),
    "an empty directory": (lambda f: emptied(f / "3"), 2, ""),
    "a stray directory": (lambda f: (f / "9999").mkdir(), 3, ""),
    "a stray file": (lambda f: (f / "9999").write_text("mine"), 3, None),
    "a padded number": (lambda f: (f / "0004").mkdir(), 3, None),
    "half a step": (
        lambda f: shutil.copytree(f / "3/state", f / "4.orbax-checkpoint-tmp/state"),
        3,
        None,
    ),
    "half a step that has a number": (
        lambda f: shutil.copytree(f / "3/state", f / "4/state"),
        3,
        "",
    ),
    "another round's step": (lambda f: newer(f, 4), 3, "its description is not"),
    "not finite": (not_finite, 2, "['params']['w'] is NaN or infinite"),
    "larger than it says": (vast, 2, "its arrays have other shapes than it says"),
    "versions that are none": (
        lambda f: forged(f / "3", versions=["0.1.0"]),
        2,
        "its versions are no list of packages",
    ),
    "a link": (linked, 2, "a link to another place"),
    "two of three broken": (
        lambda f: (truncate(f / "3"), flip(data(f / "2"))),
        1,
        "",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_the_newest_valid_step_is_found(name, copied, capsys):
    """The result lists the newer invalid steps; a run goes on from the valid one."""
    damage, expected, why = DAMAGE[name]
    damage(copied)
    before = sorted(copied.rglob("*"))
    last = found(copied)
    assert sorted(copied.rglob("*")) == before
    assert last.round == expected
    assert same(last.state, state(expected))
    told = capsys.readouterr().err.splitlines()
    if why is None:
        assert (last.skipped_steps, told) == ({}, [])
    else:
        first = next(iter(last.skipped_steps))
        assert told[0] == f"{copied / str(first)}: skipped: {last.skipped_steps[first]}"
        assert why in last.skipped_steps[first]
        assert min(last.skipped_steps) > expected
    set_aside(copied, last.skipped_steps)
    save(copied, [expected + 1], make=lambda number: state(10 * number))
    assert same(found(copied).state, state(10 * (expected + 1)))


def test_a_flipped_bit_of_any_file_is_noticed_or_does_not_matter(saved, tmp_path):
    """Orbax itself detects none of them in arrays."""
    noticed = set()
    for part in parts(saved / "3"):
        for at in (0.1, 0.5, 0.9):
            copy = shutil.copytree(saved, tmp_path / "steps")
            flip(copy / part.relative_to(saved), at)
            last = found(copy)
            assert same(last.state, state(last.round))
            if last.round != 3:
                noticed.add(part)
            shutil.rmtree(copy)
    named = {"meta/metadata", "state/manifest.ocdbt", "state/_METADATA"}
    assert {saved / "3" / name for name in named} | {data(saved / "3")} <= noticed


def test_where_no_step_is_valid_all_are_named_and_left(copied):
    for number in (1, 2, 3):
        truncate(copied / str(number))
    with pytest.raises(
        require.InputError, match=r"a valid step; got 3: .*; 2: .*; 1: "
    ):
        found(copied)
    assert steps(copied) == [1, 2, 3]


def test_a_leaf_that_begins_infinite_may_stay_so_and_no_other(tmp_path):
    like = state(0)
    like["best"] = jnp.asarray(0.0)
    save(tmp_path, [1])
    assert found(tmp_path).round == 1
    with pytest.raises(require.InputError, match=r"\['best'\] is NaN or infinite"):
        found(tmp_path, like)


def test_a_second_broken_step_of_the_same_number_is_kept_apart(copied):
    for _ in range(2):
        truncate(copied / "3")
        set_aside(copied, found(copied).skipped_steps)
        save(copied, [3])
    assert steps(copied) == [1, 2, 3]
    assert (copied / "invalid-3").is_dir()
    assert (copied / "invalid-3.1").is_dir()


def test_a_step_that_its_run_removes_meanwhile_is_no_broken_one(
    copied, monkeypatch, capsys
):
    read = checkpoint._restore_step

    def removed(path, *how):
        if path.name == "3":
            shutil.rmtree(path)
        return read(path, *how)

    monkeypatch.setattr(checkpoint, "_restore_step", removed)
    last = found(copied)
    assert (last.round, last.skipped_steps) == (2, {})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (MemoryError(), MemoryError),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out"), RuntimeError),
        (OSError(errno.EMFILE, "Too many open files"), OSError),
        (OSError(errno.EIO, "Input/output error"), OSError),
        (OSError(errno.ESTALE, "Stale file handle"), OSError),
        (ValueError("UNAVAILABLE: [os_error_code='24']"), OSError),  # tensorstore's
        (FileNotFoundError(errno.ENOENT, "No such file"), None),
        (ValueError("NOT_FOUND: [os_error_code='2']"), None),
        (ValueError("DATA_LOSS: invalid manifest"), None),
        (EOFError(), None),
    ],
    ids=repr,
)
def test_a_machine_that_fails_is_no_damaged_step(
    error, raised, saved, monkeypatch, capsys
):
    read = checkpoint._restore_step

    def failing(path, *how):
        if path.name == "3":
            raise error
        return read(path, *how)

    monkeypatch.setattr(checkpoint, "_restore_step", failing)
    if raised is None:
        assert list(found(saved).skipped_steps) == [3]
        return
    with pytest.raises(raised):
        found(saved)
    assert capsys.readouterr().err == ""


def test_a_device_that_fails_is_no_damaged_step(saved, monkeypatch):
    """The step has been read, and its move to the device fails."""

    def gone(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is gone")

    like = state(0)
    monkeypatch.setattr(jnp, "asarray", gone)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        found(saved, like)


# ---------------------------------------------------------------------- of another run


def test_another_dtype_is_refused_and_named(saved):
    with pytest.raises(
        require.InputError, match=r"'w'.*float16.*got float32\[64, 64\]"
    ):
        found(saved, state(0, jnp.float16))


def test_another_shape_is_refused_and_named(saved):
    like = state(0)
    like["params"]["w"] = jnp.zeros((64, 32))
    with pytest.raises(require.InputError, match=r"float32\[64, 32\]; got .*64, 64\]"):
        found(saved, like)


def test_another_tree_is_refused_and_named(saved):
    like = state(0)
    like["extra"] = jnp.zeros(3)
    with pytest.raises(require.InputError, match=r"extra.*float32\[3\]; got nothing"):
        found(saved, like)


@pytest.mark.parametrize(
    ("decides", "named"),
    [
        ({"seed": 1, "local.max_grad_norm": None}, "other values of seed$"),
        (
            {"local.max_grad_norm": 0.5},
            "other values of (seed, local.max_grad_norm|local.max_grad_norm, seed)$",
        ),
        # A field that only one of them has counts if it is set.
        ({"seed": 0, "robust.aggregator": None}, None),
        (
            {"seed": 0, "robust.aggregator": "median"},
            r"other values of robust\.aggregator$",
        ),
    ],
)
def test_another_run_is_refused_by_what_differs(saved, decides, named):
    other = ABOUT._replace(decides=decides)
    if named is None:
        assert found(saved, about=other).round == 3
        return
    with pytest.raises(require.InputError, match=named):
        found(saved, about=other)


def test_another_format_is_refused_with_its_version(tmp_path, monkeypatch):
    save(tmp_path, [1])
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(
        require.InputError, match=r"format 2; got 1, of fairjax 0\.1\.0"
    ):
        found(tmp_path)


def test_other_versions_of_packages_are_told(saved, capsys):
    versions = {"fairjax": "0.2.0", "numpy": "2.0"}
    assert found(saved, about=ABOUT._replace(versions=versions)).round == 3
    told = capsys.readouterr().err
    assert told == f"{saved / '3'}: written by other versions: fairjax 0.1.0\n"


def test_what_a_step_says_reaches_a_terminal_as_one_short_line(copied, capsys):
    forged(copied / "3", versions={"\x1b[2J": "\n\x1b]0;" + "A" * 3000})
    assert found(copied).round == 3
    told = capsys.readouterr().err
    assert told[:-1].isprintable()
    assert len(told) < 400


def test_arrays_are_measured_before_room_is_made_for_them(copied, monkeypatch):
    vast(copied)
    asked, real = [], checkpoint.ocp.args.StandardRestore
    monkeypatch.setattr(
        checkpoint.ocp.args,
        "StandardRestore",
        lambda like: asked.append(like) or real(like),
    )
    assert found(copied).round == 2
    assert len(asked) == 1
