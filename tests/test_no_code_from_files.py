"""Nothing that is loaded is ever run: the package has no way to unpickle, import or evaluate data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "registry"
FILES = sorted(PACKAGE.rglob("*.py"))

MODULES = {"cPickle", "cloudpickle", "code", "dill", "imp", "joblib", "marshal", "pickle", "runpy", "shelve", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
METHODS = {
    *("torch.load", "torch.save", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
    *("pd.read_pickle", "pandas.read_pickle", "pd.eval", "pandas.eval", "os.system", "os.popen"),
    *("zipfile.Path", "shutil.unpack_archive", "ctypes.CDLL.from_file"),
}
EXTRACTING = {"extract", "extractall", "read_pickle", "to_pickle", "unpack_archive"}
SWITCHES = {"trust_remote_code", "allow_pickle", "weights_only", "shell"}
MAY_IMPORT_BY_NAME = {
    "__init__.py": 1,  # the door imports its own modules from a table
    "tasks/metrics.py": 1,  # a metric of one's own, where the user names its function
    "store/store.py": 1,  # a store on object storage, one step to the right
    "store/registry.py": 1,  # Registry.train and kin, one step to the right on the street
}
IN_A_CHILD = {"interop/pickled.py": ["torch.load", "weights_only=True"]}  # only behind --allow-pickle, with hard limits


def dangers(tree: ast.AST) -> Iterator[str]:
    """Yield every way to run code from data that a syntax tree holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] in MODULES:
                yield node.module
            for alias in node.names:
                if f"{node.module}.{alias.name}" in METHODS | {"importlib.import_module"}:
                    yield f"{node.module}.{alias.name}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS | METHODS | {"importlib.import_module", "importlib.__import__"}:
                yield called
            if isinstance(node.func, ast.Attribute) and node.func.attr in EXTRACTING:
                yield called
            for keyword in node.keywords:
                allowed = keyword.arg not in SWITCHES or ast.unparse(keyword.value) == "False"
                if not allowed:
                    yield f"{keyword.arg}={ast.unparse(keyword.value)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_can_run_what_it_reads(path: Path) -> None:
    """No pickle, no evaluation, no import by a name from a file, no remote code, no extraction of archives."""
    found = list(dangers(ast.parse(path.read_text(encoding="utf-8"))))
    name = path.relative_to(PACKAGE).as_posix()
    assert ["importlib.import_module"] * MAY_IMPORT_BY_NAME.get(name, 0) + IN_A_CHILD.get(name, []) == found


@pytest.mark.parametrize("name", IN_A_CHILD)
def test_a_reader_of_pickles_is_never_imported_for_it(name: str) -> None:
    """The one file that reads a pickle does so only when it is started as a program; others take constants from it."""
    tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
    assert [] == [
        node for node in tree.body if isinstance(node, ast.ImportFrom) and str(node.module).startswith("registry")
    ]
    uses = [path for path in FILES if "pickled.convert" in path.read_text(encoding="utf-8")]
    assert [] == uses


def test_the_search_looks_everywhere() -> None:
    """Files in folders are searched as well: an empty list would pass every test above."""
    assert len(FILES) >= 80
    assert {"adapters", "store", "cli"} <= {path.parent.name for path in FILES}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import torch; torch.load(path)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "eval(text)",
        "zipfile.ZipFile(path).extractall()",
        "tar.extract(member)",
        "frame = pd.read_pickle(path)",
        "import importlib; importlib.import_module(name)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_finds_what_it_is_for(code: str) -> None:
    """Each of these lines would be found."""
    assert 1 == len(set(dangers(ast.parse(code))))
