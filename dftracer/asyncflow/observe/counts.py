"""Counts of what an engine was asked to do and has done, for each function that it decorates.

They are all that is left of a component that has fallen out of the history, and cost one addition
at its call and one at its end.
"""

from __future__ import annotations

from collections.abc import Iterator

from dftracer.utils.progress.counts import Row

MAX_TALLIES = 1_000
"""How many tallies an engine keeps. What is decorated or called elsewhere then shares one."""


class Tally:
    """The calls of one function, or of all of that name: those in the body of one block's calls.

    Parameters
    ----------
    kind, name:
        As in the definition.
    root:
        The tally of the same function's calls in no block; none if this is that.
    owner:
        The tally of the block in whose body the calls were made, if in any.
    """

    __slots__ = (
        "cancelled",
        "done",
        "failed",
        "kind",
        "members",
        "name",
        "owner",
        "registered",
        "root",
        "seconds",
        "sources",
    )

    def __init__(
        self, kind: str, name: str, root: Tally | None = None, owner: Tally | None = None
    ) -> None:
        self.kind = kind
        self.name = name
        self.root = root or self
        self.owner = owner
        self.registered = 0
        self.done = 0
        self.failed = 0
        self.cancelled = 0
        self.seconds = 0.0
        """How long those that are done have taken together, from their launches to their ends."""
        self.sources: dict[Tally, int] = {}
        """How many futures of which other calls these calls were given."""
        self.members: dict[Tally, Tally] = {}
        """What is called in the body, by its root."""

    @property
    def ended(self) -> int:
        """How many have come to any end."""
        return self.done + self.failed + self.cancelled


class Counts:
    """All the tallies of one engine. Any thread may read them; the event loop's adds to them."""

    def __init__(self) -> None:
        self._all: list[Tally] = []
        self._roots: dict[tuple[str, str], Tally] = {}

    def __iter__(self) -> Iterator[Tally]:
        return iter(list(self._all))

    def rows(self) -> list[Row]:
        """Return how far the tasks of each name have come, in the order of their decoration.

        Blocks are no tasks.
        """
        rows: dict[str, Row] = {}
        for tally in self:
            if tally.kind != "block":
                _, total, ended, failed, cancelled = rows.get(tally.name, Row("", 0, 0, 0, 0))
                rows[tally.name] = Row(
                    tally.name,
                    total + tally.registered,
                    ended + tally.ended,
                    failed + tally.failed,
                    cancelled + tally.cancelled,
                )
        return [row for row in rows.values() if row.total]

    def of(self, kind: str, name: str) -> Tally:
        """Return the tally of the functions of that name."""
        if len(self._all) >= MAX_TALLIES:
            kind, name = "function", "(others)"
        tally = self._roots.get((kind, name))
        if tally is None:
            tally = self._roots[kind, name] = Tally(kind, name)
            self._all.append(tally)
        return tally

    def inside(self, owner: Tally, root: Tally) -> Tally:
        """Return the tally of what has the tally ``root`` elsewhere, in the body of ``owner``."""
        known = owner.members.get(root)
        if known is None:
            known = owner.members[root] = self._find_or_make(owner, root)
        return known

    def _find_or_make(self, owner: Tally, root: Tally) -> Tally:
        # A block that calls itself, maybe through others, is one and the same at all depths.
        block: Tally | None = owner
        while block is not None:
            if block.root is root:
                return block
            block = block.owner
        if len(self._all) >= MAX_TALLIES:
            return root
        tally = Tally(root.kind, root.name, root, owner)
        self._all.append(tally)
        return tally
