"""A folder of photos -> a trained run -> an ONNX file -> scores of new photos. A minute on a CPU.

    python examples/folder_to_onnx.py [NEW_FOLDER]

With photos of your own, put normal ones into PHOTOS/train/good, normal ones for the test into
PHOTOS/test/good and novel ones into PHOTOS/test/ANY_NAME, and run the three commands printed here.
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


def photo(kind: str, rng: np.random.Generator) -> Image.Image:
    """A washer on a grey bench, a little shifted, in changing light; with a scratch or no hole."""
    light = int(rng.integers(180, 230))
    image = Image.new("L", (96, 96), 60)
    draw = ImageDraw.Draw(image)
    x, y = 48 + rng.integers(-3, 4, 2)
    draw.ellipse((x - 34, y - 34, x + 34, y + 34), fill=light)
    if kind != "hole":
        draw.ellipse((x - 13, y - 13, x + 13, y + 13), fill=60)
    if kind == "scratch":
        start, end = rng.integers(20, 76, (2, 2))
        end = start + (end - start) * 40 / max(1.0, float(np.hypot(*(end - start))))
        draw.line((*start, *end), fill=20, width=6)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float32)
    return Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


def make_photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in PHOTOS.items():
        (folder / name).mkdir(parents=True)
        for k in range(count):
            photo(Path(name).name, rng).save(folder / name / f"{k:03}.png")


def pkd(*arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print("\n$ pkd", *words, flush=True)
    subprocess.run([sys.executable, "-m", "pkd", *words], check=True)


def main() -> None:
    folder = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(prefix="pkd-example-"))
    photos, run, model, scores = (folder / n for n in ("photos", "run", "washer.onnx", "new.csv"))
    make_photos(photos)

    smaller = ("--teacher-widths", "32-64-128", "--student-widths", "4-8-16")
    shorter = ("--teacher-epochs", 8, "--step1-epochs", 12, "--step2-epochs", 2)
    pkd("train", "--dataset", "folder", "--data-dir", photos, *smaller, *shorter, "--out", run)
    pkd("export", run, "--output", model)
    pkd("score", model, photos / "test", "--output", scores)  # without PyTorch

    with scores.open(newline="", encoding="utf-8") as file:
        verdicts = Counter(
            (Path(r["image"]).parent.name, r["verdict"]) for r in csv.DictReader(file)
        )
    for (kind, verdict), count in sorted(verdicts.items()):
        print(f"{kind}: {count} of {PHOTOS[f'test/{kind}']} called {verdict}")
    print(f"everything is in {folder}")


if __name__ == "__main__":
    main()
