"""Checkpoints: every save is on disk, and what cannot be read is not believed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import checks
from fairjax.checkpoint import Checkpoints


def state(value, dtype=jnp.float32):
    return {
        "params": {"w": jnp.full((64, 64), value, dtype)},
        "round": jnp.asarray(int(value)),
        "key": jax.random.key(int(value)),
        "none": None,
    }


def save(folder, rounds, keep=3):
    with Checkpoints(folder, keep=keep) as checkpoints:
        for number in rounds:
            checkpoints.save(number, state(number), {"round": number})


def restored(folder, like=None):
    with Checkpoints(folder, keep=3) as checkpoints:
        found = checkpoints.restore(state(0) if like is None else like)
        return found, checkpoints.skipped


def steps(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def truncate(folder, step):
    """Cuts the largest file of a step, as a full disk or a lost page would."""
    parts = [p for p in (folder / str(step)).rglob("*") if p.is_file()]
    largest = max(parts, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])


def test_every_save_is_a_step_and_the_newest_stay(tmp_path):
    save(tmp_path, range(1, 8))
    assert steps(tmp_path) == [5, 6, 7]
    (found, meta), skipped = restored(tmp_path)
    assert meta == {"round": 7}
    assert skipped == []
    np.testing.assert_array_equal(found["params"]["w"], 7.0)
    assert found["params"]["w"].dtype == jnp.float32
    assert jnp.array_equal(
        jax.random.key_data(found["key"]), jax.random.key_data(jax.random.key(7))
    )
    assert found["none"] is None


def test_a_round_is_restored_by_its_number(tmp_path):
    save(tmp_path, [10, 20, 30])
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        found, meta = checkpoints.restore(state(0), round=20)
        assert meta == {"round": 20}
        np.testing.assert_array_equal(found["params"]["w"], 20.0)
        assert checkpoints.restore(state(0), round=21) is None
    # What was not asked for stays as it is.
    assert steps(tmp_path) == [10, 20, 30]


def test_an_empty_folder_restores_nothing(tmp_path):
    assert restored(tmp_path) == (None, [])


def test_a_broken_step_is_set_aside_and_the_one_before_is_read(tmp_path):
    save(tmp_path, range(1, 4))
    truncate(tmp_path, 3)
    (found, meta), skipped = restored(tmp_path)
    assert meta == {"round": 2}
    np.testing.assert_array_equal(found["params"]["w"], 2.0)
    assert skipped[0].startswith("3: ")
    assert (tmp_path / "invalid-3").is_dir()


def test_a_save_after_a_broken_step_is_not_dropped(tmp_path):
    """Orbax drops saves at or below a step that it lists, broken or not."""
    save(tmp_path, range(1, 4))
    truncate(tmp_path, 3)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.restore(state(0))
        checkpoints.save(3, state(30), {"round": 3})
    (found, meta), _ = restored(tmp_path)
    assert meta == {"round": 3}
    np.testing.assert_array_equal(found["params"]["w"], 30.0)


def test_a_second_broken_step_of_the_same_number_is_kept_apart(tmp_path):
    for _ in range(2):
        save(tmp_path, [3])
        truncate(tmp_path, 3)
        assert restored(tmp_path)[0] is None
    assert (tmp_path / "invalid-3").is_dir()
    assert (tmp_path / "invalid-3.1").is_dir()


def test_a_stray_folder_with_a_number_is_no_checkpoint(tmp_path):
    save(tmp_path, [1, 2])
    (tmp_path / "9999").mkdir()
    assert restored(tmp_path)[0][1] == {"round": 2}
    save(tmp_path, [3])
    assert 3 in steps(tmp_path)


def test_another_dtype_is_refused_and_named(tmp_path):
    save(tmp_path, [1])
    with pytest.raises(checks.InputError, match=r"'w'.*float16.*got float32\[64, 64\]"):
        restored(tmp_path, state(0, jnp.float16))
    assert steps(tmp_path) == [1]


def test_another_tree_is_refused_and_named(tmp_path):
    save(tmp_path, [1])
    like = state(0)
    like["extra"] = jnp.zeros(3)
    with pytest.raises(checks.InputError, match=r"extra.*float32\[3\]; got nothing"):
        restored(tmp_path, like)


def test_a_save_that_orbax_drops_is_an_error(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.save(5, state(5), {"round": 5})
        checkpoints.wait()
        with pytest.raises(Exception, match=r"(?i)step 5|checkpoint 5|already exists"):
            checkpoints.save(5, state(6), {"round": 5})


def test_at_least_one_step_is_kept(tmp_path):
    with pytest.raises(checks.InputError, match="keep: expected a whole number above"):
        Checkpoints(tmp_path, keep=0)


def test_what_is_removed_can_be_saved_again(tmp_path):
    save(tmp_path, [2, 5, 9])
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.keep_only(5)
        checkpoints.save(9, state(7), {"round": 9})
    assert steps(tmp_path) == [5, 9]
    np.testing.assert_array_equal(restored(tmp_path)[0][0]["params"]["w"], 7.0)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.keep_only(None)
    assert steps(tmp_path) == []
