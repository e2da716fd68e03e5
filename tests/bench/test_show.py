"""Result files, old ones included, stay readable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import show
from bench.common.results import FOLDER


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_readable(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.main([str(path)]) == 0
    printed = capsys.readouterr().out
    value = json.loads(path.read_text())
    assert f"`{value['command']}`, {value['date']}." in printed
    for case in value.get("cases", []):
        assert f"| {case['name']} |" in printed
    for part in value.get("contests", []):
        assert all(f"| {c['name']} | " in printed for c in part["contenders"])
    for target in value.get("targets", []):
        assert f"| {target['target']} | {target['backend']} | {target['value']:.3g} |" in printed


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"results": []}'])
def test_other_files_are_refused_in_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    assert show.main([str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bench: {file}: ") and error.count("\n") == 1
