"""Sphinx settings: Markdown by MyST, the furo theme, equations as MathML; no network is needed."""

import inspect
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

project = "P-KDGAN"
author = "P-KDGAN contributors"
copyright = author
try:
    release = metadata.version("pkdgan")
except metadata.PackageNotFoundError:
    release = ""

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
highlight_language = "none"  # blocks without a language are plain text

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "code"  # docstrings put names in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature and the text of a docstring give types and shapes
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "P-KDGAN"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_sourcelink = html_copy_source = False


def _inline_math(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _display_math(writer: HTML5Translator, node: nodes.math_block) -> None:
    equation = tex2mathml(node.astext(), as_block=True)
    writer.body.append(f'<div class="math">{equation}</div>\n')
    raise nodes.SkipNode


def _docstring(app: Sphinx, kind: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make docstrings, which are plain text, safe for the parser of reStructuredText.

    Those of the kernels align tables and shapes in columns: their text is displayed as it is.
    """
    if name.startswith("pkd_kernels."):
        summary, *text = (inspect.getdoc(obj) or "").splitlines() or [""]
        lines[:] = [_escaped(summary), "", *(("::", "") if any(text) else ())]
        lines += [f"    {line}" for line in text]
    else:
        lines[:] = map(_escaped, lines)


def _escaped(line: str) -> str:
    """Escape |x| and the last character of x_ outside of backticks."""
    parts = line.split("`")
    parts[::2] = (re.sub(r"(?<!\\)\||(?<=\w)(?<!\\)_(?!\w)", r"\\\g<0>", p) for p in parts[::2])
    return "`".join(parts)


def setup(app: Sphinx) -> None:
    """Register the renderer of equations: browsers display MathML without scripts or fonts."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))
    app.connect("autodoc-process-docstring", _docstring, priority=900)
