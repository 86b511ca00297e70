"""Addresses of random numbers; the golden values pin every run ever made."""

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given

from fairjax.core import rng

ROOT = jax.random.key(7)


def bits(key) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


@given(st.lists(st.integers(0, 2**31 - 1), max_size=4))
def test_an_address_is_folded_in_part_by_part(address):
    key = ROOT
    for part in address:
        key = jax.random.fold_in(key, part)
    assert bits(rng.fold_in(ROOT, *address)) == bits(key)


def test_different_addresses_have_different_keys():
    """Also a prefix of an address, and the same parts in another order."""
    addresses = [
        address
        for length in range(4)
        for address in itertools.product(range(4), repeat=length)
    ]
    assert len({bits(rng.fold_in(ROOT, *a)) for a in addresses}) == len(addresses)
    assert bits(rng.fold_in(jax.random.key(8), 1)) != bits(rng.fold_in(ROOT, 1))


def test_a_part_may_be_traced_or_batched():
    clients = jnp.asarray([5, 0, 3])
    batched = jax.jit(jax.vmap(lambda who: rng.fold_in(ROOT, rng.Role.LOCAL, who)))
    got = jax.random.key_data(batched(clients))
    expected = [bits(rng.fold_in(ROOT, rng.Role.LOCAL, who)) for who in (5, 0, 3)]
    np.testing.assert_array_equal(got, expected)


def test_roles_are_pinned():
    """Renumbering a role changes every run: add new ones at the end."""
    assert {role.name: role.value for role in rng.Role} == {
        "INIT": 0,
        "COHORT": 1,
        "UNITS": 2,
        "LOCAL": 3,
        "RELEASE": 4,
        "EVALUATE": 5,
        "ATTACK": 6,
        "FAULT": 7,
    }


def test_golden_key():
    """Run 0, local training, round 3, client 7."""
    key = rng.fold_in(jax.random.key(0), rng.Role.LOCAL, 3, 7)
    assert bits(key) == (3821768234, 1994183611)
