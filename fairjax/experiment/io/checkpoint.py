"""Runs on disk: one orbax step per saved round, of which the newest valid one counts.

A step is valid if its bytes match its digests. Its item "meta" has a digest of itself
and one of the state's bytes. Both are taken before orbax gets the data and compared
with what orbax reads back. Orbax renames a step to its number once it is written, so an
incomplete step has no number.

Orbax refuses to save a step that exists, valid or not, and counts invalid steps among
the newest that it keeps. So a run that goes on from an older step first moves the newer
ones aside. Saves are forced: orbax silently drops other saves if a step with the same
or a higher number exists.

Only the first of several processes saves. It saves arrays on its host, since orbax
would ask the other processes for their shares of arrays on devices.
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
"""The version of a step; raised when the same state comes to mean something else."""


class CheckpointMeta(NamedTuple):
    """What every step says about its run."""

    decides: Mapping[str, Any]
    """{name: value} of the settings on which the meaning of a state depends. A step
    with other values is refused."""
    versions: Mapping[str, str]
    """{package: version}. A step with other versions is read with a warning."""


class RestoredStep(NamedTuple):
    """A step that was read."""

    state: Any
    round: int
    skipped_steps: Mapping[int, str]
    """{step: why it is not valid} for the newer steps."""


def restore_latest(
    directory: pathlib.Path,
    template: Any,
    run_meta: CheckpointMeta,
    *,
    round: int | None = None,
) -> RestoredStep | None:
    """Reads the newest valid step; None if there is none. Nothing is written.

    A step is valid if all of it can be read, it equals what was saved, and it is finite
    wherever `template` is. Invalid steps are skipped with a line on stderr.

    Args:
        directory: of the steps; a missing directory has none.
        template: the run's first state, or any later one.
        run_meta: what the steps must say about their run.
        round: read the step of this round only; the result is None if it is missing or
            not valid.

    Raises:
        OSError, MemoryError, JaxRuntimeError: the machine failed; the step may be
            valid.
        InputError: a step is valid, but of another run, format, tree, shape or dtype.
            Or no round is given, and there are steps of which none is valid.
    """
    skipped_steps: dict[int, str] = {}
    for step in _steps(directory):
        if round not in (None, step):
            continue
        path, host_template = directory / str(step), _to_host(template)
        try:
            with _translate_errors(path):
                host_state, versions = _restore_step(
                    path, template, host_template, run_meta
                )
        except require.InputError:
            raise
        except Exception as error:  # orbax 0.12 raises bare ones for a short file
            if not path.exists():  # its run is still going and has removed it
                return restore_latest(directory, template, run_meta, round=round)
            if _is_machine_error(error):
                raise
            skipped_steps[step] = require.printable_line(str(error) or repr(error), 200)
            print(f"{path}: skipped: {skipped_steps[step]}", file=sys.stderr)
            continue
        mismatches = {
            n: v for n, v in versions.items() if v != run_meta.versions.get(n)
        }
        if mismatches:
            details = ", ".join(
                f"{name} {version}" for name, version in mismatches.items()
            )
            details = require.printable_line(details, 200)
            print(f"{path}: written by other versions: {details}", file=sys.stderr)
        state = jax.tree.map(jnp.asarray, host_state)
        return RestoredStep(trees.wrap_keys(state, template), step, skipped_steps)
    if skipped_steps and round is None:
        details = "; ".join(
            f"{step}: {reason}" for step, reason in skipped_steps.items()
        )
        raise require.InputError(f"{directory}: expected a valid step; got {details}")
    return None


def set_aside(directory: pathlib.Path, steps: Iterable[int]) -> None:
    """Renames steps to "invalid-<step>", with a count if that name is taken."""
    for step in steps:
        target = directory / f"invalid-{step}"
        count = 0
        while target.exists():
            count += 1
            target = directory / f"invalid-{step}.{count}"
        (directory / str(step)).rename(target)


class Checkpoints:
    """The checkpoint folder of one run, open for writing; a context manager.

    Args:
        directory: created when missing; the remains of a killed save are removed.
        keep: number of newest steps that stay on disk; with 1 there is none to fall
            back on.
        run_meta: what the steps say about their run.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int, run_meta: CheckpointMeta):
        require.count("keep", keep)
        self._directory = directory.absolute()
        self._run_meta = run_meta
        self._directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            # Orbax identifies asynchronous saves by a count of the process, so those of
            # several runs in threads (`vmapped`) would be mixed up.
            enable_async_checkpointing=_in_main_thread(),
            create=False,
            cleanup_tmp_directories=True,
            multiprocessing_options=_single_process_options(self._directory),
        )
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_handlers=_handlers()
        )

    def save(self, round: int, state: Any) -> None:
        """Starts a save in the background; returns once the state has been copied.

        Args:
            round: the number of the step.
            state: a pytree of arrays.

        Raises:
            OSError: this save, or the one before, failed; older steps stay.
            ValueError: the round has a step already.
        """
        host_state = _to_host(state)
        meta = {
            "format": FORMAT,
            "round": round,
            "tree": require.describe(state),
            "sha256_of_state": _digest(host_state),
            **self._run_meta._asdict(),
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(host_state),
            meta=ocp.args.JsonSave(meta | {"sha256": meta_digest(meta)}),
        )
        with _translate_errors(self._directory):
            self._manager.save(round, args=items, force=True)

    def keep_only(self, round: int | None) -> None:
        """Removes every step but that of one round; None removes all steps.

        Orbax refuses to save a step that exists, so steps of rounds that are trained
        again must be removed first.
        """
        for step in self._manager.all_steps():
            if step != round:
                self._manager.delete(step)

    def wait(self) -> None:
        """Returns when every save is complete on disk.

        Raises:
            OSError: the last one failed; older steps stay.
        """
        with _translate_errors(self._directory):
            self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        with _translate_errors(self._directory):
            self._manager.close()


@contextlib.contextmanager
def _translate_errors(directory: pathlib.Path) -> Iterator[None]:
    """Raises errors of the system as `OSError`, also those that tensorstore reports."""
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
    """The numbers of all steps, newest first."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if path.is_dir()]
    steps = [int(name) for name in names if name.isdecimal()]
    return sorted((step for step in steps if str(step) in names), reverse=True)


def _is_machine_error(error: Exception) -> bool:
    """Whether an error comes from the machine, so that the step may still be valid.

    Examples are too many open files and a file server that does not respond.
    """
    if isinstance(error, OSError):
        path_errors = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
        return not isinstance(error, path_errors)
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _restore_step(
    path: pathlib.Path, template: Any, host_template: Any, run_meta: CheckpointMeta
) -> tuple[Any, Mapping[str, str]]:
    """(state on the host, versions) of a valid step.

    Args:
        path: of the step.
        template: as for `restore_latest`.
        host_template: `template` on the host.
        run_meta: as for `restore_latest`.

    Raises:
        InputError: the step is valid, but of another run.
        Exception: the step is not valid.
    """
    if path.is_symlink():
        raise ValueError("a link to another place")
    handler = ocp.CompositeCheckpointHandler(**_handlers())
    process_options = _single_process_options(path.parent)
    with ocp.Checkpointer(handler, multiprocessing_options=process_options) as reader:

        def restore_item(**restore_args: Any) -> Any:
            composite = ocp.args.Composite(**restore_args)
            (contents,) = reader.restore(path.absolute(), composite).values()
            return contents

        meta = restore_item(meta=ocp.args.JsonRestore())
        if meta.pop("sha256", None) != meta_digest(meta) or meta["round"] != int(
            path.name
        ):
            raise ValueError("its description is not the one that was written")
        if not isinstance(meta["versions"], dict):
            raise ValueError("its versions are no list of packages")
        _check_same_run(path, meta, template, run_meta)
        _check_shapes(host_template, path / "state")
        host_state = restore_item(state=ocp.args.StandardRestore(host_template))
    if _digest(host_state) != meta["sha256_of_state"]:
        raise ValueError("its state is not the one that was written")
    leaves = zip(
        jax.tree.leaves_with_path(host_state),
        jax.tree.leaves(host_template),
        strict=True,
    )
    for (where, leaf), template_leaf in leaves:
        if _is_finite(template_leaf) and not _is_finite(leaf):
            raise ValueError(f"{jax.tree_util.keystr(where)} is NaN or infinite")
    return host_state, meta["versions"]


def _check_same_run(
    path: pathlib.Path, meta: Mapping[str, Any], template: Any, run_meta: CheckpointMeta
) -> None:
    """Refuses a step that equals what was saved, but belongs to another run."""
    if meta["format"] != FORMAT:
        version = meta["versions"].get("fairjax")
        description = f"{meta['format']}, of fairjax {version}"
        raise require.InputError(f"{path}: expected format {FORMAT}; got {description}")
    run_identity, step_identity = run_meta.decides, meta["decides"]
    mismatches = [
        n
        for n in {**run_identity, **step_identity}
        if run_identity.get(n) != step_identity.get(n)
    ]
    if mismatches:
        raise require.InputError(
            f"{path}: expected a state of this run; got one with other values of "
            f"{', '.join(mismatches)}"
        )
    # Orbax would silently cast another dtype.
    require.same_structure(f"{path}: state", meta["tree"], require.describe(template))


def _check_shapes(host_template: Any, item: pathlib.Path) -> None:
    """Refuses arrays of unexpected sizes before any array is read.

    Orbax allocates the size that a file claims, whatever size the caller expects.
    """
    array_metadata = jax.tree.leaves(
        _handlers()["state"].metadata(item.absolute()).tree
    )
    expected = sorted(str(leaf.shape) for leaf in jax.tree.leaves(host_template))
    if sorted(str(tuple(array.shape)) for array in array_metadata) != expected:
        raise ValueError("its arrays have other shapes than it says")
    for array in array_metadata:
        chunk = array.storage.chunk_shape if array.storage else ()
        if math.prod(chunk or ()) > max(math.prod(array.shape), 1):
            raise ValueError("an array of it is stored in pieces larger than itself")


def meta_digest(meta: Mapping[str, Any]) -> str:
    """The SHA-256 of a step's meta. It detects accidents and no forgery."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _digest(host_state: Any) -> str:
    """The SHA-256 of all leaves' bytes, in order; "tree" has dtypes and shapes."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(host_state):
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def _is_finite(leaf: np.ndarray) -> bool:
    # By JAX's `issubdtype`: NumPy does not know bfloat16.
    return not jnp.issubdtype(leaf.dtype, jnp.inexact) or bool(np.isfinite(leaf).all())


def _handlers() -> dict[str, Any]:
    return {
        "state": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _single_process_options(
    directory: pathlib.Path,
) -> ocp.options.MultiprocessingOptions:
    """Options by which orbax waits for no other process."""
    process_index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=process_index,
        active_processes={process_index},
        barrier_sync_key_prefix=directory.name,
    )


def _to_host(state: Any) -> Any:
    return jax.tree.map(np.asarray, trees.unwrap_keys(state))
