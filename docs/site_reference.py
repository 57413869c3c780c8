"""Makes the reference complete: what Sphinx cannot find in the modules at run time.

Docstrings and signatures of native classes are in the stub ``_native.pyi``. Names in annotations
are those of the modules where the classes are written, and not those that users import.
"""

import ast
import builtins
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from sphinx.util.nodes import make_refnode

import dftracer.utils

STUB = Path(dftracer.utils.__file__).with_name("_native.pyi")
NATIVE = "dftracer.utils._native"
OTHERS = {"T", "P", "R", "_T", "_R", "_T_co", "C_co", "distributed", "rhapsody"}
OTHERS |= {"Client", "Cluster", "Context", "Executor", "Future", "Path", "PathLike"}
OTHERS |= {"ProcessPoolExecutor", "Self", "Worker"}
OTHERS |= {"Place", "TaskRecord", "Trace"}
OTHERS |= sys.stdlib_module_names
"""What is not described here: type variables, modules and classes of others, and parts of ours."""
MADE_HERE = {"Component", "Task", "Block", "WorkflowGraph", "Node", "Edge", "RuntimeExecutor"}
MADE_HERE |= {"FunctionDecorator", "ExecutableDecorator", "BlockDecorator", "Call", "Cancellation"}
"""Classes of which nobody makes an object by hand."""

_attributes: dict[str, list[str]] = {}


@cache
def stub() -> dict[str, Any]:
    """Return the definitions in the stub by their names; of overloads the one with a docstring."""
    found: dict[str, Any] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                name = prefix + node.name
                if name not in found or ast.get_docstring(node):
                    found[name] = node
                if isinstance(node, ast.ClassDef):
                    visit(node.body, name + ".")

    visit(ast.parse(STUB.read_text(encoding="utf-8")).body, "")
    return found


def definition_of(name: str, obj: Any) -> Any:
    """Return the definition in the stub of a native object; ``None`` for all others."""
    last = name.rpartition(".")[2]
    owner = getattr(obj, "__objclass__", None)
    if owner is not None:
        return stub().get(f"{owner.__name__}.{last}") if owner.__module__ == NATIVE else None
    return stub().get(last) if getattr(obj, "__module__", None) == NATIVE else None


def take_docstring(
    _app: Any, what: str, name: str, obj: Any, _options: Any, lines: list[str]
) -> None:
    """Take a docstring from the stub, and make links of the pages that any docstring names."""
    node = definition_of(name, obj)
    if node is not None:
        lines[:] = [*(ast.get_docstring(node) or "").splitlines(), ""]
        if what in ("attribute", "property") and node.returns:
            lines += [f":type: {ast.unparse(node.returns)}", ""]
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"``(docs/[\w-]+)\.md``", r":doc:`/\1`", line)
    if what in ("attribute", "property"):
        _attributes[name] = list(lines)


def keep_docstring(_app: Any, _what: str, name: str, *others: Any) -> None:
    """Undo what napoleon does to an attribute: what precedes a colon is a type for it."""
    if name in _attributes:
        others[-1][:] = _attributes[name]


def take_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str | None] | None:
    """Take a signature from the stub."""
    if what == "class" and obj.__name__ in MADE_HERE:
        return "", None
    node = definition_of(name, obj)
    if isinstance(node, ast.ClassDef):
        node = next((each for each in node.body if getattr(each, "name", "") == "__new__"), None)
    if not isinstance(node, ast.FunctionDef) or what in ("property", "attribute"):
        return None
    arguments = re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))
    result = ast.unparse(node.returns) if node.returns and what != "class" else None
    return f"({arguments})", result


def resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Lead from a name as the code has it to the name that users import; leave others' alone."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    last = target.rpartition(".")[2]
    if {target.split(".")[0], last} & OTHERS or last[0] == "_" or hasattr(builtins, target):
        return contnode
    objects = env.get_domain("py").objects
    ours = [name for name in objects if f".{name}".endswith(f".{target}")]
    ours = ours or [name for name in objects if name.rpartition(".")[2] == last]
    if len(ours) != 1:
        return None
    found = objects[ours[0]]
    return make_refnode(
        app.builder, node["refdoc"], found.docname, found.node_id, contnode, ours[0]
    )


def setup(app: Any) -> dict[str, Any]:
    """Register this with Sphinx."""
    app.connect("autodoc-process-docstring", take_docstring, priority=100)
    app.connect("autodoc-process-docstring", keep_docstring, priority=900)
    app.connect("autodoc-process-signature", take_signature)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
