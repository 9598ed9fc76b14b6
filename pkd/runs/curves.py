"""Training curves of a run, after the paper's Figure 2."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"teacher": "#4c566a", "step1": "#1f77b4", "step2": "#d62728"}


def plot_curves(path: Path, metrics: list[dict[str, Any]], title: str) -> None:
    """Draw AUC and losses over epochs, phase after phase, as a PNG.

    AUC is the mean over the stack, the band its smallest and largest member.

    Args:
        metrics: records of metrics.jsonl.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    offset = 0
    for phase in dict.fromkeys(record["phase"] for record in metrics):
        records = [record for record in metrics if record["phase"] == phase]
        epochs = offset + np.array([record["epoch"] for record in records])
        auc = np.array([record["auc"] for record in records])  # [epochs, M]
        style = {"color": COLOURS[phase], "marker": "." if len(records) < 40 else None}
        left.plot(epochs, auc.mean(1), label=f"{phase} ({records[0]['network']})", **style)
        left.fill_between(epochs, auc.min(1), auc.max(1), color=COLOURS[phase], alpha=0.12)
        for network in records[0]["losses"]:
            loss = [np.mean(record["losses"][network]["generator"]) for record in records]
            dash = "--" if network == "teacher" and phase != "teacher" else "-"
            right.plot(epochs, loss, dash, label=f"{phase}: {network} G", **style)
            loss = [np.mean(record["losses"][network]["discriminator"]) for record in records]
            if any(loss):
                right.plot(epochs, loss, ":", label=f"{phase}: {network} D", color=COLOURS[phase])
        offset = int(epochs[-1])
        for axes in (left, right):
            axes.axvline(offset, color="0.8", linewidth=0.8, zorder=0)
    images = metrics[0]["test_images"]
    left.set(xlabel="epoch", ylabel=f"AUC ({images} test images; last of a phase: all)")
    left.set(title=f"{title}: AUC, mean and range of the stack")
    right.set(xlabel="epoch", ylabel="loss", yscale="log")
    right.set(title="generator and discriminator losses, mean")
    for axes in (left, right):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.25)
    FigureCanvasAgg(figure).print_png(path)
