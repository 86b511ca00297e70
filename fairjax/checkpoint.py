"""Whole runs on disk: one orbax step per saved round, and the newest one that is valid.

Orbax names the newest step even when its files are broken, and while such a step exists
it drops every save at or below it without a word. So restoring walks back to the newest
step that reads whole and moves the others aside, and a save that was dropped is an
error.

Of several processes the first alone opens the folder. What it saves are arrays on its
host, which orbax takes for its own: of those on a device it would ask the others for
their shares.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from fairjax import checks, trees


class Checkpoints:
    """The checkpoint folder of one run; use it as a context manager.

    Args:
        directory: created when missing.
        keep: newest steps that stay on disk; with 1 there is none to fall back on.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int):
        checks.count("keep", keep)
        self._directory = directory.absolute()
        self._keep = keep
        self._manager = self._open()
        self.skipped: list[str] = []
        """Steps that could not be read, each with the reason."""

    def _open(self) -> ocp.CheckpointManager:
        self._directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            enable_async_checkpointing=True,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0,
                active_processes={0},
                barrier_sync_key_prefix=self._directory.name,
            ),
        )
        return ocp.CheckpointManager(
            self._directory,
            options=options,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, round: int, state: Any, meta: dict[str, Any]) -> None:
        """Saves in the background; returns once the state has been copied.

        Raises:
            RuntimeError: orbax dropped the step.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_on_host(state)),
            meta=ocp.args.JsonSave(meta | {"tree": checks.describe(state)}),
        )
        if not self._manager.save(round, args=items, force=True):
            raise RuntimeError(f"checkpoint {round} was not saved in {self._directory}")

    def restore(
        self, like: Any, *, round: int | None = None
    ) -> tuple[Any, dict[str, Any]] | None:
        """The newest step that reads whole as (state, meta), or None without one.

        With `round` only the step of that round counts.

        Newer steps that cannot be read are renamed to "invalid-<step>" and named in
        `skipped`.

        Raises:
            InputError: the newest readable step holds another tree, shape or dtype.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            if round not in (None, step):
                continue
            try:
                meta = self._read(step, meta=ocp.args.JsonRestore())
            except Exception as error:  # orbax 0.12 raises a bare one for a short file
                self._set_aside(step, error)
                continue
            # Orbax would cast another dtype without a word.
            where = f"{self._directory / str(step)}: state"
            checks.same_structure(where, meta.pop("tree"), checks.describe(like))
            target = ocp.args.StandardRestore(_on_host(like))
            try:
                read = jax.tree.map(jnp.asarray, self._read(step, state=target))
                return trees.typed(read, like), meta
            except Exception as error:
                self._set_aside(step, error)
        return None

    def _read(self, step: int, **item: Any) -> Any:
        restored = self._manager.restore(step, args=ocp.args.Composite(**item))
        return restored[next(iter(item))]

    def _set_aside(self, step: int, error: Exception) -> None:
        reason = str(error).strip().split("\n")[0]
        self.skipped.append(f"{step}: {reason}")
        logging.warning("checkpoint %d skipped: %s", step, reason)
        self._manager.close()
        source = self._directory / str(step)
        target = self._directory / f"invalid-{step}"
        count = 0
        while target.exists():
            count += 1
            target = self._directory / f"invalid-{step}.{count}"
        source.rename(target)
        self._manager = self._open()

    def keep_only(self, round: int | None) -> None:
        """Removes every step but that of one round; None removes all.

        A step that is to be saved again must go first: orbax would drop it.
        """
        for step in self._manager.all_steps():
            if step != round:
                self._manager.delete(step)

    def wait(self) -> None:
        """Returns when every save is whole on disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def _on_host(state: Any) -> Any:
    return jax.tree.map(np.asarray, trees.raw(state))
