"""Bad data sets: each kind gives one clear line and exit code 2, or is counted and named."""

from __future__ import annotations

import json
import re

import pytest

torch = pytest.importorskip("torch")

from bad_data_sets import BAD, Case, run  # noqa: E402


@pytest.mark.parametrize(("change", "kind", "text"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_input_is_named(tmp_path, monkeypatch, change, kind, text):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.chdir(tmp_path)
    case = Case(tmp_path)
    change(case)
    result = case.run()
    if kind == "error":
        lines = result.stderr.strip().splitlines()
        assert result.exit_code == 2, result.output
        assert len(lines) == 1, lines
        assert re.search(text, lines[0]), lines[0]
        assert lines[0].startswith("defakeq: ")
        return
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "out.json").read_text())["datasets"].values()
    found = [p for p in row["report"]["problems"] if p["kind"] == kind and text in p["name"]]
    assert found, row["report"]
    assert row["report"]["counts"][kind] >= len(found)
    assert row["evaluated"] >= 2


def test_check_names_problems_and_fails(tmp_path):
    case = Case(tmp_path)
    assert (case.data / "FF-DF.json").write_text(json.dumps(case.document))
    assert run("data", "check", "--data", case.data, "--dataset", "FF-DF").exit_code == 0
    case.frame.write_bytes(b"x")
    result = run("data", "check", "--data", case.data, "--dataset", "FF-DF", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)[0]["counts"] == {"broken image": 1}
    assert run("data", "check", "--data", case.data, "--dataset", "DFDC").exit_code == 2


def test_there_are_fifty_kinds_of_bad_input():
    assert len({name for name, *_ in BAD}) == len(BAD) >= 50
