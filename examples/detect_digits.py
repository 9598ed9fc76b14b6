"""NumPy arrays to a detector: learn what a handwritten zero is, then find everything else.

    python examples/detect_digits.py

Some ten seconds on a CPU.
"""

import tempfile
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from pkd import Detector

NORMAL = 0

# Any array of images will do: (n, H, W), (n, C, H, W) or (n, H, W, C), uint8 or float.
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8)

# Only normal images are trained on. The rest of them, and all other digits, are for the test.
normal = images[labels == NORMAL]
train, unseen = np.split(normal, [140])
test = np.concatenate([unseen, images[labels != NORMAL]])
is_normal = np.arange(len(test)) < len(unseen)

# For digits of 8x8 pixels 16x16 and a small teacher are plenty; photos take the defaults. A fifth
# of the training images is held out: the threshold comes from their scores.
detector = Detector(image_size=16, teacher_widths=(16, 32, 64), held_out=0.2, random_state=0)
detector.fit(train)

verdict = detector.predict(test)  # +1 normal, -1 novel
print(f"AUC {roc_auc_score(is_normal, detector.score_samples(test)):.4f}")
print(f"novel digits found: {np.mean(verdict[~is_normal] == -1):.1%}")
print(f"zeros mistaken for novel: {np.mean(verdict[is_normal] == -1):.1%}")

# The teacher was needed for training only: without it the file is small.
del detector.teacher_
file = Path(tempfile.mkdtemp()) / "zeros.joblib"
joblib.dump(detector, file)
print(f"saved: {file}, {file.stat().st_size / 2**20:.1f} MiB")
