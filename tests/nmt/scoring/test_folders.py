"""cats.nmt.scoring.grid.folders: the runs that a folder stands for."""

from __future__ import annotations

from pathlib import Path

from cats.nmt.scoring.grid.folders import by_set, runs_in


def make(folder: Path, *names: str) -> list[Path]:
    """Run directories with these names."""
    paths = [folder / name for name in names]
    for path in paths:
        path.mkdir(parents=True)
        (path / "config.toml").touch()
    return paths


def test_a_comparison_is_its_runs_by_set(tmp_path: Path) -> None:
    one, two, three = make(tmp_path / "out", "ted/T=1-seed1", "ted/cats-seed1", "wmt/cats-seed1")
    make(tmp_path / "out", "ted/tuning/cats-trial1", "wmt/tuning/T=1-trial1")
    (tmp_path / "out" / "wmt" / "T=1-seed1.toml").touch()  # it has not begun
    assert runs_in(tmp_path / "out") == [one, two, three]
    assert by_set([tmp_path / "out"]) == {"ted": [one, two], "wmt": [three]}
    assert by_set([tmp_path / "out" / "ted"]) == {"": [one, two]}


def test_fronts_are_their_runs_by_set_and_sides(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "wmt"
    single, low, high, other = make(
        folder, "kk-de/T=5-seed1", "kk-de/ratio-0.2/static-seed1", "kk-de/ratio-0.8/static-seed1", "a-b/T=5-seed1"
    )
    make(folder, "kk-de/ratio-0.2/tuning/static-trial1", "kk-de/tuning/T=5-trial1")
    assert by_set([tmp_path / "out"]) == {"wmt/a-b": [other], "wmt/kk-de": [single, low, high]}


def test_runs_that_are_named_are_together(tmp_path: Path) -> None:
    one, two, inside = make(tmp_path, "a", "b", "out/ted/cats-seed1")
    absent = tmp_path / "absent"
    assert by_set([one, tmp_path / "out", absent, two]) == {"": [one, absent, two], "ted": [inside]}
