"""Draw the AUC over epochs of the methods of sweeps, as in the paper's Figure 2."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

from pkd.report.sweep_page import draw_methods, method_lines, teacher_level
from pkd.report.sweep_tables import comparison_title
from pkd.runs.plots import COLOURS, STYLE
from pkd.sweep.summary import Comparison
from pkd.utils.files import atomic_write

WIDTH, HEIGHT, COLUMNS = 4.6, 3.4, 2  # of a chart in inches; charts in a row


def write_curves(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write a PNG with one chart for each data set and student that has curves.

    Args:
        comparisons: of the sweeps, at least one of them with curves.
        path: file, which is replaced.
    """
    charts = [comparison for comparison in comparisons if method_lines(comparison)]
    rows = -(-len(charts) // COLUMNS)
    with style.context(STYLE, after_reset=True):
        figure = Figure((COLUMNS * WIDTH, rows * HEIGHT), layout="constrained")
        for k, comparison in enumerate(charts):
            axes = figure.add_subplot(rows, COLUMNS, k + 1)
            lines, teacher = method_lines(comparison), teacher_level(comparison)
            draw_methods(axes, lines, teacher)
            axes.set_title(comparison_title(comparison), fontsize=10)
            for line in lines:
                dashes = (0, line.dashes) if line.dashes else "-"
                axes.plot([], [], color=COLOURS[line.colour], linestyle=dashes, label=line.title)
            if teacher is not None:
                axes.plot([], [], "--", color=COLOURS["teacher"], label="teacher, last epoch")
            axes.legend(fontsize=8, frameon=False, loc="lower right")
        with atomic_write(path, overwrite=True) as file:
            figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
