"""`pkd cost`: the paper's Table 4."""

import pytest
from run_helpers import table_rows

from pkd.cli.main import main


@pytest.mark.parametrize("columns", ["40", "80"])
def test_cost_prints_every_number_in_full(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["cost"]) == 0
    output = capsys.readouterr().out
    assert "…" not in output
    rows = table_rows(output)
    assert rows[0][1:] == ["cifar10", "mnist", "fashion_mnist"]
    assert ["parameters ratio, as printed", "6.22", "52.22", "105.45"] in rows
    assert ["FLOPs ratio, as printed", "24.45", "311.11", "700.00"] in rows
    assert max(map(len, output.splitlines())) <= 80
