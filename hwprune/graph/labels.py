"""Channel atoms: the positions of parameters that may turn out to be one channel, and what ties them.

Every position along every dimension of a parameter or buffer is an *atom*, an integer. Rules say which
atoms are one channel (:meth:`AtomStore.unify`), which must stay (:meth:`AtomStore.pin`) and which bring a
channel into being (:meth:`AtomStore.mark_producers`). Nothing is resolved until :meth:`AtomStore.classes`:
until then ties are edges in a list, so that rules cost a few array operations each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwprune.graph.axes import BoolArray, IntArray

#: Atom of each position along one dimension, -1 where the position is fixed; ``None`` where all are.
Labels = IntArray | None
#: The labels of every dimension of a tensor.
Dims = tuple[Labels, ...]

#: The atom of a position that never leaves.
FIXED = -1


@dataclass(frozen=True, slots=True)
class Segment:
    """The atoms along one dimension of one parameter or buffer.

    Attributes:
        tensor: Dotted name of the parameter or buffer.
        dim: The dimension.
        start: Its first atom; position ``p`` is atom ``start + p``.
        size: Number of positions.
    """

    tensor: str
    dim: int
    start: int
    size: int

    @property
    def atoms(self) -> slice:
        """Where its atoms lie in an array over all atoms."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True, slots=True, eq=False)
class AtomClasses:
    """What is known of the atoms when every operator has been seen.

    Attributes:
        root: Shape ``(atoms,)``: the smallest atom tied to each.
        producer: Shape ``(atoms,)``: whether the position must be zero for its channel to vanish.
        pinned: Root to the first reason why its class must stay.
    """

    root: IntArray
    producer: BoolArray
    pinned: dict[int, str]


class AtomStore:
    """Hands out atoms and collects what is said about them.

    >>> store = AtomStore()
    >>> first, second = store.create("a.weight", 0, 2), store.create("b.weight", 1, 2)
    >>> store.unify(first, second)
    >>> store.pin(first[1:], "network output")
    >>> store.classes().root.tolist(), store.classes().pinned
    ([0, 1, 0, 1], {1: 'network output'})
    """

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._count = 0
        self._edges: list[tuple[IntArray, IntArray]] = []
        self._pins: list[tuple[IntArray, str]] = []
        self._producers: list[IntArray] = []

    def create(self, tensor: str, dim: int, size: int) -> IntArray:
        """Fresh atoms, shape ``(size,)``, for one dimension of a parameter or buffer."""
        segment = Segment(tensor, dim, self._count, size)
        self.segments.append(segment)
        self._count += size
        return np.arange(segment.start, segment.start + size, dtype=np.int64)

    def unify(self, left: IntArray, right: IntArray) -> None:
        """Makes ``left[i]`` and ``right[i]`` one channel; both of one shape, without fixed positions."""
        differs = left != right
        if differs.any():
            self._edges.append((left[differs], right[differs]))

    def pin(self, atoms: IntArray, reason: str) -> None:
        """Keeps the channels of ``atoms`` (any shape; fixed positions are passed over)."""
        atoms = atoms[atoms >= 0]
        if atoms.size:
            self._pins.append((atoms, reason))

    def mark_producers(self, atoms: IntArray) -> None:
        """Notes that these positions bring their channels into being."""
        self._producers.append(atoms[atoms >= 0])

    def classes(self) -> AtomClasses:
        """Resolves everything that was said."""
        if self._edges:
            left, right = (np.concatenate(side) for side in zip(*self._edges, strict=True))
        else:
            left = right = np.zeros(0, dtype=np.int64)
        root = components(self._count, left, right)
        producer = np.zeros(self._count, dtype=bool)
        for atoms in self._producers:
            producer[atoms] = True
        pinned: dict[int, str] = {}
        for atoms, reason in self._pins:
            for pinned_root in np.unique(root[atoms]).tolist():
                pinned.setdefault(pinned_root, reason)
        return AtomClasses(root, producer, pinned)


def components(count: int, left: IntArray, right: IntArray) -> IntArray:
    """Connected components of a graph, by hooking each root to the smallest root it touches.

    Args:
        count: Number of nodes.
        left: Shape ``(edges,)``: one end of every edge.
        right: Shape ``(edges,)``: the other end.

    Returns:
        Shape ``(count,)``: the smallest node of each node's component.

    >>> components(5, np.array([0, 3]), np.array([3, 4])).tolist()
    [0, 1, 2, 0, 0]
    """
    parent: IntArray = np.arange(count, dtype=np.int64)
    while left.size:
        left, right = parent[left], parent[right]
        open_edges = left != right
        left, right = left[open_edges], right[open_edges]
        np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))
        while True:
            grandparent = parent[parent]
            if np.array_equal(grandparent, parent):
                break
            parent = grandparent
    return parent
