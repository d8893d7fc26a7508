"""Moves: small changes of which atoms serve together; the steps of the local search.

Merge, split and swap are those of HexGen's genetic search (section 4.2); fuse and part change the
tensor-parallel degree, within a machine or over a link that may pay.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from planner.search.device_group import Atom
from planner.search.group_pool import Pool

Part = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Parts that serve as one pipeline each, and the atoms left over."""

    parts: tuple[Part, ...]
    spare: Part = ()


@dataclass(frozen=True, slots=True)
class Change:
    """Replace the parts of these numbers by others, and the spares too."""

    old: tuple[int, ...]
    new: tuple[Part, ...]
    spare: Part

    def applied(self, layout: Layout) -> Layout:
        """The layout after the change; empty parts vanish."""
        kept = tuple(part for i, part in enumerate(layout.parts) if i not in self.old)
        return Layout(kept + tuple(part for part in self.new if part), self.spare)


def move(pool: Pool, layout: Layout, draw: random.Random) -> Change | None:
    """One atom goes to another part, or from the spares into a part."""
    parts = layout.parts
    if (layout.spare and draw.random() < 0.5) or len(parts) < 2:
        return _recruit(layout, draw)
    i, j = draw.sample(range(len(parts)), 2)
    atom = draw.choice(parts[i])
    return Change((i, j), (_without(parts[i], atom), (*parts[j], atom)), layout.spare)


def _recruit(layout: Layout, draw: random.Random) -> Change | None:
    if not layout.spare or not layout.parts:
        return None
    i, atom = draw.randrange(len(layout.parts)), draw.choice(layout.spare)
    return Change((i,), ((*layout.parts[i], atom),), _without(layout.spare, atom))


def exchange(pool: Pool, layout: Layout, draw: random.Random) -> Change | None:
    """A spare atom replaces one that serves, or an atom becomes a spare."""
    i = draw.randrange(len(layout.parts))
    gone = draw.choice(layout.parts[i])
    kept = _without(layout.parts[i], gone)
    spare = draw.choice((None, *layout.spare))
    if spare is None:
        return Change((i,), (kept,), (*layout.spare, gone))
    return Change((i,), ((*kept, spare),), (*_without(layout.spare, spare), gone))


def swap(pool: Pool, layout: Layout, draw: random.Random) -> Change | None:
    """Two atoms of unlike kind change places between parts."""
    parts = layout.parts
    if len(parts) < 2:
        return None
    i, j = draw.sample(range(len(parts)), 2)
    a, b = draw.choice(parts[i]), draw.choice(parts[j])
    if a.kind == b.kind:
        return None
    new = ((*_without(parts[i], a), b), (*_without(parts[j], b), a))
    return Change((i, j), new, layout.spare)


def merge(pool: Pool, layout: Layout, draw: random.Random) -> Change | None:
    """Two parts become one."""
    if len(layout.parts) < 2:
        return None
    i, j = draw.sample(range(len(layout.parts)), 2)
    return Change((i, j), (layout.parts[i] + layout.parts[j],), layout.spare)


def split(pool: Pool, layout: Layout, draw: random.Random) -> Change | None:
    """One part becomes two: cut along the tour, or dealt out in turn."""
    i = draw.randrange(len(layout.parts))
    ordered = pool.in_order(layout.parts[i])
    if len(ordered) < 2:
        return None
    at = draw.randint(1, len(ordered) - 1)
    halves = (ordered[:at], ordered[at:])
    if draw.random() < 0.5:
        halves = (ordered[::2], ordered[1::2])
    return Change((i,), (tuple(halves[0]), tuple(halves[1])), layout.spare)


def found(pool: Pool, layout: Layout, draw: random.Random) -> Change | None:
    """The spares become a part of their own."""
    return Change((), (layout.spare,), ()) if layout.spare else None


def fuse(pool: Pool, layout: Layout, draw: random.Random) -> Change | None:
    """Two near atoms of one part become one tensor-parallel atom."""
    i = draw.randrange(len(layout.parts))
    a = draw.choice(layout.parts[i])
    near = [b for b in layout.parts[i] if b is not a and pool.is_near(a, b)]
    if not near:
        return None
    b = draw.choice(near)
    whole = pool.atom((*a.members, *b.members))
    if whole is None:
        return None
    rest = _without(_without(layout.parts[i], a), b)
    return Change((i,), ((*rest, whole),), layout.spare)


def part(pool: Pool, layout: Layout, draw: random.Random) -> Change | None:
    """One tensor-parallel atom becomes two."""
    i = draw.randrange(len(layout.parts))
    groups = [atom for atom in layout.parts[i] if len(atom.members) > 1]
    if not groups:
        return None
    atom = draw.choice(groups)
    at = draw.randint(1, len(atom.members) - 1)
    halves = (pool.atom(atom.members[:at]), pool.atom(atom.members[at:]))
    if halves[0] is None or halves[1] is None:
        return None
    rest = _without(layout.parts[i], atom)
    return Change((i,), ((*rest, halves[0], halves[1]),), layout.spare)


def _without(atoms: Sequence[Atom], gone: Atom) -> Part:
    return tuple(atom for atom in atoms if atom is not gone)


MOVES = (
    (move, 6),
    (exchange, 3),
    (swap, 6),
    (merge, 1),
    (split, 1),
    (found, 1),
    (fuse, 2),
    (part, 2),
)
