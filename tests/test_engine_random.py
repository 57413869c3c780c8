"""Random graphs, compared with a plain model of how each of their components has to end."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from engine_support import assert_nothing_kept

from dftracer.asyncflow import Component, DependencyFailureError, WorkflowEngine

NODES = 300


class FateError(Exception):
    """What the body of a node raises if that is its fate."""


@dataclass
class Node:
    """A component to be, and what the model says of it."""

    number: int
    kind: str
    fate: str  # "succeed", "raise", "raise cancelled" or "be cancelled"
    dependencies: list["Node"]
    shape: str
    pause: bool  # whether an earlier node is awaited before this one is called
    error: FateError = field(default_factory=FateError)

    @property
    def name(self) -> str:
        return f"node_{self.number}"

    def model(self, ended: "list[End]") -> "End":
        """Say how this node ends, if those before it ended so."""
        before = [ended[node.number] for node in self.dependencies]
        failed = [end for end in before if end.state == "FAILED"]
        if self.fate == "be cancelled" or any(end.state == "CANCELED" for end in before):
            return End(self, "CANCELED")
        if failed:
            return End(self, "FAILED", failed=[e.node.name for e in failed], root=failed[0].root)
        if self.fate == "raise":
            return End(self, "FAILED", root=self.error)
        if self.fate == "raise cancelled":
            return End(self, "CANCELED")
        return End(self, "DONE", value=self.number + sum(end.value for end in before))


@dataclass
class End:
    """How a node ends."""

    node: Node
    state: str
    value: int = 0
    failed: list[str] | None = None
    root: FateError | None = None


def random_graph(seed: int) -> list[Node]:
    """Make a graph: mostly of nodes that succeed, or little but failures would be left of it."""
    chance = random.Random(seed)
    nodes: list[Node] = []
    for number in range(NODES):
        near = nodes[-chance.choice((5, 40, NODES)) :]
        count = min(len(near), chance.choice((0, 0, 1, 1, 2, 3, 6)))
        fate = chance.choices(
            ("succeed", "raise", "raise cancelled", "be cancelled"), (94, 3, 1, 2)
        )[0]
        kinds = ("async", "block") if fate == "raise cancelled" else ("plain", "async", "block")
        nodes.append(
            Node(
                number,
                chance.choice(kinds),
                fate,
                chance.sample(near, count),
                chance.choice(("separate", "list", "keywords", "twice")),
                pause=number > 0 and chance.random() < 0.03,
            )
        )
    return nodes


def call(flow: WorkflowEngine, node: Node, futures: list[Component[Any]]) -> Component[Any]:
    """Call ``node``: a body of its kind, with its dependencies in its shape."""

    def plain(*args: Any, **kwargs: Any) -> int:
        if node.fate == "raise":
            raise node.error
        if node.fate == "raise cancelled":
            raise asyncio.CancelledError
        values = args[0] if node.shape in ("list", "twice") else args
        return node.number + int(sum(values)) + int(sum(kwargs.values()))

    async def suspending(*args: Any, **kwargs: Any) -> int:
        if node.number % 2:
            await asyncio.sleep(0)
        return plain(*args, **kwargs)

    body: Any = plain if node.kind == "plain" else suspending
    body.__name__ = node.name
    component: Any = (flow.block if node.kind == "block" else flow.function_task)(body)
    given = [futures[dependency.number] for dependency in node.dependencies]
    if node.shape == "list":
        future = component(given)
    elif node.shape == "twice":
        future = component(given, tuple(given))
    elif node.shape == "keywords":
        future = component(**{f"value_{i}": value for i, value in enumerate(given)})
    else:
        future = component(*given)
    assert isinstance(future, Component)
    return future


def assert_ended_as(end: End, future: Component[Any], futures: list[Component[Any]]) -> None:
    """Compare a component with what the model says of it."""
    assert (end.node.name, future.state) == (end.node.name, end.state)
    if end.state == "DONE":
        assert (end.node.name, future.result()) == (end.node.name, end.value)
    elif end.state == "FAILED":
        error = future.exception()
        if end.failed is None:
            assert error is end.root
        else:
            assert type(error) is DependencyFailureError
            assert (end.node.name, error.failed_dependencies) == (end.node.name, end.failed)
            assert error.root_cause is end.root
            first = int(end.failed[0].removeprefix("node_"))
            assert error.__cause__ is futures[first].exception()


@pytest.mark.parametrize("seed", range(30))
async def test_every_component_ends_as_the_model_says_when_the_graph_is_random(seed: int) -> None:
    nodes = random_graph(seed)
    async with await WorkflowEngine.create() as flow:
        futures: list[Component[Any]] = []
        for node in nodes:
            if node.pause:  # so that some dependencies have ended when they are passed
                await asyncio.wait([futures[random.Random(node.number).randrange(node.number)]])
            futures.append(call(flow, node, futures))
            if node.fate == "be cancelled":
                assert futures[-1].cancel()
        await asyncio.wait(futures)
        ended: list[End] = []
        for node in nodes:
            ended.append(node.model(ended))
        for end, future in zip(ended, futures, strict=True):
            assert_ended_as(end, future, futures)
        assert_nothing_kept(flow)


def test_all_ends_occur_when_the_graphs_are_taken_together() -> None:
    ends: list[End] = []
    for seed in range(30):
        ended: list[End] = []
        for node in random_graph(seed):
            ended.append(node.model(ended))
        ends += ended
    share = {
        "DONE": sum(end.state == "DONE" for end in ends),
        "CANCELED": sum(end.state == "CANCELED" for end in ends),
        "FAILED": sum(end.state == "FAILED" and end.failed is None for end in ends),
        "failed by one": sum(end.failed is not None and len(end.failed) == 1 for end in ends),
        "failed by several": sum(end.failed is not None and len(end.failed) > 1 for end in ends),
    }
    assert min(share.values()) > len(ends) / 100, share
