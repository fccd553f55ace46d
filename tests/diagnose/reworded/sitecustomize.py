"""dslm with every sentence of its own reworded: on PYTHONPATH, in every process that imports it.

All texts of two words and more in its modules are changed but what is a pattern or a sentence of
somebody else: arguments of `re`, Python's and PyTorch's words in `_FOREIGN`.
"""

from __future__ import annotations

import ast
import importlib.machinery
import re
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

_FOREIGN = {"_LINKS", "_ALLOCATOR", "_SIZE"}
count = 0


def reword(text: str) -> str:
    """Return a text with every word of it turned round."""
    return re.sub(r"[A-Za-z]{2,}", lambda word: word[0][::-1], text)


class _Reworder(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        global count
        if isinstance(node.value, str) and len(node.value.split()) > 1:
            count += 1
            return ast.copy_location(ast.Constant(reword(node.value)), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        of = node.func
        if isinstance(of, ast.Attribute) and getattr(of.value, "id", "") in ("re", "_HEADER"):
            return node
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        return node if names & _FOREIGN else self.generic_visit(node)


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        tree = ast.parse(self.get_data(self.path), self.path)
        tree = ast.fix_missing_locations(_Reworder().visit(tree))
        return compile(tree, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if module.__name__ == "dslm.diagnose.catalogue":
            _reword_catalogue(module)


def _reword_catalogue(module: Any) -> None:
    from dataclasses import replace

    known = module.catalogue()
    reworded = tuple(replace(f, cause=reword(f.cause), remedy=reword(f.remedy)) for f in known)
    module.catalogue = lambda: reworded


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("dslm."):
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder)
