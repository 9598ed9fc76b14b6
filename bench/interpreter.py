"""Triton's interpreter, which executes kernels on a CPU: its differences between versions."""

from importlib.metadata import version
from typing import Any


def repair_interpreter() -> None:
    """Make the interpreter of Triton 3.6 accept NumPy 2.4, in this process.

    Triton 3.6 calls int() on an array of one element, which NumPy 2.4 refuses.
    """
    if not version("triton").startswith("3.6."):
        return
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor
