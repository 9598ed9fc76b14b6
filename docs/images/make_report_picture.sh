#!/usr/bin/env bash
# Write docs/images/report.png: the beginning of the HTML report of a run, in headless Chromium.
#
#     docs/images/make_report_picture.sh RUN_DIR [HEIGHT]
#
# HEIGHT is the number of pixels, from the top of the page, that the picture shows.
set -euo pipefail
run=$1 height=${2:-2080}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python -m pkd report "$run" --device cpu --output "$folder/report.html"
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size="1100,$height" \
    --screenshot="$folder/report.png" "file://$folder/report.html"
python - "$folder/report.png" "$(dirname "$0")/report.png" <<'PYTHON'
import sys

from PIL import Image

Image.open(sys.argv[1]).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
    sys.argv[2], optimize=True
)
PYTHON
