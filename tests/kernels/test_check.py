"""python -m pkd_kernels.check: every op within its limit, a wrong op is reported."""

from types import SimpleNamespace

import pytest
import torch
from pkd_kernels import check, dispatch


def test_every_op_of_the_definitions_is_within_its_limit(capsys):
    """In float32 against float64; the table names the types and where the ops ran."""
    assert check.main(["--device", "cpu"]) == 0
    head, columns, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("CPU, torch ")
    assert columns.split()[:3] == ["op", "type", "path"]
    assert len(rows) == sum(len(case.dtypes) for case in check.cases())
    assert all(" definition " in row for row in rows)
    assert {row[33:].split()[0] for row in rows} == {"float64", "float32", "bfloat16", "float16"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels are compiled")
@pytest.mark.parametrize("name", ["gather", "novelty"])
def test_kernels_are_within_their_limits(monkeypatch, name):
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    chosen = [case for case in check.cases() if case.name == name]
    rows = list(check.checked(chosen, torch.device("cpu")))
    assert [row.path for row in rows] == ["kernel"] * 4
    assert all(row.passed for row in rows), rows


@pytest.mark.parametrize(
    "wrong", [lambda y: y * 1.001, lambda y: y * torch.nan], ids=["off", "NaN"]
)
def test_a_wrong_op_fails(monkeypatch, capsys, wrong):
    """By a thousandth, or NaN, in one type."""
    right = check.pkd_kernels

    def novelty_score(*args, **kwargs):
        score = right.novelty_score(*args, **kwargs)
        return wrong(score) if args[0].dtype == torch.float32 else score

    ops = SimpleNamespace(novelty_score=novelty_score, novelty_parts=right.novelty_parts)
    chosen = [case for case in check.cases() if case.name == "novelty"]
    monkeypatch.setattr(check, "pkd_kernels", ops)
    monkeypatch.setattr(check, "cases", lambda: chosen)
    assert check.main(["--device", "cpu"]) == 1
    failed = [row for row in capsys.readouterr().out.splitlines() if row.endswith("FAILED")]
    assert [row.split()[1] for row in failed] == ["float32"]
