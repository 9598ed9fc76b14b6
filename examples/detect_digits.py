"""Train a detector on NumPy arrays: handwritten zeros are normal, all other digits are novel.

    python examples/detect_digits.py

Takes about ten seconds on a CPU.
"""

import tempfile
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from pkd import Detector

NORMAL = 0

# Any array of images works: (n, H, W), (n, C, H, W) or (n, H, W, C), uint8 or float.
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8)

# The detector is trained on normal images only. The test set has the remaining normal images and
# all images of the other digits.
normal = images[labels == NORMAL]
train, test_normal = np.split(normal, [140])
test = np.concatenate([test_normal, images[labels != NORMAL]])
is_normal = np.arange(len(test)) < len(test_normal)

# 16x16 pixels are enough for digits of 8x8 pixels; keep the default for photos. The threshold is
# set on a fifth of the training images, which is held out.
detector = Detector(image_size=16, held_out=0.2, random_state=0).fit(train)

prediction = detector.predict(test)  # +1 normal, -1 novel
print(f"AUC {roc_auc_score(is_normal, detector.score_samples(test)):.4f}")
print(f"recall of novel digits: {np.mean(prediction[~is_normal] == -1):.1%}")
print(f"false positive rate: {np.mean(prediction[is_normal] == -1):.1%}")

file = Path(tempfile.mkdtemp()) / "zeros.joblib"
joblib.dump(detector, file)
print(f"saved: {file}, {file.stat().st_size / 2**20:.1f} MiB")
