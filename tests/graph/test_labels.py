"""Atoms, ties and pins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hwprune.graph.labels import AtomStore, components


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))
    )
)
def test_components_agree_with_scipy(case):
    count, edges = case
    left, right = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    ours = components(count, left, right)
    matrix = coo_matrix((np.ones(len(left)), (left, right)), shape=(count, count))
    _, theirs = connected_components(matrix, directed=False)
    for node in range(count):
        members = np.flatnonzero(theirs == theirs[node])
        assert ours[node] == members.min()


def test_components_of_a_long_chain():
    count = 100_000
    order = np.random.default_rng(0).permutation(count)
    assert not components(count, order[:-1], order[1:]).any()


def test_the_first_reason_stays():
    store = AtomStore()
    atoms = store.create("w", 0, 3)
    store.pin(np.array([-1, 1]), "first")
    store.pin(atoms, "second")
    assert store.classes().pinned == {0: "second", 1: "first", 2: "second"}


def test_a_pin_holds_for_everything_tied():
    store = AtomStore()
    left, right = store.create("a", 0, 2), store.create("b", 0, 2)
    store.pin(right, "network output")
    store.unify(left, right[::-1])
    classes = store.classes()
    assert classes.root.tolist() == [0, 1, 1, 0]
    assert classes.pinned == {0: "network output", 1: "network output"}


@pytest.mark.parametrize("marked", [[], [0], [1, 2]])
def test_producers(marked):
    store = AtomStore()
    store.create("w", 0, 3)
    store.mark_producers(np.array([-1, *marked]))
    assert np.flatnonzero(store.classes().producer).tolist() == marked
