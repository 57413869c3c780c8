"""The graph of all calls, and the formats that it can be shown in."""

from dftracer.asyncflow.observe.graph.model import WorkflowGraph
from dftracer.asyncflow.observe.graph.parts import Edge, Node

__all__ = ["Edge", "Node", "WorkflowGraph"]
