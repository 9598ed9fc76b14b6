"""Train on a folder of photos, export an ONNX file, and score photos with it.

    python examples/folder_to_onnx.py [NEW_FOLDER]

Takes about a minute on a CPU. The script draws its photos. To use your photos, put normal ones
into PHOTOS/train/good, normal ones for the test into PHOTOS/test/good and novel ones into
PHOTOS/test/ANY_NAME, then run the three commands that this script prints.
"""

import csv
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PHOTOS = {"train/good": 150, "test/good": 40, "test/scratch": 40, "test/hole": 40}


def draw_photo(kind: str, rng: np.random.Generator) -> Image.Image:
    """Draw a washer on a grey bench, with random position and brightness.

    Args:
        kind: "good"; "scratch" adds a dark line; "hole" leaves the hole out.
        rng: Source of position, brightness, scratch and noise.

    Returns:
        A grey image of 96 x 96 pixels.
    """
    brightness = int(rng.integers(180, 230))
    image = Image.new("L", (96, 96), 60)
    draw = ImageDraw.Draw(image)
    x, y = 48 + rng.integers(-3, 4, 2)
    draw.ellipse((x - 34, y - 34, x + 34, y + 34), fill=brightness)
    if kind != "hole":
        draw.ellipse((x - 13, y - 13, x + 13, y + 13), fill=60)
    if kind == "scratch":
        start, end = rng.integers(20, 76, (2, 2))
        end = start + (end - start) * 40 / max(1.0, float(np.hypot(*(end - start))))
        draw.line((*start, *end), fill=20, width=6)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float32)
    return Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


def draw_photos(folder: Path) -> None:
    """Save the photos of all kinds, for training and test, below a new folder."""
    rng = np.random.default_rng(0)
    for name, count in PHOTOS.items():
        (folder / name).mkdir(parents=True)
        for k in range(count):
            draw_photo(Path(name).name, rng).save(folder / name / f"{k:03}.png")


def pkd(*arguments: object) -> None:
    """Print a `pkd` command and run it."""
    words = [str(argument) for argument in arguments]
    print("\n$ pkd", *words, flush=True)
    subprocess.run([sys.executable, "-m", "pkd", *words], check=True)


def main() -> None:
    """Draw photos, train, export and score; print the verdicts for each kind of photo."""
    folder = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(prefix="pkd-example-"))
    photos, run, model, scores = (folder / n for n in ("photos", "run", "washer.onnx", "new.csv"))
    draw_photos(photos)

    small = ("--student-widths", "4-8-16", "--step1-epochs", 60)
    pkd("train", "--dataset", "folder", "--data-dir", photos, *small, "--out", run)
    pkd("export", run, "--output", model)
    pkd("score", model, photos / "test", "--output", scores)  # runs without PyTorch

    with scores.open(newline="", encoding="utf-8") as file:
        verdicts = Counter(
            (Path(row["image"]).parent.name, row["verdict"]) for row in csv.DictReader(file)
        )
    for (kind, verdict), count in sorted(verdicts.items()):
        print(f"{kind}: {count} of {PHOTOS[f'test/{kind}']} classified as {verdict}")
    print(f"all files are in {folder}")


if __name__ == "__main__":
    main()
