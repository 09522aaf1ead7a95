import numpy as np
from click.testing import CliRunner
from test_selection import distances, plain_farthest

from bench.coverage import part_of, subset
from bench.worked_example import main
from core.selection.pool import pool_of
from core.workspace import Workspace


def test_the_worked_example_is_written_with_figures_of_its_runs(data_folder, tmp_path):
    folders = ["--data", str(data_folder), "--out", str(tmp_path / "docs"), "--workspace", str(tmp_path / "ws")]
    options = ["--parts", "2", "--limit", "40", "--no-picture"]
    found = CliRunner().invoke(main, [*folders, *options], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    text = (tmp_path / "docs" / "selection.md").read_text()
    assert "$" not in text and (tmp_path / "docs" / "selection_covering.svg").read_text().count("<svg") == 1
    assert max(len(line) for line in text.splitlines() if not line.startswith(("|", "!"))) <= 120
    (math,) = [
        run
        for run in Workspace(tmp_path / "ws").runs()
        if run.manifest["data"]["path"].endswith("worked_example/math")
    ]
    pool = pool_of(math)
    points = [subset(pool, part_of(pool, seed)).whitened for seed in range(2)]
    radii = [distances(own, plain_farthest(own, 30)).min(axis=1).max() for own in points]
    assert f"| MATH | 30 | coverage | {np.median(radii):.2f} ({min(radii):.2f} to {max(radii):.2f}) |" in text
