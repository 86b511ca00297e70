"""Whole runs on disk: one orbax step per saved round, and the newest one that is valid.

A step says what it holds, and is believed if it holds it: item "meta" has a digest of
itself and one of the state's bytes, taken before orbax is given them and compared with
what orbax gives back, whatever happened in between. Orbax renames a step to its number
when it is written, so that half a step has no number.

Orbax refuses to save a step that is there, valid or not, and counts every one that is
there among the newest that stay. So who goes on from an older step moves the newer ones
aside. Saves are forced: others orbax drops, without a word, where a step has their
number or a higher one.

Of several processes the first alone saves. What it saves are arrays on its host, which
orbax takes for its own: of those on a device it would ask the others for their shares.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fairjax.core import require, trees

FORMAT = 1
"""Of a step; raised when the same state comes to mean something else."""


class About(NamedTuple):
    """What steps say of their run."""

    decides: Mapping[str, Any]
    """What decides what a state means, {name: value}: a step in which it is another is
    refused."""
    versions: Mapping[str, str]
    """{package: version}: others in a step are only told."""


class Found(NamedTuple):
    """A step that was read."""

    state: Any
    round: int
    skipped: Mapping[int, str]
    """{step: why} of the newer ones, which are not valid."""


def newest(
    directory: pathlib.Path, like: Any, about: About, *, round: int | None = None
) -> Found | None:
    """The newest step that is valid; None where there is none. Nothing is written.

    A step is valid if all of it can be read, it is what was saved, and it is finite
    wherever `like` is. Those that are not are passed over, and told on stderr.

    Args:
        directory: of the steps; one that is missing has none.
        like: the run's first state, or any later one.
        about: what the steps must say of their run.
        round: only the step of that round counts; None also where it is not valid.

    Raises:
        OSError, MemoryError, JaxRuntimeError: the machine failed, which says nothing of
            the step.
        InputError: a step is valid, but of another run, format, tree, shape or dtype;
            or, where no round is asked for, there are steps and none is valid.
    """
    skipped: dict[int, str] = {}
    for step in _steps(directory):
        if round not in (None, step):
            continue
        path, first = directory / str(step), _on_host(like)
        try:
            with _failing(path):
                host, versions = _read(path, like, first, about)
        except require.InputError:
            raise
        except Exception as error:  # orbax 0.12 raises a bare one for a short file
            if not path.exists():  # its run goes on, and has removed it meanwhile
                return newest(directory, like, about, round=round)
            if _of_machine(error):
                raise
            skipped[step] = require.shown(str(error) or repr(error), 200)
            print(f"{path}: skipped: {skipped[step]}", file=sys.stderr)
            continue
        others = {n: v for n, v in versions.items() if v != about.versions.get(n)}
        if others:
            said = ", ".join(f"{name} {version}" for name, version in others.items())
            said = require.shown(said, 200)
            print(f"{path}: written by other versions: {said}", file=sys.stderr)
        state = jax.tree.map(jnp.asarray, host)
        return Found(trees.typed(state, like), step, skipped)
    if skipped and round is None:
        said = "; ".join(f"{step}: {why}" for step, why in skipped.items())
        raise require.InputError(f"{directory}: expected a valid step; got {said}")
    return None


def set_aside(directory: pathlib.Path, steps: Iterable[int]) -> None:
    """Renames steps to "invalid-<step>"."""
    for step in steps:
        target = directory / f"invalid-{step}"
        count = 0
        while target.exists():
            count += 1
            target = directory / f"invalid-{step}.{count}"
        (directory / str(step)).rename(target)


class Checkpoints:
    """The checkpoint folder of one run, to write in; use it as a context manager.

    Args:
        directory: created when missing; what a save that was killed left there is
            removed.
        keep: newest steps that stay on disk; with 1 there is none to fall back on.
        about: what the steps say of their run.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int, about: About):
        require.count("keep", keep)
        self._directory = directory.absolute()
        self._about = about
        self._directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            # Orbax tells saves apart by a count of the process: those of runs beside
            # each other (`vmapped`) would be mixed up.
            enable_async_checkpointing=_in_main_thread(),
            create=False,
            cleanup_tmp_directories=True,
            multiprocessing_options=_alone(self._directory),
        )
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_handlers=_handlers()
        )

    def save(self, round: int, state: Any) -> None:
        """Saves in the background; returns once the state has been copied.

        Raises:
            OSError: this save, or the one before, failed; older steps stay.
            ValueError: the round has a step already.
        """
        host = _on_host(state)
        meta = {
            "format": FORMAT,
            "round": round,
            "tree": require.describe(state),
            "sha256_of_state": _digest(host),
            **self._about._asdict(),
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(host),
            meta=ocp.args.JsonSave(meta | {"sha256": sealed(meta)}),
        )
        with _failing(self._directory):
            self._manager.save(round, args=items, force=True)

    def keep_only(self, round: int | None) -> None:
        """Removes every step but that of one round; None removes all.

        A step that is to be saved again must go first: orbax would refuse it.
        """
        for step in self._manager.all_steps():
            if step != round:
                self._manager.delete(step)

    def wait(self) -> None:
        """Returns when every save is whole on disk.

        Raises:
            OSError: the last one failed; older steps stay.
        """
        with _failing(self._directory):
            self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        with _failing(self._directory):
            self._manager.close()


@contextlib.contextmanager
def _failing(directory: pathlib.Path) -> Iterator[None]:
    """Raises what the system refused as `OSError`, also where tensorstore was told."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(directory)
        raise
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(directory)) from error


def _steps(directory: pathlib.Path) -> list[int]:
    """Newest first."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if path.is_dir()]
    steps = [int(name) for name in names if name.isdecimal()]
    return sorted((step for step in steps if str(step) in names), reverse=True)


def _of_machine(error: Exception) -> bool:
    """Whether an error says nothing of the step that was read: it may be whole.

    Too many open files, for one, or a server that is away.
    """
    if isinstance(error, OSError):
        gone = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
        return not isinstance(error, gone)
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _read(
    path: pathlib.Path, like: Any, first: Any, about: About
) -> tuple[Any, Mapping[str, str]]:
    """(state on the host, versions) of a step that is valid; raises if it is not.

    Args:
        path: of the step.
        like: as for `newest`.
        first: `like` on the host.
        about: as for `newest`.
    """
    if path.is_symlink():
        raise ValueError("a link to another place")
    handler = ocp.CompositeCheckpointHandler(**_handlers())
    alone = _alone(path.parent)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:

        def item(**how: Any) -> Any:
            composite = ocp.args.Composite(**how)
            (read,) = reader.restore(path.absolute(), composite).values()
            return read

        meta = item(meta=ocp.args.JsonRestore())
        if meta.pop("sha256", None) != sealed(meta) or meta["round"] != int(path.name):
            raise ValueError("its description is not the one that was written")
        if not isinstance(meta["versions"], dict):
            raise ValueError("its versions are no list of packages")
        _of_this_run(path, meta, like, about)
        _as_large_as(first, path / "state")
        host = item(state=ocp.args.StandardRestore(first))
    if _digest(host) != meta["sha256_of_state"]:
        raise ValueError("its state is not the one that was written")
    leaves = zip(jax.tree.leaves_with_path(host), jax.tree.leaves(first), strict=True)
    for (where, leaf), begun in leaves:
        if _finite(begun) and not _finite(leaf):
            raise ValueError(f"{jax.tree_util.keystr(where)} is NaN or infinite")
    return host, meta["versions"]


def _of_this_run(
    path: pathlib.Path, meta: Mapping[str, Any], like: Any, about: About
) -> None:
    """Refuses a step that is what was saved, but not of this run."""
    if meta["format"] != FORMAT:
        version = meta["versions"].get("fairjax")
        what = f"{meta['format']}, of fairjax {version}"
        raise require.InputError(f"{path}: expected format {FORMAT}; got {what}")
    ours, theirs = about.decides, meta["decides"]
    others = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
    if others:
        raise require.InputError(
            f"{path}: expected a state of this run; got one with other values of "
            f"{', '.join(others)}"
        )
    # Orbax would cast another dtype without a word.
    require.same_structure(f"{path}: state", meta["tree"], require.describe(like))


def _as_large_as(first: Any, item: pathlib.Path) -> None:
    """Refuses arrays of other sizes than those expected before any is read.

    Orbax makes room for what a file says that it holds, whatever it is asked for.
    """
    saved = jax.tree.leaves(_handlers()["state"].metadata(item.absolute()).tree)
    expected = sorted(str(leaf.shape) for leaf in jax.tree.leaves(first))
    if sorted(str(tuple(array.shape)) for array in saved) != expected:
        raise ValueError("its arrays have other shapes than it says")
    for array in saved:
        chunk = array.storage.chunk_shape if array.storage else ()
        if math.prod(chunk or ()) > max(math.prod(array.shape), 1):
            raise ValueError("an array of it is stored in pieces larger than itself")


def sealed(meta: Mapping[str, Any]) -> str:
    """The digest of a description, against accidents: who forges one forges this."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _digest(host: Any) -> str:
    """Of all leaves' bytes, in order; dtypes and shapes are in "tree"."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(host):
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def _finite(leaf: np.ndarray) -> bool:
    # JAX's word for it: NumPy does not know bfloat16.
    return not jnp.issubdtype(leaf.dtype, jnp.inexact) or bool(np.isfinite(leaf).all())


def _handlers() -> dict[str, Any]:
    return {
        "state": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _alone(directory: pathlib.Path) -> ocp.options.MultiprocessingOptions:
    """Asks no other process for anything."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=directory.name
    )


def _on_host(state: Any) -> Any:
    return jax.tree.map(np.asarray, trees.raw(state))
