"""The canonical form of a module: its syntax tree without the parts that cannot change a result.

It omits docstrings, comments, formatting, import statements, ``__all__``, annotations outside class bodies, messages of
exceptions, and logging calls. It also omits the names of our modules: an imported name is replaced by the name of its definition.
The form is the same in every Python version.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

IsModule = Callable[[str], bool]  # whether a dotted name is one of our modules
SKIPPED = {"ctx", "kind", "type_comment", "type_params", "type_ignores"}
LOGGERS = ("log", "logger")


def canonical(text: str, is_module: IsModule) -> str:
    """The canonical form of a module's text; empty where it computes nothing, such as one that re-exports names."""
    tree = ast.parse(text)
    imported = dict(_imported(tree))
    tree = _Reduced(imported, is_module).visit(tree)
    return "\n".join(_dumped(statement) for statement in tree.body)


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names that imports bind, anywhere in the module, and what each stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (root, root)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


class _Reduced(ast.NodeTransformer):
    """Removes what can't change a result."""

    def __init__(self, imported: dict[str, str], is_module: IsModule) -> None:
        self.imported, self.is_module = imported, is_module

    def visit_Import(self, node: ast.AST) -> None:
        """Imports bind names, which are resolved where they are used."""

    visit_ImportFrom = visit_Import

    def visit_Module(self, node: ast.Module) -> ast.Module:
        """Without its docstring and ``__all__``."""
        node.body = [s for s in _without_docstring(node.body) if not _assigns(s, "__all__")]
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        """Annotations of fields stay: pydantic and dataclasses read them."""
        node.body = [_Field(s) if isinstance(s, ast.AnnAssign) else s for s in _without_docstring(node.body)]
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Without docstring and annotations."""
        node.body, node.returns = _without_docstring(node.body), None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_arg(self, node: ast.arg) -> ast.arg:
        """Without its annotation."""
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        """``x: int = 1`` is ``x = 1``; a field of a class keeps its annotation."""
        if isinstance(node, _Field):
            return self.generic_visit(node)
        if node.value is None:
            return None
        return self.generic_visit(ast.Assign(targets=[node.target], value=node.value))

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """What only type checkers read goes."""
        checked = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if checked else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Without the message."""
        if isinstance(node.exc, ast.Call):
            node.exc.args = [a for a in node.exc.args if not isinstance(a, ast.JoinedStr) and not _is_text(a)]
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Logging goes."""
        function = node.value.func if isinstance(node.value, ast.Call) else None
        owner = function.value if isinstance(function, ast.Attribute) else None
        return None if isinstance(owner, ast.Name) and owner.id in LOGGERS else self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """An imported name is what it stands for."""
        return ast.Name(self._resolved(self.imported[node.id])) if node.id in self.imported else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """An attribute of an imported module is what it stands for."""
        dotted = _dotted(node)
        root, _, rest = dotted.partition(".")
        if root in self.imported:
            return ast.Name(self._resolved(f"{self.imported[root]}.{rest}"))
        return self.generic_visit(node)

    def _resolved(self, dotted: str) -> str:
        """The dotted name without the module of ours that it begins with."""
        parts = dotted.split(".")
        for end in range(len(parts), 0, -1):
            if self.is_module(".".join(parts[:end])):
                return ".".join(parts[end:])
        return dotted


class _Field(ast.AnnAssign):
    """An annotated field of a class."""

    def __init__(self, node: ast.AnnAssign) -> None:
        super().__init__(node.target, node.annotation, node.value, node.simple)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    documented = body and isinstance(body[0], ast.Expr) and _is_text(body[0].value)
    return body[1:] if documented else body


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` of a chain of attributes; empty where it does not begin with a name."""
    if isinstance(node, ast.Name):
        return node.id
    before = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{before}.{node.attr}" if before else ""


def _dumped(node: object) -> str:
    """Like ``ast.dump``, without empty fields and what versions of Python add."""
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if name not in SKIPPED]
        inside = ",".join(f"{name}={_dumped(value)}" for name, value in fields if value is not None and value != [])
        return f"{type(node).__name__}({inside})"
    return f"[{','.join(map(_dumped, node))}]" if isinstance(node, list) else repr(node)
