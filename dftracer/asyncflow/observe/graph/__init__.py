"""The graph of all calls, and the formats that it can be shown in."""

from dftracer.asyncflow.observe.graph.model import Edge, Node, WorkflowGraph

__all__ = ["Edge", "Node", "WorkflowGraph"]
