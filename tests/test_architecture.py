"""The shape of the package: layers, sizes, no cycles, and habits that a reader can count on."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "registry"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
DOORS = {name for name in FILES if name.endswith("__init__.py")}

# The import rule: a file imports only files at the root, of its own room, and of rooms to the left of its own.
STREET = (
    "adapters", "model", "graphs", "store", "remote", "tasks", "stats", "training", "serving", "bulk", "web", "interop",
    "bench", "cluster", "reports", "cli",
)  # fmt: skip
TORCH_ROOMS = {"adapters", "model", "graphs", "training", "serving", "bulk", "web", "interop", "cluster"}
TORCH_FREE_THERE = {"training/recipes.py", "training/trackers.py"}
TORCH_FILES = {
    "store/tensors.py", "store/registry.py", "bench/runner.py", "bench/submission.py", "cli/progress.py",
}  # fmt: skip
MOST_MODULES = 12  # of one room
READS_PICKLES = "interop/pickled.py"  # a process of its own, after somebody asked for it
LATE_FILE = "graphs/squeeze_kernel.py"  # brings Triton, which nothing but a mixed batch on a GPU needs
LATE_ROOM = "cli"  # a command imports what it needs when it is given, so that --help starts fast


def room_of(name: str) -> int:
    """Return a file's place on the street; -1 is the hall."""
    return STREET.index(name.split("/")[0]) if "/" in name else -1


def own_imports(tree: ast.AST) -> Iterator[tuple[str, ast.ImportFrom]]:
    """Yield the package's files that a tree imports, those for type checking alone left out."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing_only and node.module:
            folder = node.module.replace(".", "/").removeprefix("registry").lstrip("/")
            if node.module.split(".")[0] == "registry":
                for alias in node.names:
                    inner = f"{folder}/{alias.name}.py".lstrip("/")
                    yield (inner if inner in FILES else f"{folder}.py"), node


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_the_street_is_whole() -> None:
    """The hall has eight files, every folder is a room of the street, and no room is a warehouse."""
    assert len(FILES) >= 80, "the guards found too few files to guard anything"
    assert 8 == sum("/" not in name for name in FILES)
    assert set(STREET) == {name.split("/")[0] for name in FILES if "/" in name}
    for room in STREET:
        modules = [name for name in FILES if name.startswith(f"{room}/") and name not in DOORS]
        assert 1 <= len(modules) <= MOST_MODULES, f"{room}: {len(modules)} modules"


@pytest.mark.parametrize("name", sorted(DOORS - {"__init__.py"}))
def test_doors_import_nothing(name: str) -> None:
    """A room's door is a docstring that names every file of the room, so no door loads torch or closes a circle."""
    assert [ast.Expr] == [type(node) for node in TREES[name].body]
    told = ast.get_docstring(TREES[name]) or ""
    room = name.split("/")[0]
    missing = [path.stem for path in FILES[name].parent.glob("*.py") if f"``{path.stem}``" not in told]
    assert ["__init__"] == missing, f"the door of {room} does not name {missing}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_left(name: str) -> None:
    """A file imports only the hall, its own room and rooms to the left; the hall knows no room."""
    if name == "__init__.py":
        return  # the door of the package imports for type checkers alone
    for imported, node in own_imports(TREES[name]):
        assert imported in FILES, f"{name}:{node.lineno} imports {imported}, which is no file"
        assert room_of(imported) <= room_of(name), f"{name}:{node.lineno} imports {imported}"


def test_no_file_imports_itself_by_a_circle() -> None:
    """Within a room, too, imports run one way: following them from any file never comes back to it."""
    edges = {name: {imported for imported, _ in own_imports(at_start(tree))} for name, tree in TREES.items()}
    left = set(edges)
    while left:
        free = {name for name in left if not edges[name] & left}
        assert free, f"a circle among {sorted(left)}"
        left -= free


def at_start(tree: ast.Module) -> ast.Module:
    """Return the imports that run when a file is imported."""
    return ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])


@pytest.mark.parametrize("name", sorted(FILES))
def test_torch_stays_where_it_belongs(name: str) -> None:
    """Files that start fast, and all they import at once, know no torch and no transformers."""
    if name in TORCH_FILES or (name.split("/")[0] in TORCH_ROOMS and name not in TORCH_FREE_THERE | DOORS):
        return
    seen, left = set(), [name]
    while left:
        current = left.pop()
        if current in seen:
            continue
        seen.add(current)
        start = at_start(TREES[current])
        modules = [alias.name for node in start.body if isinstance(node, ast.Import) for alias in node.names]
        modules += [node.module for node in start.body if isinstance(node, ast.ImportFrom) and node.module]
        heavy = {module.split(".")[0] for module in modules} & {"torch", "transformers"}
        assert not heavy, f"{name} imports {heavy} through {current}"
        left += [imported for imported, _ in own_imports(start)]


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_and_functions_are_short(name: str) -> None:
    """A file has at most 350 lines and a function at most 60."""
    lines = FILES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= 350
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
        assert text not in source or (name, text) == (READS_PICKLES, "torch.load("), f"{name}: {text}"
    for node in ast.walk(TREES[name]):
        assert not isinstance(node, ast.Assert), f"{name}:{node.lineno} asserts"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert "strict=False" not in map(ast.unparse, node.keywords), f"{name}:{node.lineno} loads laxly"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "eval", "exec"), f"{name}:{node.lineno} calls {node.func.id}"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), f"{name}:{node.lineno} catches {caught}"
    if name.split("/")[0] != LATE_ROOM:
        for function in functions(TREES[name]):
            late = [node for imported, node in own_imports(function) if imported != LATE_FILE]
            assert not late, f"{name}.{function.name} imports from the package"


def test_no_two_public_names_are_alike() -> None:
    """A public name means one thing: outside the commands, no two files define the same one."""
    homes: dict[str, list[str]] = {}
    for name, tree in TREES.items():
        if name in DOORS or name.startswith("cli/"):
            continue
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            named = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            named += [
                each.id for target in targets if target for each in ast.walk(target) if isinstance(each, ast.Name)
            ]
            for each in named:
                homes.setdefault(each, []).append(name)
    assert {} == {name: where for name, where in homes.items() if len(where) > 1 and not name.startswith("_")}


def test_no_import_gives_another_name() -> None:
    """What is imported from the package keeps the name that it has there."""
    for name, tree in TREES.items():
        for _, node in own_imports(tree):
            assert not [alias.name for alias in node.names if alias.asname], f"{name}:{node.lineno}"


def test_no_shapeless_file_names() -> None:
    """No file is a drawer for everything."""
    assert not {"utils", "helpers", "common", "misc"} & {path.stem for path in FILES.values()}


@pytest.mark.parametrize("name", sorted(FILES))
def test_public_functions_are_annotated_and_documented(name: str) -> None:
    """Every public function has a docstring, and every function says what it returns."""
    for function in functions(TREES[name]):
        assert function.returns is not None, f"{name}.{function.name} does not say what it returns"
    for node in TREES[name].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"
    assert ast.get_docstring(TREES[name]), f"{name} does not say what it is responsible for"
