"""What a mutation is: one change of a module's syntax tree, at a place that computes something."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SWAPS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt,), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt,),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,), ast.Pow: (ast.Mult,), ast.And: (ast.Or,), ast.Or: (ast.And,), ast.BitOr: (ast.BitAnd,), ast.BitAnd: (ast.BitOr,),
}  # fmt: skip
LOGGERS = ("log", "logger", "advance")  # the last one moves a progress bar
CACHES = ("lru_cache", "cache", "cached_property")  # the size of a cache changes no result
UNSEEN = (
    "frozen",
    "strict",
    "device",
    "kw_only",
    "cancel_futures",
)  # keywords that change no result of right code on a CPU
Change = Callable[[ast.AST], None]


@dataclass(frozen=True)
class Mutation:
    """The ``number``-th mutation of a file."""

    path: Path
    number: int
    line: int
    what: str


def mutations_of(path: Path, text: str) -> list[Mutation]:
    """All mutations of a file, in the order of its tree."""
    return [Mutation(path, i, node.lineno, what) for i, (node, what, _) in enumerate(_places(ast.parse(text)))]


def mutated(mutation: Mutation) -> ast.Module:
    """The file's tree with the mutation."""
    tree = ast.parse(mutation.path.read_text())
    for number, (node, _, change) in enumerate(_places(tree)):
        if number == mutation.number:
            change(node)
            return ast.fix_missing_locations(tree)
    raise ValueError(f"{mutation.path} has no mutation {mutation.number}")


def _places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, Change]]:
    for node in list(_computing(tree)):
        yield from ((node, what, change) for what, change in _changes(node))


def _computing(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but docstrings, annotations, imports, messages, logging, caches, devices and what a GPU alone runs."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns") or (name == "args" and _is_raised(node)):
            continue
        if name == "body" and _needs_gpu(node):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.keyword) and child.arg in UNSEEN:
                continue
            if isinstance(child, ast.AST) and not _left_out(child):
                yield child
                yield from _computing(child)


def _needs_gpu(node: ast.AST) -> bool:
    """``if device.type == "cuda"``, whose body does not run here."""
    tests = ast.walk(node.test) if isinstance(node, ast.If | ast.IfExp) else ()
    return any(isinstance(part, ast.Constant) and part.value == "cuda" for part in tests)


def _is_raised(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith(("Error", "Failures"))
    )


def _left_out(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.Call | ast.Name) and _called(node) in CACHES:
        return True
    if isinstance(node, ast.Attribute) and node.attr == "device":
        return True  # here every tensor is on the CPU
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or _called(node.value).split(".")[0] in LOGGERS
    return False


def _is_path(node: ast.BinOp) -> bool:
    """``folder / "name"``, which any other operator turns into a TypeError."""
    texts = [
        n for n in (node.left, node.right) if isinstance(n, ast.JoinedStr) or isinstance(getattr(n, "value", None), str)
    ]
    return isinstance(node.op, ast.Div) and bool(texts)


def _called(node: ast.AST) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """What can be done to one node."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield from ((_swap(op, other), _operator("ops", i, other)) for other in SWAPS.get(type(op), ()))
    elif isinstance(node, ast.BinOp) and _is_path(node):
        return
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        yield from ((_swap(node.op, other), _operator("op", None, other)) for other in SWAPS.get(type(node.op), ()))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield f"without {type(node.op).__name__}", _without_operator
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.IfExp):
        yield "branches swapped", _branches
    elif isinstance(node, ast.If | ast.While):
        yield "condition negated", lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    elif isinstance(node, ast.Call):
        for i, keyword in enumerate(node.keywords):
            if keyword.arg is not None and keyword.arg not in UNSEEN:
                yield f"without {keyword.arg}=", lambda n, i=i: n.keywords.pop(i)
    yield from _statements(node)


def _statements(node: ast.AST) -> Iterator[tuple[str, Change]]:
    if (
        (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        or isinstance(node, ast.AugAssign)
        or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript))
    ):
        yield "statement removed", _remove
    elif isinstance(node, ast.Break | ast.Continue):
        other = ast.Continue if isinstance(node, ast.Break) else ast.Break
        yield f"{type(node).__name__} to {other.__name__}", lambda n: setattr(n, "__class__", other)


def _constants(node: ast.Constant) -> Iterator[tuple[str, Change]]:
    value = node.value
    if isinstance(value, bool):
        yield f"{value} to {not value}", lambda n: setattr(n, "value", not value)
    elif isinstance(value, int):
        yield f"{value} to {value + 1}", lambda n: setattr(n, "value", value + 1)
    elif isinstance(value, float):
        yield f"{value:g} to {value * 1.5 + 0.01:g}", lambda n: setattr(n, "value", value * 1.5 + 0.01)


def _swap(op: ast.AST, other: type) -> str:
    return f"{type(op).__name__} to {other.__name__}"


def _operator(field: str, index: int | None, other: type) -> Change:
    def change(node: ast.AST) -> None:
        if index is None:
            setattr(node, field, other())
        else:
            getattr(node, field)[index] = other()

    return change


def _without_operator(node: ast.UnaryOp) -> None:
    """``-x`` becomes ``+x``, ``not x`` becomes ``not not x``."""
    if isinstance(node.op, ast.USub):
        node.op = ast.UAdd()
    else:
        node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _branches(node: ast.IfExp) -> None:
    node.body, node.orelse = node.orelse, node.body


def _remove(node: ast.stmt) -> None:
    """The statement becomes ``pass``."""
    before = copy.copy(node)
    node.__class__ = ast.Pass
    node.__dict__.clear()
    ast.copy_location(node, before)
