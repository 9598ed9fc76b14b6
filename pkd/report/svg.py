"""Render plots as inline SVG, with the colours and the font of the HTML page around them."""

import io
import re
from collections.abc import Callable
from xml.etree.ElementTree import Element, fromstring, tostring

from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from pkd.runs.plots import COLOURS, STYLE
from pkd.utils.text import visible

TOP, RIGHT, BOTTOM, LEFT = 22, 12, 42, 56  # margins around the axes, in points
LABEL = 14  # distance of the y axis label from the left edge, in points

CSS_VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}

NAMESPACE = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"


def render_svg(draw: Callable[[Axes], None], width: int, height: int, label: str) -> Markup:
    """Render a plot as an SVG element of class "chart".

    The element has no ids, links, scripts, style sheets or fonts, so that a page can hold any
    number of them. The colours are CSS variables, e.g. var(--teacher), which the page defines for
    its light and dark themes. The page also styles the text.

    Args:
        draw: draws on the axes.
        width: in points, margins included.
        height: in points, margins included.
        label: description for screen readers.
    """
    svg_style = STYLE | {"svg.fonttype": "none", "path.simplify_threshold": 0.5}
    with style.context(svg_style, after_reset=True):
        figure = Figure(figsize=(width / 72, height / 72))
        figure.subplots_adjust(LEFT / width, BOTTOM / height, 1 - RIGHT / width, 1 - TOP / height)
        axes = figure.subplots()
        for background in (figure.patch, axes.patch):
            background.set_visible(False)
        edge = blended_transform_factory(figure.dpi_scale_trans, axes.transAxes)
        axes.yaxis.set_label_coords(LABEL / 72, 0.5, edge)
        draw(axes)
        file = io.BytesIO()
        figure.savefig(file, format="svg")
    attributes = {"class": "chart", "viewBox": f"0 0 {width} {height}"}
    attributes |= {"stroke-linejoin": "round", "role": "img", "aria-label": visible(label)}
    svg = Element("svg", attributes)
    svg.extend(_shapes(fromstring(file.getvalue())))
    return Markup(tostring(svg, encoding="unicode"))


def _shapes(root: Element) -> list[Element]:
    """Convert matplotlib's SVG to a flat list of paths and texts, in the order of drawing.

    matplotlib nests groups, and draws repeated shapes by links to definitions with ids. Clip paths
    are dropped: no plot draws beyond its axes by more than the width of a line.
    """
    definitions = {f"#{path.get('id')}": path for path in root.iter(f"{NAMESPACE}path")}
    shapes = []
    for element in root.iter():
        tag, get = element.tag.removeprefix(NAMESPACE), element.attrib.get
        if tag == "path" and not get("id"):
            shapes.append(_path(get("d", ""), get("style", "")))
        elif tag == "use":
            path = _path(definitions[get(LINK, "")].get("d", ""), get("style", ""))
            path.set("transform", _round(f"translate({get('x')} {get('y')})"))
            shapes.append(path)
        elif tag == "text":
            shapes.append(_text(element))
    return shapes


def _path(d: str, css: str) -> Element:
    """A path with CSS variables as colours; KeyError for a colour that is not in COLOURS."""
    d = re.sub(r"\s*([A-Zz])\s*", r"\1", d.strip())
    css = re.sub(r"#[0-9a-f]{6}", lambda match: CSS_VARIABLES[match[0]], css)
    return Element("path", {"d": _round(d), "style": css})


def _text(element: Element) -> Element:
    """A text with its position, alignment and rotation; font and colour are the page's."""
    attributes = {name: _round(element.get(name, "")) for name in ("x", "y", "transform")}
    if attributes["transform"].startswith("rotate(-0"):
        del attributes["transform"]
    if anchor := re.search(r"text-anchor: (\w+)", element.get("style", "")):
        attributes["text-anchor"] = anchor[1]
    text = Element("text", attributes)
    text.text = element.text
    return text


def _round(text: str) -> str:
    """Round the coordinates in a text to a tenth of a point."""
    return re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), text)
