"""Rules for the code that neither ruff, mypy nor import-linter can express."""

import ast
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent.parent / "kernels" / "pkd_kernels"
FILES = sorted(KERNELS.rglob("*.py"))


def is_jit(function: ast.FunctionDef) -> bool:
    """Whether the function is a kernel or a device function: `@triton.jit` is a decorator."""
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    return any(decorator.startswith("triton.jit") for decorator in decorators)


def without_types(function: ast.FunctionDef) -> list[str]:
    """Parameters without a type (not `self`, `cls`), and "return" if the result has no type."""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    parameters += [p for p in (arguments.vararg, arguments.kwarg) if p]
    names = [p.arg for p in parameters if p.annotation is None and p.arg not in ("self", "cls")]
    if function.returns is None and function.name != "__init__":
        names.append("return")
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(KERNELS)))
def test_functions_on_the_host_have_types(file):
    """In pkd_kernels mypy accepts functions without types, because of @triton.jit."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    missing = {f.name: names for f in functions if not is_jit(f) and (names := without_types(f))}
    assert missing == {}
