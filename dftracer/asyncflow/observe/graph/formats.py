"""Graphs as text, images and pages."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dftracer.asyncflow.observe.graph.parts import Graph, Node
from dftracer.utils.progress.texts import printable

_COLORS = {
    "pending": ("#f3f4f6", "#9ca3af"),
    "running": ("#dbeafe", "#2563eb"),
    "done": ("#dcfce7", "#16a34a"),
    "failed": ("#fee2e2", "#dc2626"),
    "cancelled": ("#ffedd5", "#ea580c"),
}
"""What each state is filled with, and outlined by."""

_SHAPES = {"block": "component", "executable": "box", "prompt": "note"}
"""Graphviz's shapes, where a kind has one of its own."""

_MERMAID_SIGNS = str.maketrans(
    {"#": "#35;", '"': "#quot;", "`": "#96;", "%": "#37;", "&": "&amp;", "<": "&lt;", ">": "&gt;"}
)
_DOT_SIGNS = str.maketrans({"\\": "\\\\", '"': '\\"', "&": "&amp;"})
"""What is written for signs that would mean something."""

_MERMAID_BRACKETS = {"block": '[["{}"]]', "executable": '["{}"]', "prompt": '>"{}"]'}


def _look(node: Node) -> str:
    """Return the state by which a node is colored: the one that most needs a look."""
    states = node.states
    for state in ("FAILED", "CANCELED", "RUNNING"):
        if state in states:
            return state.lower()
    if "PENDING" in states:
        return "running" if "DONE" in states else "pending"
    return "done"


def _lines(node: Node) -> list[str]:
    """Return what is written into a node."""
    if node.uid is not None:
        (state,) = node.states
        return [node.name, state.lower() if node.seconds is None else text_of(node.seconds)]
    states = ", ".join(f"{number:,} {state.lower()}" for state, number in node.states.items())
    lines = [f"{node.name} × {node.count:,}", states]  # noqa: RUF001 - it is a cross
    if node.seconds is not None:
        lines.append(f"{text_of(node.seconds)} each")
    return lines


def text_of(seconds: float) -> str:
    """Return a duration as it is read, for example ``"1.5 ms"`` or ``"2:03:04"``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _nested(
    nodes: Iterable[Node],
    open_cluster: Callable[[Node], str],
    close_cluster: str,
    write: Callable[[Node], str],
) -> Iterator[str]:
    """Yield the lines of all nodes, those of a block within a cluster, the block's own first."""
    members: dict[str | None, list[Node]] = {}
    for node in nodes:
        members.setdefault(node.block, []).append(node)
    # Not a recursive function: blocks may be nested deeper than Python's stack.
    stack: list[tuple[Node | None, str]] = [(node, "  ") for node in reversed(members[None])]
    while stack:
        node_or_end, indent = stack.pop()
        if node_or_end is None:
            yield indent + close_cluster
            continue
        node = node_or_end
        inner = members.get(node.id)
        if inner is None:
            yield indent + write(node)
            continue
        yield indent + open_cluster(node)
        yield indent + "  " + write(node)
        stack.append((None, indent))
        stack += [(member, indent + "  ") for member in reversed(inner)]


def to_mermaid(graph: Graph) -> str:
    """Return the graph in the language of Mermaid."""

    def text(value: str) -> str:
        return printable(value).translate(_MERMAID_SIGNS)

    def write(node: Node) -> str:
        label = "<br/>".join(map(text, _lines(node)))
        return node.id + _MERMAID_BRACKETS.get(node.kind, '("{}")').format(label)

    def open_cluster(node: Node) -> str:
        return f'subgraph c_{node.id}["{text(node.name)}"]'

    lines = ["flowchart LR"]
    if graph.nodes:
        lines += _nested(graph.nodes, open_cluster, "end", write)
    for edge in graph.edges:
        label = f'|"{edge.count:,}"|' if edge.count > 1 else ""
        lines.append(f"  {edge.source} -->{label} {edge.target}")
    for look, (fill, stroke) in _COLORS.items():
        looking = [node.id for node in graph.nodes if _look(node) == look]
        if looking:
            lines.append(f"  classDef {look} fill:{fill},stroke:{stroke},color:#111827")
            lines.append(f"  class {','.join(looking)} {look}")
    return "\n".join(lines) + "\n"


def to_dot(graph: Graph) -> str:
    """Return the graph in the language of Graphviz."""

    def text(value: str) -> str:
        return printable(value).translate(_DOT_SIGNS)

    def write(node: Node) -> str:
        label = "\\n".join(map(text, _lines(node)))
        fill, stroke = _COLORS[_look(node)]
        shape = _SHAPES.get(node.kind)
        form = f'shape={shape} style="filled" ' if shape is not None else ""
        tip = text(node.uid or node.name)
        colors = f'fillcolor="{fill}" color="{stroke}"'
        return f'{node.id} [label="{label}" {form}{colors} tooltip="{tip}"]'

    def open_cluster(node: Node) -> str:
        return f'subgraph "cluster_{node.id}" {{ label="{text(node.name)}" color="#9ca3af"'

    lines = [
        f'digraph "{text(graph.name)}" {{',
        '  rankdir=LR fontname="Helvetica" fontsize=11 style="rounded" labeljust=l',
        '  node [shape=box style="rounded,filled" fontname="Helvetica" fontsize=11]',
        '  edge [fontname="Helvetica" fontsize=9 color="#6b7280"]',
    ]
    if graph.nodes:
        lines += _nested(graph.nodes, open_cluster, "}", write)
    for edge in graph.edges:
        label = f' [label="{edge.count:,}"]' if edge.count > 1 else ""
        lines.append(f"  {edge.source} -> {edge.target}{label}")
    return "\n".join([*lines, "}"]) + "\n"


def render(dot: str, kind: str) -> bytes:
    """Have Graphviz draw a graph in its own language, as ``svg`` or ``png``."""
    try:
        import graphviz  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ImportError(
            f"a graph as {kind} needs the package {error.name!r}: pip install "
            "'dftracer-asyncflow[viz]'; .mmd and .dot need nothing"
        ) from None
    library: Any = graphviz
    try:
        image: bytes = library.Source(dot).pipe(format=kind, quiet=True)
    except library.ExecutableNotFound:
        raise RuntimeError(
            f"a graph as {kind} needs the program 'dot' of Graphviz, which is not installed: "
            "apt install graphviz, dnf install graphviz or conda install graphviz; .mmd and .dot "
            "need nothing"
        ) from None
    except library.CalledProcessError as error:
        raise RuntimeError(f"Graphviz has failed to draw the graph: {error}") from error
    return image


def to_scrolled(svg: str) -> str:
    """Return the image as a part of a page, to be scrolled when it is too wide."""
    return f'<div style="overflow-x:auto">{svg[svg.index("<svg") :]}</div>'


def to_table(graph: Graph, note: str) -> str:
    """Return the nodes as a table of a page, and a note below it."""
    names = {node.id: node.name for node in graph.nodes}
    sources: dict[str, dict[str, None]] = {}
    for edge in graph.edges:
        sources.setdefault(edge.target, {})[names[edge.source]] = None
    rows: list[str] = []
    for node in graph.nodes:
        states = ", ".join(f"{number:,} {state.lower()}" for state, number in node.states.items())
        cells = (
            node.name if node.uid is None else f"{node.name} ({node.uid})",
            node.kind,
            states,
            "" if node.seconds is None else text_of(node.seconds),
            ", ".join(sources.get(node.id, ())),
            names[node.block] if node.block is not None else "",
        )
        rows.append(
            "<tr>" + "".join(f"<td>{html.escape(printable(cell))}</td>" for cell in cells) + "</tr>"
        )
    heads = ("name", "kind", "states", "mean duration", "waits for", "in the block")
    head = "".join(f"<th>{each}</th>" for each in heads)
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>\n"
        + "\n".join(rows)
        + f"\n</tbody></table>\n<p>{html.escape(note)}</p>\n"
    )


def to_page(graph: Graph, svg: str) -> str:
    """Return a page that needs no other file."""
    title = html.escape(printable(graph.name))
    note = "Durations count from the launch to the end."
    style = (
        "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;margin-top:2em}"
        "td,th{border:1px solid #d1d5db;padding:.3em .6em;text-align:left}"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"{to_scrolled(svg)}\n{to_table(graph, note)}</body>\n</html>\n"
    )


_WRITERS: dict[str, Callable[[Graph], bytes]] = {
    ".mmd": lambda graph: graph.to_mermaid().encode(errors="replace"),
    ".dot": lambda graph: graph.to_dot().encode(errors="replace"),
    ".svg": lambda graph: graph.to_svg().encode(errors="replace"),
    ".png": lambda graph: render(graph.to_dot(), "png"),
    ".html": lambda graph: graph.to_html().encode(errors="replace"),
}


def writer_for(path: Path) -> Callable[[Graph], bytes]:
    """Return what makes the content of a file of that name, or raise ``ValueError``."""
    try:
        return _WRITERS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(_WRITERS)
        raise ValueError(f"a graph can be saved as {known}, not as {str(path)!r}") from None
