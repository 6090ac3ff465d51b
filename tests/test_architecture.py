"""The shape of the package: layers, sizes, no cycles, and habits that a reader can count on."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "registry"
FILES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

# Imports point to the left only. Files of one group do not import each other unless their order here allows it.
LAYERS = (
    ("errors",),
    ("store_errors",),
    ("version",),
    ("validation",),
    ("references", "curves", "differences", "origins", "verdicts"),
    ("page_content", "svg", "charts", "size_chart", "page"),
    ("schema",),
    ("families", "projection", "bottlenecks", "tasks", "recipes", "variants"),
    ("weights", "adapters", "grouping"),
    ("files", "provenance", "reach", "stopwatch", "interruption", "memory"),
    ("tables", "hub", "metrics", "manifests"),
    ("rows", "overlap", "resampling", "batching", "view", "catalog"),
    ("data", "statistics", "attention", "mixing", "archive", "inspection", "listing"),
    ("encoder", "sources"),
    ("backbone", "evaluation", "checkpoints"),
    ("store", "records", "huggingface", "pool"),
    ("registry", "prefix", "runs", "comparable", "answers", "training_pairs", "measured", "frames", "evidence"),
    ("training",),
    ("documents", "findings", "remarks", "page_tables", "page_figures", "page_rows", "page_texts", "page_report"),
    ("plots", "fitting", "predictor", "progress", "trackers", "tracking", "comparing", "pairing", "scoring"),
    ("reports", "checking", "repeating", "runner"),
    ("cli_settings", "cli_options"),
    ("demo",),
    ("cli_bench", "cli_contrast", "cli_compare", "cli_list", "cli_predict", "cli_store", "cli_train"),
    ("cli",),
)  # fmt: skip
TORCH_FREE = {
    "answers", "archive", "catalog", "charts", "checking", "cli", "cli_bench", "cli_compare", "cli_contrast",
    "cli_list", "cli_options", "cli_predict", "cli_settings", "cli_store", "cli_train", "comparable",
    "comparing", "curves", "data", "differences", "documents", "errors", "evidence", "families", "files",
    "findings", "frames", "hub", "inspection", "interruption", "listing", "manifests", "measured", "memory",
    "metrics", "origins", "overlap", "page", "page_content", "page_figures", "page_report", "page_rows",
    "page_tables", "page_texts", "pairing", "plots", "provenance", "reach", "recipes", "records", "references",
    "remarks", "reports", "resampling", "rows", "schema", "size_chart", "statistics", "store_errors", "svg",
    "tables", "tasks", "trackers", "tracking", "training_pairs", "validation", "variants", "verdicts",
    "version", "view",
}  # fmt: skip
LATE_IMPORTS = {"cli_bench", "cli_compare", "cli_predict", "cli_settings", "cli_store", "cli_train"}


def layer_of(name: str) -> int:
    return next(index for index, group in enumerate(LAYERS) if name in group)


def own_imports(tree: ast.AST) -> Iterator[tuple[str, ast.ImportFrom]]:
    """Yield the package's modules that a tree imports, those for type checking alone left out."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing_only and node.module:
            if node.module == "registry":
                yield from ((alias.name, node) for alias in node.names)
            elif node.module.startswith("registry."):
                yield node.module.split(".")[1], node


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_every_file_has_a_layer() -> None:
    """A new file says in which layer it is."""
    assert sorted(name for group in LAYERS for name in group) == sorted(set(FILES) - {"__init__"})


@pytest.mark.parametrize("name", sorted(set(FILES) - {"__init__"}))
def test_imports_point_down(name: str) -> None:
    """A file imports only from layers below its own, or from earlier in its own layer: so there is no cycle."""
    order = [each for group in LAYERS for each in group]
    for module, node in own_imports(TREES[name]):
        assert order.index(module) < order.index(name), f"{name}.py:{node.lineno} imports {module}"


@pytest.mark.parametrize("name", sorted(TORCH_FREE))
def test_torch_free_files_stay_so(name: str) -> None:
    """Files that start fast, and all they import at once, know no torch and no transformers."""
    seen, left = set(), [name]
    while left:
        current = left.pop()
        if current in seen:
            continue
        seen.add(current)
        for node in TREES[current].body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            heavy = {module.split(".")[0] for module in modules} & {"torch", "transformers"}
            assert not heavy, f"{name} imports {heavy} through {current}"
        top = ast.Module(
            body=[node for node in TREES[current].body if isinstance(node, ast.ImportFrom)], type_ignores=[]
        )
        left += [module for module, _ in own_imports(top)]


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_and_functions_are_short(name: str) -> None:
    """A file is under 350 lines and a function at most 60."""
    lines = FILES[name].read_text(encoding="utf-8").count("\n")
    assert lines < 350
    for function in functions(TREES[name]):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= 60, f"{name}.{function.name} has {length} lines"


def test_most_functions_are_a_page_at_most() -> None:
    """Nine functions in ten have at most 30 lines."""
    lengths = sorted((f.end_lineno or 0) - f.lineno + 1 for tree in TREES.values() for f in functions(tree))
    assert lengths[int(0.9 * len(lengths))] <= 30


@pytest.mark.parametrize("name", sorted(FILES))
def test_forbidden_habits(name: str) -> None:
    """No assert, print, broad except, unpickling, remote code, lax loading, or local import of our own."""
    source = FILES[name].read_text(encoding="utf-8")
    for text in ("trust_remote_code=True", "torch.load(", "import pickle", "import joblib", "TODO"):
        assert text not in source, f"{name}: {text}"
    for node in ast.walk(TREES[name]):
        assert not isinstance(node, ast.Assert), f"{name}:{node.lineno} asserts"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert "strict=False" not in map(ast.unparse, node.keywords), f"{name}:{node.lineno} loads laxly"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "eval", "exec"), f"{name}:{node.lineno} calls {node.func.id}"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), f"{name}:{node.lineno} catches {caught}"
    if name not in LATE_IMPORTS:
        for function in functions(TREES[name]):
            late = [node for _, node in own_imports(function)]
            assert not late, f"{name}.{function.name} imports from the package"


def test_no_shapeless_file_names() -> None:
    """No file is a drawer for everything."""
    assert not {"utils", "helpers", "common", "misc"} & set(FILES)


@pytest.mark.parametrize("name", sorted(FILES))
def test_public_functions_are_annotated_and_documented(name: str) -> None:
    """Every public function has a docstring, and every function says what it returns."""
    for function in functions(TREES[name]):
        assert function.returns is not None, f"{name}.{function.name} does not say what it returns"
    for node in TREES[name].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"
    assert ast.get_docstring(TREES[name]), f"{name} does not say what it is responsible for"
