"""The promise of the default recipe: minutes on two cores, and at least 85 % for every mixer."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from stmbench import catalog
from stmbench.cli import app
from stmbench.store import open_store


@pytest.mark.slow
@pytest.mark.parametrize("mixer", list(catalog.mixers()))
def test_quick_keeps_its_promise(mixer: str, tmp_path: Path) -> None:
    db = str(tmp_path / "stmbench.db")
    result = CliRunner().invoke(app, ["run", "--mixer", mixer, "--stage", "all", "--db", db])
    assert result.exit_code == 0, result.output
    with open_store(db, create=False) as store:
        (run,) = store.runs()
        assert run.state == "done"
        numbers = {(m.stage, m.name): m.value for m in store.measurements(run.id) if m.step == 0}
    assert numbers["eval", "top1"] >= 85
    assert numbers["profile", "latency"] > 0
