"""The house tests itself: rooms, imports, sizes, names. Run from a checkout."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "weightshare"

# Who may import whom; everything may import _core and errors.
MAY_IMPORT = {
    "_core": set(),
    "sharing": set(),
    "datasets": set(),
    "checkpoint": {"compression"},
    "training": {"sharing", "datasets"},
    "language": {"checkpoint", "compression"},
    "merging": {"sharing", "checkpoint"},
    "recipes": {"merging", "checkpoint", "language"},
    "cli": {"sharing", "datasets", "checkpoint", "training", "merging", "recipes", "_root"},
}
TOP_LEVEL = {
    "README.md",
    "LICENSE",
    "pyproject.toml",
    "CMakeLists.txt",
    "cpp",
    "python",
    "tests",
    "notebooks",
}
FOREIGN_ONLY_INSIDE = {"sklearn", "dask", "matplotlib", "torch", "huggingface_hub"}
FOREIGN_ONLY_INSIDE |= {"tokenizers", "sentencepiece"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "common", "misc", "base"}
CORE_FOUNDATIONS = {"buffer", "element", "error", "parallel", "random"}
MOST_LINES_OF_CODE = 400
MOST_LINES_OF_FUNCTION = 60

PYTHON = sorted(PACKAGE.rglob("*.py"))
OWN_PYTHON = [*PYTHON, *sorted((ROOT / "tests").rglob("*.py"))]
CPP = sorted(
    p for f in ("cpp", "tests/cpp") for e in ("*.cpp", "*.hpp") for p in (ROOT / f).rglob(e)
)


def name_of(path):
    return str(path.relative_to(ROOT))


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else parts[0].removesuffix(".py")


def lines_of_python(text):
    """Line numbers that hold code: no blank line, comment or docstring."""
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent and token.type != tokenize.ENDMARKER:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines - docstrings


def lines_of_cpp(text):
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    kept = [
        line for line in text.splitlines() if line.strip() and not line.strip().startswith("//")
    ]
    return len(kept)


def imported_rooms(tree):
    """(room, whether at module level) for every import of ours; _root is the package itself."""
    at_module_level = {id(n) for n in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            yield name.split("."), id(node) in at_module_level


def test_the_top_level_holds_what_the_design_lists_and_nothing_else():
    ignored = {"build", "dist"}
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - ignored
    assert found == TOP_LEVEL


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_rooms_import_only_what_they_may(path):
    room = room_of(path)
    if room in ("__init__", "errors"):
        return
    allowed = MAY_IMPORT[room] | {room, "_core", "errors"}
    for parts, _ in imported_rooms(ast.parse(path.read_text())):
        if parts[0] == "weightshare":
            if parts[1:] == ["__version__"]:
                continue
            target = parts[1] if len(parts) > 1 and parts[1] in (*MAY_IMPORT, "errors") else "_root"
            assert target in allowed, f"{name_of(path)} imports {'.'.join(parts)}"


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_heavy_packages_are_imported_inside_functions(path):
    for parts, at_module_level in imported_rooms(ast.parse(path.read_text())):
        assert not (at_module_level and parts[0] in FOREIGN_ONLY_INSIDE), parts


@pytest.mark.parametrize("path", OWN_PYTHON, ids=name_of)
def test_python_files_and_functions_keep_their_size(path):
    text = path.read_text()
    code = lines_of_python(text)
    assert len(code) <= MOST_LINES_OF_CODE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = len(code & set(range(node.lineno, node.end_lineno + 1)))
            assert size <= MOST_LINES_OF_FUNCTION, f"{node.name} has {size} lines"


@pytest.mark.parametrize("path", CPP, ids=name_of)
def test_cpp_files_keep_their_size(path):
    """Functions are measured by clang-tidy's readability-function-size."""
    assert lines_of_cpp(path.read_text()) <= MOST_LINES_OF_CODE


@pytest.mark.parametrize("path", [*OWN_PYTHON, *CPP], ids=name_of)
def test_no_room_without_a_purpose(path):
    assert path.stem not in FORBIDDEN_NAMES


def test_every_room_of_the_core_has_the_same_word_in_all_places():
    headers = {p.stem for p in (ROOT / "cpp/include/weightshare").glob("*.hpp")}
    rooms = headers - CORE_FOUNDATIONS
    for room in rooms:
        assert (ROOT / f"cpp/src/{room}.cpp").exists()
        assert (ROOT / f"cpp/bindings/bind_{room}.cpp").exists()
        assert (ROOT / f"tests/cpp/test_{room}.cpp").exists()
        assert (PACKAGE / f"_core/{room}.pyi").exists()
    bound = {p.stem.removeprefix("bind_") for p in (ROOT / "cpp/bindings").glob("bind_*.cpp")}
    assert bound - {"error", "parallel"} == rooms


def test_headers_of_the_core_know_neither_python_nor_openmp():
    for path in (ROOT / "cpp").rglob("*.[hc]pp"):
        text = path.read_text()
        in_bindings = "bindings" in path.parts
        assert in_bindings or not re.search(r"#include\s*[<\"](pybind11|Python\.h)", text), path
        assert path.name == "parallel.cpp" or "#pragma omp" not in text, path
        if path.suffix == ".hpp" and not in_bindings:
            assert "omp.h" not in text, path
            assert "Eigen" not in text, path


def test_nothing_promises_to_be_done_later():
    for path in [*OWN_PYTHON, *CPP]:
        if path != Path(__file__).resolve():
            assert not re.search(r"\b(TODO|FIXME|XXX)\b|NotImplementedError", path.read_text()), (
                path
            )


def test_every_public_name_is_documented_with_an_example():
    import weightshare as ws

    for name in ws.__all__:
        value = getattr(ws, name)
        if name.startswith("__") or not callable(value) or isinstance(value, type(ws)):
            continue
        assert value.__doc__, name
        is_error = isinstance(value, type) and issubclass(value, Exception)
        if not is_error and name not in ("Checkpoint", "MergePlan", "MergeReport", "SharedFit"):
            assert ">>>" in value.__doc__, f"{name} has no example"


def test_every_error_is_also_a_built_in_error():
    from weightshare import errors

    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.WeightshareError):
            builtin = (ValueError, TypeError, OSError)
            assert value is errors.WeightshareError or issubclass(value, builtin), value
