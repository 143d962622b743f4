"""Holds the house: floors, sizes, names and the lazy door (DESIGN.md 3)."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "attnlens"
FILES = sorted(HOUSE.rglob("*.py"))
FLOORS = {"core": 0, "checkpoints": 1, "text": 1, "salience": 2, "training": 2, "analysis": 3, "show": 4, "cli": 5}
HEAVY = {"torch", "transformers", "matplotlib", "captum"}
# What each floor may not touch, however it is spelled.
FORBIDDEN = {
    "core": {
        "transformers",
        "peft",
        "datasets",
        "pandas",
        "xarray",
        "matplotlib",
        "seaborn",
        "typer",
        "rich",
        "pathlib",
    },
    "checkpoints": {"pandas", "xarray", "matplotlib", "seaborn", "typer", "rich", "jinja2"},
    "text": {"pandas", "xarray", "matplotlib", "seaborn", "typer", "rich", "jinja2"},
    "salience": {"pandas", "xarray", "matplotlib", "seaborn", "typer", "rich", "jinja2"},
    "training": {"xarray", "matplotlib", "seaborn", "typer", "rich", "jinja2"},
    "analysis": {"matplotlib", "seaborn", "typer", "rich", "jinja2"},
    "show": {"typer"},
    "cli": set[str](),
}
# Signatures that another library dictates: the attention interface of transformers, and the callbacks of its Trainer.
DICTATED = {"attention", "on_evaluate", "on_log", "on_train_begin", "on_train_end", "on_step_end"}


def floor_of(path: Path) -> str | None:
    parts = path.relative_to(HOUSE).parts
    return parts[0] if len(parts) > 1 else None


def trees():
    return [pytest.param(path, ast.parse(path.read_text()), id=str(path.relative_to(ROOT))) for path in FILES]


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append(node.module or "")
            found += [f"{node.module}.{name.name}" for name in node.names]
    return found


def functions(tree: ast.AST):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first, last = function.body[0], function.body[-1]
    documented = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    start = first.end_lineno + 1 if documented else first.lineno
    return last.end_lineno - start + 1


@pytest.mark.parametrize(("path", "tree"), trees())
def test_imports_go_down_only(path: Path, tree: ast.AST):
    floor = floor_of(path)
    for name in imports(tree):
        top, *rest = name.split(".")
        if top == "attnlens" and rest and floor is not None:
            if rest[0] in FLOORS:
                assert rest[0] == floor or FLOORS[rest[0]] < FLOORS[floor], f"{path}: {name} is not below {floor}"
        elif floor is not None:
            assert top not in FORBIDDEN[floor], f"{path}: {top} does not belong on floor {floor}"
        if top == "captum":
            assert path.name == "attribution.py"


@pytest.mark.parametrize(("path", "tree"), trees())
def test_sizes(path: Path, tree: ast.AST):
    assert len(path.read_text().splitlines()) <= 400, f"{path} is too long"
    for function in functions(tree):
        where = f"{path}:{function.lineno} {function.name}"
        assert body_lines(function) <= 60, f"{where}: body of {body_lines(function)} lines"
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        names = [argument.arg for argument in arguments if argument.arg not in {"self", "cls"}]
        if floor_of(path) != "cli" and function.name not in DICTATED and path.name != "kernels.py":
            assert len(names) <= 6, f"{where}: {len(names)} parameters"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            assert len(methods) <= 12, f"{path}: class {node.name} has {len(methods)} methods"


@pytest.mark.parametrize(("path", "tree"), trees())
def test_no_mutable_default_and_no_print(path: Path, tree: ast.AST):
    for function in functions(tree):
        for default in [*function.args.defaults, *function.args.kw_defaults]:
            assert not isinstance(default, ast.List | ast.Dict | ast.Set), f"{path}: {function.name}"
    if floor_of(path) != "cli":
        calls = [
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        assert "print" not in calls, f"{path} prints"


@pytest.mark.parametrize(("path", "tree"), trees())
def test_public_names_are_documented(path: Path, tree: ast.Module):
    if path.read_text().strip():
        assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def test_the_door_is_small_lazy_and_complete():
    import attnlens

    assert len(attnlens.__all__) <= 30
    assert not set(attnlens.__all__) & set(FLOORS), "a public name hides a subpackage"
    for name in attnlens.__all__:
        value = getattr(attnlens, name)
        assert value.__doc__, f"attnlens.{name} has no docstring"
    assert set(attnlens.__all__) <= set(dir(attnlens))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = attnlens.nonsense


def test_import_is_light():
    code = f"import attnlens, sys; print(sorted(set(sys.modules) & {HEAVY!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_help_is_light():
    code = (
        "import sys\nfrom attnlens.cli import app\nfrom typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_readme_lists_the_commands_of_help():
    from typer.main import get_command

    from attnlens.cli import app

    commands = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    readme = set(re.findall(r"^\| `attnlens (\w+)", (ROOT / "README.md").read_text(), flags=re.M))
    assert readme == set(commands)
    for name, command in commands.items():
        assert "Example" in (command.help or ""), f"attnlens {name} --help has no example"


def test_nothing_is_skipped_silently_in_ci():
    """Under ATTNLENS_REQUIRE_ALL a missing dependency fails (tests/conftest.py turns the skip into an error)."""
    conftest = (ROOT / "tests" / "conftest.py").read_text()
    assert "ATTNLENS_REQUIRE_ALL" in conftest
    assert os.environ.get("ATTNLENS_REQUIRE_ALL", "") in {"", "1"}
