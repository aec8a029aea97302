"""What is on the page: every number is the one that the commands print, and what is missing has no place."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from report_page import HOSTILE, Read, decoded
from typer.testing import CliRunner

from stmbench.cli import app, main
from stmbench.pictures import curves, erf, invariance, pareto
from stmbench.reading import compare as comparing
from stmbench.reading import leaderboard, tables
from stmbench.reading.differences import settings_of
from stmbench.record import Measurement
from stmbench.report import files, matrix, page
from stmbench.store import NewRun, RunRecord, Store

MINUS = "\N{MINUS SIGN}"


def near(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-5)


def one_run(read: Read, start: str) -> dict[str, Any]:
    return next(run for run in read.data["runs"] if run["id"].startswith(start))


# The tables


def test_the_leaderboard_is_that_of_the_command(results: Store, read: Read) -> None:
    groups = leaderboard.rank(results)
    assert len(groups) == 2
    for number, group in enumerate(groups):
        heads, *lines = read.texts(f"board-{number}")
        for row, line in zip(group.rows, lines, strict=True):
            said = dict(zip(tables.HEADERS, tables.cells(row), strict=True))
            assert {name: line[heads.index(name)] for name in said} == said
            assert line[-1].split() == [str(results.run(run).seed) for run in row.runs]
    best = groups[0].rows[0]
    _, cells = read.tables["board-0"][1]
    heads = read.texts("board-0")[0]
    sorted_by = dict(zip(heads, (about.get("data-value") for about, _ in cells), strict=True))
    assert (sorted_by["top-1 %"], sorted_by["latency"]) == (str(best.top1), str(best.latency))


def test_a_column_of_the_comparison_is_what_compare_says(results: Store, read: Read) -> None:
    [of_longer, of_quick] = matrix.read(results, results.runs(state="done"))
    assert [len(found.sides) for found in (of_longer, of_quick)] == [2, 4]
    assert [side.name for side in of_quick.sides] == ["halo micro", "halo tiny", "swin micro", "dwconv micro"]
    verdicts = set()
    heads, *lines = read.texts("matrix-1")
    for i, reference in enumerate(of_quick.sides):
        others = [side for side in of_quick.sides if side is not reference]
        said = comparing.compare(results, [reference.argument, *(side.argument for side in others)])
        column = [(of_quick.sides.index(side), side) for side in others]
        for (j, side), outcome in zip(column, said.outcomes, strict=True):
            cell = of_quick.cells[j][i]
            assert cell
            assert outcome.test
            assert (cell.value, cell.interval, cell.level) == (
                outcome.test.value,
                outcome.interval,
                outcome.level,
            )
            assert (cell.p, cell.verdict) == (outcome.p, outcome.verdict)
            low, high = cell.interval
            words = f"{cell.value:+.2f} {matrix.WORDS[cell.verdict]} {low:+.2f} to {high:+.2f} p "
            text = re.sub("[▲▼≈] ", "", lines[j][i + 1]).replace(MINUS, "-")
            assert text.startswith(words)
            assert heads[i + 1].startswith(reference.name)
            assert lines[j][0].startswith(side.name)
            verdicts.add(cell.verdict)
    assert verdicts == {"better", "worse", "inconclusive"}


def test_more_networks_than_a_matrix_has_room_for(
    store: Store, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "_MOST", 3)
    for i, scale in enumerate(("micro", "micro", "tiny", "micro", "tiny", "micro")):
        synthetic.add(store, new_run, f"plugin{i}", scale=scale, level=i / 5, epochs=1)
    found = matrix.read(store, store.runs(state="done"))
    assert [([side.name for side in each.sides], each.of) for each in found] == [
        (["plugin1 micro", "plugin3 micro", "plugin5 micro"], 4),  # without the least of the four
        (["plugin2 tiny", "plugin4 tiny"], 2),
    ]


def test_every_run_is_listed_with_its_reason(results: Store, read: Read) -> None:
    heads, *lines = read.texts("listing")
    assert [line[0] for line in lines] == [run.id for run in results.runs()]
    assert lines[0][heads.index("state")] == "failed"
    assert lines[0][heads.index("reason")] == HOSTILE


# What the browser draws


def test_the_points_are_those_of_the_pareto_picture(results: Store, read: Read) -> None:
    boards = pareto.read(results, leaderboard.rank(results))
    for board, drawn in zip(boards, read.data["charts"]["costs"], strict=True):
        assert [cost for cost, *_ in drawn["costs"]] == list(board.costs)
        for point, found in zip(board.points, drawn["points"], strict=True):
            assert (found["name"], found["mixer"]) == (point.name, point.row.mixer)
            assert [found[key] for key in ("top1", "low", "high")] == [
                near(value) for value in (point.row.top1, point.row.top1_low, point.row.top1_high)
            ]
            assert found["costs"] == {name: near(value) for name, value in point.costs.items()}


def test_the_curves_are_those_of_the_picture(results: Store, read: Read) -> None:
    histories = read.data["pools"]["histories"]
    groups = curves.read(results, results.runs(state="done"))
    assert len(groups) == 2
    for group, drawn in zip(groups, read.data["charts"]["training"], strict=True):
        for network, found in zip(group.networks, drawn, strict=True):
            assert found["name"] == network.name
            for (seed, history), (drawn_seed, place) in zip(
                network.seeds.items(), found["seeds"], strict=True
            ):
                assert drawn_seed == seed
                for name in ("loss", "val_loss", "top1"):
                    values = list(history.curves[name].values())
                    assert histories[place][name] == pytest.approx(values, rel=1e-3)


def test_the_sweeps_are_those_of_the_picture(results: Store, read: Read) -> None:
    runs = results.runs(state="done")
    [first, *_] = invariance.read(results, runs, protocol="invariance/1", metric="top1")
    drawn = [
        metrics
        for metrics in read.data["charts"]["sweeps"]
        if metrics[0]["caption"].startswith("invariance/1")
    ]
    [top1] = [each for each in drawn[0] if each["metric"] == "top1"]
    assert top1["caption"] == invariance.caption(first)
    assert [network["name"] for network in top1["networks"]] == [network.name for network in first.networks]
    for panel in top1["panels"]:
        for place, *columns in panel["curves"]:
            sweeps = first.networks[place].seeds.values()
            expected = invariance.mean([sweep.curves[panel["key"]] for sweep in sweeps])
            np.testing.assert_allclose(np.array(columns).T, expected, rtol=1e-3)
    assert any(metrics[0]["metric"] == "equivariance" for metrics in read.data["charts"]["sweeps"])


def test_the_fields_share_one_scale_of_colours(results: Store, read: Read) -> None:
    [group, _] = sorted(erf.read(results, results.runs(state="done")), key=lambda group: -len(group.networks))
    rows = erf.rows(group)
    images = [image for image in read.images if not image["alt"].startswith("Q")]
    shown = {image["alt"].partition(",")[0]: image for image in images if "level 1" in image["alt"]}
    most = max(field.maps.max() for _, field in rows)
    name, field = next((name, field) for name, field in rows if field.maps[0].max() < most)
    assert "50 % within 11 px" in shown[name]["alt"]
    least = 0.01 / field.maps[0].size
    expected = np.log(field.maps[0].clip(least) / least) / np.log(most / least)
    assert np.abs(decoded(shown[name]["src"]) / 63 - expected).max() < 0.51 / 63


def test_a_large_field_is_averaged(store: Store, new_run: NewRun) -> None:
    synthetic.add(store, new_run, "halo", side=224, epochs=1)
    pixels = decoded(Read(page.make(store)).images[0]["src"])
    assert pixels.shape == (64, 64)


def test_a_damaged_field_is_said_and_the_others_are_shown(store: Store, new_run: NewRun) -> None:
    synthetic.add(store, new_run, "halo")
    lost = synthetic.add(store, new_run, "swin")
    (lost.folder / "erf_28_plain.npz").write_bytes(b"PK")
    text = page.make(store)
    assert "cannot be read" in text
    assert {image["alt"].partition(",")[0] for image in Read(text).images} == {"halo"}


# A run's page


def test_a_runs_page_has_the_evidence(results: Store, read: Read) -> None:
    run = next(run for run in results.runs() if run.recipe_name == "longer")
    found = one_run(read, run.id)
    facts = dict(found["facts"]) | dict(found["environment"])
    assert facts["data"] == "fashion-mini, fingerprint 0123456789abcdef"
    assert facts["recipe"] == f"longer, digest {'b' * 12}"
    assert facts["stmbench's commit"] == f"{'ab' * 20}, with uncommitted changes"
    assert facts["threads"] == "2"
    assert read.data["pools"]["versions"][found["versions"]] == run.versions
    assert dict(read.data["pools"]["recipes"][found["recipe"]]) == dict(settings_of(run))
    assert found["overrides"] == ["schedule.epochs=9"]
    assert [stage[:2] for stage in found["stages"]] == [[s.name, s.state] for s in results.stages(run.id)]
    assert [file[0] for file in found["files"]] == [str(file.path) for file in results.artifacts(run.id)]
    assert len(read.data["pools"]["histories"][found["history"]]["loss"]) == 9


def test_all_final_numbers_of_a_run_with_their_intervals(results: Store, read: Read) -> None:
    run = results.runs(state="done")[0]
    found = one_run(read, run.id)
    shape = read.data["pools"]["shapes"][found["shape"]]
    shown = {}
    for (stage, name, unit, at), value in zip(shape, found["values"], strict=True):
        values = value if isinstance(value, list) else [value, None, None]
        for end, number in zip(("", ".low", ".high"), values, strict=True):
            if number is not None:
                shown[stage, name + end, at] = (number, unit)
    stored = [m for m in results.measurements(run.id) if m.step == 0]
    assert shown == {(m.stage, m.name, m.condition): (near(m.value), m.unit) for m in stored}
    assert not any(name.endswith(".low") for _, name, *_ in shape)


def test_a_number_that_could_not_be_taken_has_its_reason(store: Store, new_run: NewRun) -> None:
    run = synthetic.add(store, new_run, "halo", epochs=1)
    store.record(run.id, Measurement("profile", "energy", float("nan"), "J", reason=HOSTILE))
    [found] = Read(page.make(store)).data["runs"]
    [(place, reason)] = found["reasons"].items()
    assert reason == HOSTILE
    assert found["values"][int(place)] is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "--mixer halo --scale micro --stage build,train --recipe quick --seed 0 --data fashion_mini"),
        ({"mixer": "timm:resnet18", "scale": ""}, "--model timm:resnet18 --stage build,train"),
        ({"argv": ("stmbench", "run", "--recipe", "my/own.toml")}, "--recipe my/own.toml"),
        ({"argv": ("stmbench", "run", "--recipe=my/own.toml")}, "--recipe my/own.toml"),
        ({"weights": "a file.pth", "backend": "plain"}, "--weights 'a file.pth' --backend plain"),
        (
            {"overrides": ("erf.sizes=[28, 56]", "train.batch_size=8")},
            "--set 'erf.sizes=[28, 56]' --set train.batch_size=8",
        ),
    ],
)
def test_the_command_that_makes_a_run_again(
    store: Store, new_run: NewRun, fields: dict[str, Any], expected: str
) -> None:
    new = dataclasses.replace(new_run, **({"stages": ("build", "train"), "overrides": ()} | fields))
    run = store.create_run(new)
    store.end_run(run.id, "failed", "no reason")
    [found] = Read(page.make(store)).data["runs"]
    assert expected in found["commands"]["this run alone"]
    assert shlex.split(found["commands"]["this run alone"])[:2] == ["stmbench", "run"]
    assert f"stmbench reproduce {run.id}" in found["commands"].values()


# What is missing, and what is hostile


def test_what_nobody_measured_has_no_section(store: Store, new_run: NewRun, read: Read) -> None:
    assert read.sections == ["leaderboard", "costs", "training", "erf", "invariance", "comparison", "runs"]
    failed = store.create_run(new_run)
    store.end_run(failed.id, "failed", "the disk is full")
    assert Read(page.make(store)).sections == ["runs"]
    done = store.create_run(new_run)
    store.record(done.id, Measurement("build", "parameters", 4e6))
    store.end_run(done.id, "done")
    assert Read(page.make(store)).sections == ["leaderboard", "runs"]


def test_hostile_text_stays_text(html: str, read: Read) -> None:
    assert one_run(read, "swin-micro")["reason"] in ("", HOSTILE)
    assert html.count("</script>") == 2
    assert '<img src="x"' not in html


def test_the_page_loads_nothing(html: str, read: Read) -> None:
    assert {re.split("[,=]", address)[0] for address in read.addresses if not address.startswith("#")} <= {
        "data:",
        "data:image/png;base64",
    }
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", html)


def test_no_runs_is_one_clear_line(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.html"
    db = str(tmp_path / "results.db")
    monkeypatch.setattr(sys, "argv", ["stmbench", "report", "--db", db, "-o", str(output)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not output.exists()


# The command


def report(results: Store, *options: str) -> Any:
    return CliRunner().invoke(app, ["report", "--db", str(results.folder / "results.db"), *options])


def test_filters(results: Store, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    outcome = report(results, "--mixer", "swin,convnext", "--recipe", "quick", "-o", str(output))
    assert outcome.stdout == f"{output}: {output.stat().st_size / 1e6:.2f} MB\n"
    shown = {run["id"].split("-")[0] for run in Read(output.read_text()).data["runs"]}
    assert shown == {"swin", "dwconv"}
    assert "Did you mean 'swin'?" in str(report(results, "--mixer", "swim").exception)
    assert "An" not in str(report(results, "--scale", "base", "-o", str(output)).exception)[:2]


@pytest.mark.parametrize(
    ("name", "expected"), [("report.pdf", "an .html file"), ("no/report.html", "no folder")]
)
def test_another_kind_of_file_is_refused_before_anything_is_read(
    tmp_path: Path, name: str, expected: str
) -> None:
    outcome = CliRunner().invoke(
        app, ["report", "--db", str(tmp_path / "none.db"), "-o", str(tmp_path / name)]
    )
    assert isinstance(outcome.exception, ValueError)
    assert expected in str(outcome.exception)


def test_it_needs_no_torch(results: Store, tmp_path: Path) -> None:
    code = (
        "import sys; from stmbench.cli import app; app(standalone_mode=False); print('torch' in sys.modules)"
    )
    words = ["report", "--db", str(results.folder / "results.db"), "-o", str(tmp_path / "report.html")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_watching_writes_again_when_runs_change(store: Store, new_run: NewRun, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    first = synthetic.add(store, new_run, "halo", epochs=1)
    seen: list[Sequence[str]] = []

    def wait(seconds: float) -> None:
        assert seconds == 7
        seen.append([run["id"] for run in Read(path.read_text()).data["runs"]])
        if len(seen) == 2:
            synthetic.add(store, new_run, "swin", epochs=1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    every = []
    for size in files.watch(store, path, 7, wait=wait):
        assert size == path.stat().st_size
        every.append(Read(path.read_text()).data["every"])
    assert [len(ids) for ids in seen] == [1, 1, 2]
    assert seen[0] == [first.id]
    assert every == [7, 7, None]  # nothing was written while nothing had changed
    assert [each.name for each in tmp_path.glob("*.html*")] + [each.name for each in tmp_path.glob(".*")] == [
        "report.html"
    ]


def test_nobody_sees_half_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("the old one")

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="the disk is full"):
        files.write(path, "the new one")
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_is_no_text(tmp_path: Path) -> None:
    files.write(tmp_path / "report.html", "a name of a file: \udcff")
    assert (tmp_path / "report.html").read_text() == "a name of a file: ?"


def test_two_hundred_runs_are_under_five_megabytes(store: Store, new_run: NewRun) -> None:
    def fill(number: int) -> RunRecord:
        mixer = ("halo", "swin", "sra", "dwconv", "dcnv3", "pool", "identity")[number % 7]
        scale = ("tiny", "small", "base")[number // 7 % 3]
        values = {"mixer": mixer, "scale": scale, "seed": number // 21}
        return synthetic.add(store, new_run, level=number % 21 / 10, epochs=300, side=64, **values)

    for number in range(200):
        fill(number)
    text = page.make(store)
    assert len(Read(text).data["runs"]) == 200
    assert len(text.encode()) < 5e6


def test_the_template_is_filled(html: str) -> None:
    assert not re.search(r"\$(digest|style|script|data|sections|selects|summary|made|version)\b", html)
    assert json.dumps(HOSTILE)[1:-1].replace("<", "\\u003c") in html
