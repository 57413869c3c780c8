"""Native building blocks for engines that sit on a :class:`~dftracer.utils.Runtime`."""

from dftracer.utils._native import Graph, Mailbox, __version__, track_all, untrack

__all__ = ["Graph", "Mailbox", "__version__", "track_all", "untrack"]
