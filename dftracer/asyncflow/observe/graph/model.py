"""The graph of an engine's components as it stands at one moment: what ``flow.graph()`` returns."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dftracer.asyncflow.observe.graph import formats
from dftracer.asyncflow.observe.graph.parts import Edge, Node
from dftracer.utils.whole_file import replacing


@dataclass(frozen=True, eq=False)
class WorkflowGraph:
    """The components of an engine, and what they wait for. It does not change any more.

    Futures that are no components of the engine are not in it.
    """

    name: str
    """The identifier of the engine."""
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    is_folded: bool
    """Whether all calls of one function are one node."""

    def to_mermaid(self) -> str:
        """Return the graph in the language of Mermaid, which many sites and editors draw."""
        return formats.to_mermaid(self)

    def to_dot(self) -> str:
        """Return the graph in the language of Graphviz."""
        return formats.to_dot(self)

    def to_svg(self) -> str:
        """Return the graph as an SVG image.

        Raises
        ------
        ImportError
            If the extra ``[viz]`` is not installed.
        RuntimeError
            If the program ``dot`` of Graphviz is not installed, or fails.
        """
        return self._svg

    def to_html(self) -> str:
        """Return a page with the image and a table of the nodes. Raises as :meth:`to_svg`."""
        return formats.to_page(self, self._svg)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the graph to a file of the kind that its name ends in.

        Parameters
        ----------
        path:
            The file, which is replaced: ``.mmd`` or ``.dot`` for text; ``.svg``, ``.png`` or
            ``.html``, for which Graphviz is needed.

        Returns
        -------
        pathlib.Path
            The file.

        Raises
        ------
        ValueError
            If the name ends in something else.
        ImportError, RuntimeError
            As :meth:`to_svg`.
        OSError
            If the file cannot be written.
        """
        target = Path(path)
        write = formats.writer_for(target)
        content = write(self)
        with replacing(target) as partial:
            partial.write_bytes(content)
        return target

    def _repr_svg_(self) -> str | None:
        """Return the image for a notebook, if it can be drawn here."""
        try:
            return self._svg
        except (ImportError, RuntimeError):
            return None

    def _repr_html_(self) -> str:
        """Return the image for a notebook; a table, and what to install, if it cannot be drawn."""
        try:
            return formats.to_scrolled(self._svg)
        except (ImportError, RuntimeError) as error:
            return formats.to_table(self, str(error))

    def __repr__(self) -> str:
        folded = ", folded" if self.is_folded else ""
        count = sum(node.count for node in self.nodes)
        return f"<graph of '{self.name}': {count:,} components{folded}>"

    @cached_property
    def _svg(self) -> str:
        return formats.render(formats.to_dot(self), "svg").decode()
