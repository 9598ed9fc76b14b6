"""Test images above what teacher and student make of them, for a report."""

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
from pkd.scoring.metrics import Verdicts

SHOWN = 6  # most normal images of a class, and most novel ones; fewer where there is much to show:

PICTURE_BYTES = 1_500_000  # of all pictures before they are packed


class Column(NamedTuple):
    """A test image above its reconstructions, and what the student says of it."""

    source: str  # a data: address of a PNG
    class_name: str
    novel: bool
    ratio: float  # score over threshold


def pictures(
    run: Run, verdicts: Sequence[Verdicts], members: Sequence[int]
) -> list[list[tuple[str, list[Column]]]]:
    """For each of some members the test images that are the most normal and the most novel to it.

    Args:
        run: finished; its networks are left as the first phase left them.
        verdicts: of all members by their students.
        members: places in the stack.
    """
    size = run.test_images[0].numel() * len(members) * 3 * 2
    count = min(max(1, PICTURE_BYTES // size), SHOWN, len(run.test_images) // 2)
    orders = [verdicts[k].scores.argsort(kind="stable") for k in members]
    rows = np.stack([np.concatenate([own[:count], own[: -count - 1 : -1]]) for own in orders], 1)
    originals = run.test_images[torch.from_numpy(rows)]  # [2 * count, groups, C, H, W]
    with run.precision():
        run.load_phase(run.phases[-1])
        student = reconstructions(run.networks["student"].generator, originals, members)
        run.load_phase(run.phases[0])
        teacher = reconstructions(run.networks["teacher"].generator, originals, members)
    stacked = torch.cat([part.cpu() for part in (originals, teacher, student)], 3).numpy()
    labels, names = run.dataset.test_labels, run.dataset.classes
    found = []
    for place, k in enumerate(members):
        columns = [
            Column(
                png(stacked[i, place]),
                names[labels[row]],
                bool(verdicts[k].novel[row]),
                float(verdicts[k].ratios[row]),
            )
            for i, row in enumerate(rows[:, place])
        ]
        found.append([("most normal", columns[:count]), ("most novel", columns[count:])])
    return found


@torch.no_grad()
def reconstructions(generator: Generator, images: Tensor, members: Sequence[int]) -> Tensor:
    """What some members of a stack make of images of their own.

    Args:
        generator: of M members; left in evaluation mode.
        images: (P, len(members), C, H, W) uint8.
        members: places in the stack.

    Returns:
        uint8 of the shape of `images`, where the generator is: of several stacks in host memory.
    """
    generator.eval()
    images, shape = images.to(next(generator.parameters()).device), images.shape
    stack = generator.encoder[0].stack
    everyone = images.new_zeros(len(images), stack, *shape[2:])
    everyone[:, members] = images
    made = generator(scale_pixels(everyone.flatten(1, 2))).xh.view(everyone.shape)[:, members]
    return ((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def png(image: np.ndarray) -> str:
    """A data: address of an image (C, H, W) uint8."""
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
