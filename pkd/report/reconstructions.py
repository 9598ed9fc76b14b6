"""Test images with their reconstructions by the networks of a run, for a report."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from pkd_kernels import scale_pixels
from torch import Tensor

from pkd.models.ganomaly import Generator
from pkd.runs.run import Run
from pkd.scoring.metrics import MemberMetrics

MAX_IMAGES = 6  # in each list of a class
MAX_BYTES = 1_500_000  # of all images and reconstructions of a report, before compression


class Example(NamedTuple):
    """A test image with its reconstructions.

    Attributes:
        source: data URI of a PNG: the input, and below it the reconstruction by each network.
        class_name: true class.
        novel: whether the true class is not the normal class.
        score_ratio: score divided by its threshold.
    """

    source: str
    class_name: str
    novel: bool
    score_ratio: float


def example_images(
    run: Run, metrics: Sequence[MemberMetrics], members: Sequence[int]
) -> list[dict[str, list[Example]]]:
    """Find the test images with the lowest and with the highest scores, and reconstruct them.

    Args:
        run: a finished run; its networks are replaced by those of the phases that evaluate them.
        metrics: of all members, of the network that scores.
        members: positions in the stack of the members to show.

    Returns:
        For each member its examples, "most normal" and "most novel".
    """
    phases = {phase.network: phase for phase in run.phases}  # the last that evaluates a network
    bytes_per_image = run.test_images[0].numel() * len(members) * (1 + len(phases)) * 2
    count = min(max(1, MAX_BYTES // bytes_per_image), MAX_IMAGES, len(run.test_images) // 2)
    orders = [metrics[k].y_score.argsort(kind="stable") for k in members]
    rows = np.stack([np.append(order[:count], order[: -count - 1 : -1]) for order in orders], 1)
    stack = len(run.members)
    originals = run.test_images[torch.from_numpy(rows)]  # [2 * count, members, C, H, W]
    parts = [originals]
    with run.precision():
        for network, phase in phases.items():
            run.load_phase(phase)
            parts.append(reconstruct(run.networks[network].generator, originals, members, stack))
    pictures = torch.cat([part.cpu() for part in parts], 3).numpy()
    labels, names = run.dataset.test_labels, run.dataset.classes
    examples = [
        [
            Example(
                png_uri(pictures[i, j]),
                names[labels[row]],
                bool(metrics[k].y_true[row]),
                float(metrics[k].score_ratios[row]),
            )
            for i, row in enumerate(rows[:, j])
        ]
        for j, k in enumerate(members)
    ]
    return [{"most normal": row[:count], "most novel": row[count:]} for row in examples]


@torch.no_grad()
def reconstruct(generator: Generator, images: Tensor, members: Sequence[int], stack: int) -> Tensor:
    """Reconstruct images by some members of a stack, each its own images.

    Args:
        generator: of the stack; left in evaluation mode.
        images: (N, len(members), C, H, W) uint8.
        members: positions in the stack.
        stack: number of members M.

    Returns:
        uint8 of the shape of `images`, on the device of the generator. That may not be the device
        of the images: a run with several stacks keeps its networks in host memory.
    """
    generator.eval()
    images, shape = images.to(next(generator.parameters()).device), images.shape
    inputs = images.new_zeros(len(images), stack, *shape[2:])
    inputs[:, members] = images
    outputs = generator(scale_pixels(inputs.flatten(1, 2))).xh.view(inputs.shape)[:, members]
    return ((outputs + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def png_uri(image: np.ndarray) -> str:
    """Encode an image (C, H, W) uint8 as the data URI of a PNG."""
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
