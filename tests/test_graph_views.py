"""The graph that an engine draws of its calls."""

import asyncio
import gc
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from docs_support import examples
from engine_support import ForeignBackend, Gate, add, identity, launched, reached

from dftracer.asyncflow import RuntimeExecutionBackend, WorkflowEngine
from dftracer.asyncflow.observe.counts import MAX_TALLIES
from dftracer.asyncflow.observe.graph.model import Edge, Node, WorkflowGraph
from dftracer.asyncflow.observe.history import HISTORY_SIZE

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="the program dot is needed")


def states(graph: WorkflowGraph) -> dict[str, dict[str, int]]:
    """The states of each node, by its name."""
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    return {node.name: dict(node.states) for node in graph.nodes}


def edges(graph: WorkflowGraph) -> set[tuple[str, str, int]]:
    """The edges, by the names of their nodes."""
    names = {node.id: node.name for node in graph.nodes}
    return {(names[edge.source], names[edge.target], edge.count) for edge in graph.edges}


def blocks(graph: WorkflowGraph) -> dict[str, str | None]:
    """In which block each node is, by their names."""
    names = {node.id: node.name for node in graph.nodes}
    return {node.name: None if node.block is None else names[node.block] for node in graph.nodes}


async def small_run() -> WorkflowGraph:
    """One block with a task of each end, and one task after it."""
    async with await WorkflowEngine.create() as flow:

        @flow.function_task
        def load(value: Any) -> Any:
            return value

        @flow.function_task
        def fails(value: Any) -> Any:
            raise ValueError(value)

        @flow.executable_task
        def program(value: Any) -> list[str]:
            return ["true"]

        @flow.block
        async def package() -> None:
            await program(load(1))
            await asyncio.gather(fails(2), return_exceptions=True)

        @flow.function_task
        def report(value: Any) -> Any:
            return value

        await report(package())
    return flow.graph()


async def test_each_call_has_a_node_when_there_are_few() -> None:
    graph = await small_run()
    assert not graph.is_folded
    assert states(graph) == {
        "package": {"DONE": 1},
        "load": {"DONE": 1},
        "program": {"DONE": 1},
        "fails": {"FAILED": 1},
        "report": {"DONE": 1},
    }
    assert edges(graph) == {("load", "program", 1), ("package", "report", 1)}
    inside = dict.fromkeys(("load", "program", "fails"), "package")
    assert blocks(graph) == {"package": None, "report": None, **inside}
    assert [node.uid for node in graph.nodes][:2] == ["block.000001", "task.000002"]
    assert {node.name: node.kind for node in graph.nodes}["program"] == "executable"
    assert all((node.seconds is None) == (node.name == "fails") for node in graph.nodes)


async def test_states_follow_the_run_when_it_goes_on() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        assert flow.graph().nodes == ()
        first = flow.function_task(identity)(1)
        second = flow.function_task(add)(first, 2)
        looks = [states(flow.graph())]
        await backend.given(first)
        backend.report(first.task, "RUNNING")
        looks.append(states(flow.graph()))
        await backend.end(first, return_value=1)
        await launched()
        second.cancel()
        looks.append(states(flow.graph()))
        assert looks == [
            {"identity": {"PENDING": 1}, "add": {"PENDING": 1}},
            {"identity": {"RUNNING": 1}, "add": {"PENDING": 1}},
            {"identity": {"DONE": 1}, "add": {"CANCELED": 1}},
        ]
        folded = flow.graph(fold=True)
        assert states(folded) == looks[-1]
        assert edges(folded) == {("identity", "add", 1)}


async def test_running_and_pending_are_told_apart_when_folded() -> None:
    started = threading.Event()

    with Gate() as gate:

        def hold() -> Any:
            started.set()
            return gate.hold()

        async with await WorkflowEngine.create() as flow:
            held = flow.function_task(hold)()
            after = [flow.function_task(identity)(held) for _ in range(3)]
            await reached(started)
            assert states(flow.graph(fold=True)) == {
                "hold": {"RUNNING": 1},
                "identity": {"PENDING": 3},
            }
            gate.set()
            await asyncio.gather(*after)
            assert states(flow.graph(fold=True))["identity"] == {"DONE": 3}


async def test_a_dry_run_has_the_same_graph_when_nothing_runs() -> None:
    async with await WorkflowEngine.create(dry_run=True) as flow:
        load, total = flow.function_task(identity), flow.function_task(add)
        await total(load(1), load(2))
        graph = flow.graph()
    assert [(node.name, dict(node.states)) for node in graph.nodes] == [
        ("identity", {"DONE": 1}),
        ("identity", {"DONE": 1}),
        ("add", {"DONE": 1}),
    ]
    assert edges(graph) == {("identity", "add", 1)}
    assert len(graph.edges) == 2


async def many(flow: WorkflowEngine, count: int) -> None:
    """Call two blocks, each of which calls the same function."""
    load = flow.function_task(identity)

    @flow.block
    async def left() -> None:
        await asyncio.gather(*[load(load(n)) for n in range(count)])

    @flow.block
    async def right() -> None:
        await asyncio.gather(*[load(n) for n in range(count)])

    await asyncio.gather(left(), right())


async def test_like_calls_are_one_node_in_each_block_when_there_are_many() -> None:
    async with await WorkflowEngine.create() as flow:
        await many(flow, HISTORY_SIZE)
        graph = flow.graph()
    assert graph.is_folded
    names = {node.id: node.name for node in graph.nodes}
    found = {
        (node.name, names.get(node.block or "")): (dict(node.states), node.uid)
        for node in graph.nodes
    }
    assert found == {
        ("left", None): ({"DONE": 1}, None),
        ("right", None): ({"DONE": 1}, None),
        ("identity", "left"): ({"DONE": 2 * HISTORY_SIZE}, None),
        ("identity", "right"): ({"DONE": HISTORY_SIZE}, None),
    }
    (edge,) = graph.edges
    assert (edge.source, edge.count) == (edge.target, HISTORY_SIZE)
    assert all(node.seconds for node in graph.nodes)
    text = graph.to_mermaid()
    assert "identity × 2,000<br/>2,000 done" in text  # noqa: RUF001
    assert f'{edge.source} -->|"1,000"| {edge.target}' in text


async def test_no_more_than_counts_is_kept_when_a_run_is_long() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(identity)
        kept = weakref.ref(await_me := task(object()))
        await await_me
        del await_me
        for _ in range(3):
            await asyncio.gather(*[task(n) for n in range(HISTORY_SIZE)])
        gc.collect()
        assert kept() is None
        assert (
            len(flow._scheduler.state.history.ties)
            == len(flow._scheduler.state.history)
            == HISTORY_SIZE
        )
        assert len(list(flow._scheduler.counts)) == 1
        assert [node.count for node in flow.graph().nodes] == [3 * HISTORY_SIZE + 1]


async def test_counts_stay_few_when_every_call_has_a_function_of_its_own() -> None:
    def named(name: str) -> Any:
        def function() -> None: ...

        function.__name__ = name
        return function

    async with await WorkflowEngine.create(dry_run=True) as flow:
        calls = [flow.function_task(named(f"f{n}"))() for n in range(MAX_TALLIES + 50)]
        await asyncio.gather(*calls)
        nodes = flow.graph().nodes
    assert len(nodes) <= MAX_TALLIES + 1
    assert sum(node.count for node in nodes) == len(calls)
    assert {node.name: node.count for node in nodes}["(others)"] == 50


async def test_a_block_is_one_node_when_it_calls_itself() -> None:
    async with await WorkflowEngine.create() as flow:
        leaf = flow.function_task(identity)

        @flow.block
        async def dive(depth: int) -> Any:
            return await (dive(depth - 1) if depth else leaf(0))

        await dive(20)
        folded, each = flow.graph(fold=True), flow.graph(fold=False)
    assert blocks(folded) == {"dive": None, "identity": "dive"}
    assert states(folded)["dive"] == {"DONE": 21}
    assert len(each.nodes) == 22
    assert each.to_mermaid().count("subgraph") == 21


async def test_it_says_so_when_each_call_is_asked_for_and_there_were_too_many() -> None:
    async with await WorkflowEngine.create(dry_run=True) as flow:
        task = flow.function_task(identity)
        await asyncio.gather(*[task(n) for n in range(HISTORY_SIZE)])
        assert len(flow.graph(fold=False).nodes) == HISTORY_SIZE
        await task(0)
        with pytest.raises(ValueError, match=r"more than 1,000 calls.*leave fold=False away"):
            flow.graph(fold=False)
        with pytest.raises(TypeError, match="fold must be True, False or None, not str 'yes'"):
            flow.graph(fold="yes")  # type: ignore[arg-type]


async def test_a_duration_counts_from_the_launch_when_a_task_has_waited_before() -> None:
    with Gate() as gate:
        async with await WorkflowEngine.create(RuntimeExecutionBackend()) as flow:
            held = flow.function_task(gate.hold)()
            after = flow.function_task(identity)(held)
            clock = asyncio.get_running_loop().time
            await launched()
            start = clock()
            await asyncio.sleep(0.05)
            gate.set()
            await after
            whole = clock() - start
        first, second = flow.graph().nodes
    assert first.seconds is not None
    assert second.seconds is not None
    assert first.seconds >= 0.05
    assert second.seconds <= whole - 0.05


async def test_other_futures_are_left_out_when_tasks_wait_for_them() -> None:
    async with await WorkflowEngine.create() as flow, await WorkflowEngine.create() as other:
        foreign: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        stranger = other.function_task(identity)(1)
        await stranger
        task = flow.function_task(add)(foreign, stranger)
        foreign.set_result(1)
        await task
        for fold in (True, False):
            graph = flow.graph(fold)
            assert (states(graph), graph.edges) == ({"add": {"DONE": 1}}, ())


# --- how it looks ---------------------------------------------------------------------------------


def node(number: int, name: str, block: str | None = None) -> Node:
    return Node(f"n{number}", "function", name, f"task.{number:06d}", {"DONE": 1}, 0.25, block)


AWKWARD = ["<lambda>", 'say "hi"', "back\\slash", "a &amp; b # c;", "ünï", "]) --> n2", "`%%{x}`"]
HIDDEN = "line\nbreak \x00 \ud800 \u202e"
"""What cannot be drawn, or not be written to a file."""


@needs_dot
def test_graphviz_draws_it_when_names_are_awkward(tmp_path: Path) -> None:
    nodes = tuple(node(n, name) for n, name in enumerate([*AWKWARD, HIDDEN]))
    graph = WorkflowGraph('the "engine"', nodes, (Edge("n0", "n1", 3),), is_folded=False)
    root = ElementTree.fromstring(graph.to_svg())
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert texts == {*AWKWARD, r"line\nbreak \x00 \ud800 \u202e", "250 ms", "3"}
    assert graph.save(tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    page = graph.save(tmp_path / "g.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert "<td>&lt;lambda&gt; (task.000000)</td>" in page
    assert (graph._repr_svg_() or "").startswith("<?xml")
    assert "<svg" in graph._repr_html_()


def test_quotes_and_signs_are_escaped_when_mermaid_would_read_them() -> None:
    nodes = tuple(node(n, name) for n, name in enumerate([*AWKWARD, HIDDEN]))
    lines = WorkflowGraph("g", nodes, (), is_folded=False).to_mermaid().splitlines()
    assert lines[1:9] == [
        '  n0("&lt;lambda&gt;<br/>250 ms")',
        '  n1("say #quot;hi#quot;<br/>250 ms")',
        '  n2("back\\slash<br/>250 ms")',
        '  n3("a &amp;amp; b #35; c;<br/>250 ms")',
        '  n4("ünï<br/>250 ms")',
        '  n5("]) --&gt; n2<br/>250 ms")',
        '  n6("#96;#37;#37;{x}#96;<br/>250 ms")',
        r'  n7("line\nbreak \x00 \ud800 \u202e<br/>250 ms")',
    ]


@needs_dot
async def test_graphviz_draws_blocks_as_clusters_when_a_real_run_is_saved(tmp_path: Path) -> None:
    graph = await small_run()
    path = graph.save(str(tmp_path / "run.svg"))
    groups = ElementTree.parse(path).getroot().iter("{http://www.w3.org/2000/svg}g")
    classes = [group.get("class") for group in groups]
    counts = {kind: classes.count(kind) for kind in ("node", "edge", "cluster")}
    assert counts == {"node": 5, "edge": 2, "cluster": 1}


def test_text_is_made_when_blocks_are_nested_deeply() -> None:
    nodes = [node(0, "b")] + [node(n, "b", f"n{n - 1}") for n in range(1, 5_000)]
    graph = WorkflowGraph("g", tuple(nodes), (), is_folded=False)
    assert graph.to_mermaid().count("subgraph") == graph.to_dot().count("subgraph") == 4_999


async def test_it_names_what_to_install_when_dot_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    graph = await small_run_dry()
    with pytest.raises(RuntimeError, match=r"'dot' of Graphviz.*apt install graphviz.*\.mmd"):
        graph.save(tmp_path / "g.svg")
    assert not (tmp_path / "g.svg").exists()
    assert graph._repr_svg_() is None
    assert "<table>" in graph._repr_html_()
    assert "apt install graphviz" in graph._repr_html_()
    assert graph.save(tmp_path / "g.dot").read_text() == graph.to_dot()
    assert graph.save(tmp_path / "G.MMD").read_text() == graph.to_mermaid()


async def test_it_names_the_extra_when_the_package_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "graphviz", None)
    graph = await small_run_dry()
    with pytest.raises(ImportError, match=r"pip install 'dftracer-asyncflow\[viz\]'"):
        graph.save(tmp_path / "g.png")
    assert "dftracer-asyncflow[viz]" in graph._repr_html_()


async def test_it_lists_the_kinds_of_files_when_a_name_ends_in_another(tmp_path: Path) -> None:
    graph = await small_run_dry()
    with pytest.raises(ValueError, match=r"saved as \.mmd, \.dot, \.svg, \.png, \.html, not as"):
        graph.save(tmp_path / "g.pdf")
    assert list(tmp_path.iterdir()) == []


async def small_run_dry() -> WorkflowGraph:
    async with await WorkflowEngine.create(dry_run=True) as flow:
        await flow.function_task(identity)(1)
    return flow.graph()


@pytest.mark.parametrize("number", range(len(examples("graph.md"))))
def test_an_example_runs_when_it_is_taken_from_the_page(number: int, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(examples("graph.md")[number], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    expected = ["flowchart LR", "square 10000 {'DONE': 10000}"][number]
    assert done.stdout.startswith(expected)
