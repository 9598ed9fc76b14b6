"""The picture of the curves of sweeps."""

from matplotlib.image import imread
from sweep_file_helpers import cell_rows, write_sweep

from bench.curves import write_curves
from pkd.sweep.read import read_sweeps
from pkd.sweep.summary import summarize


def test_one_chart_for_each_student_and_the_same_bytes_again(tmp_path):
    cells = [cell_rows("2"), cell_rows("student-only"), cell_rows("2", widths="2-4-8")]
    comparisons = summarize(read_sweeps([write_sweep(tmp_path, *cells)]))
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    write_curves(comparisons[:1], one)
    write_curves(comparisons, two)
    first = two.read_bytes()
    assert imread(two).shape[1] >= imread(one).shape[1]
    assert imread(two).std() > 0
    write_curves(comparisons, two)
    assert two.read_bytes() == first
