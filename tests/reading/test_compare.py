"""`compare`: which runs a name stands for, what differs, what is refused, and what the verdict rests on."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluated
import numpy as np
import pytest
from evaluated import two

from stmbench.reading import compare as comparing
from stmbench.reading.compare import Comparison, compare
from stmbench.reading.significance import Pair, Seeded
from stmbench.recipe import Recipe
from stmbench.record import Measurement, condition
from stmbench.store import NewRun, Store, open_store

OLD, NEW = two(both=300, only_first=5, only_second=15, neither=80)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


class Add:
    """``add("swin", hits, seed=1)`` puts an evaluated run into the store and returns its id."""

    def __init__(self, store: Store, new_run: NewRun) -> None:
        self.store = store
        self.new = dataclasses.replace(new_run, recipe_values=Recipe().values(), overrides=())

    def __call__(self, mixer: str, hits: Any, **options: Any) -> str:
        return evaluated.add(self.store, self.new, hits, mixer=mixer, **options)


@pytest.fixture
def add(store: Store, new_run: NewRun) -> Add:
    return Add(store, new_run)


def differing(found: Comparison) -> dict[str, tuple[str, ...]]:
    return {f"{one.topic}: {one.name}": one.values for one in found.differences}


def seeds_of(level: float, count: int, seed: int = 0) -> list[np.ndarray]:
    """The hits of so many seeds; where one is right the others mostly are."""
    rng = np.random.default_rng(seed)
    ease = np.random.default_rng(99).normal(0, 1, 400)
    return [level + ease + rng.normal(0, 0.4, 400) > 0 for _ in range(count)]


# The verdict


def test_one_seed_each_is_mcnemars_test(store: Store, add: Add) -> None:
    halo, swin = add("halo", OLD), add("swin", NEW)
    found = compare(store, [halo, swin])
    [outcome] = found.outcomes
    assert outcome.test == Pair(only_reference=5, only_contender=15, images=400)
    assert (outcome.verdict, outcome.p, found.images) == ("better", pytest.approx(0.04139, abs=1e-5), 400)
    assert outcome.interval
    assert 0 < outcome.interval[0] < 2.5 < outcome.interval[1]
    assert compare(store, [swin, halo]).outcomes[0].verdict == "worse"
    assert [(side.name, side.top1, side.weights) for side in found.sides] == [
        (halo, (76.25,), ("plain",)),
        (swin, (78.75,), ("plain",)),
    ]


def test_a_network_is_all_its_seeds(store: Store, add: Add) -> None:
    for mixer, level in (("halo", 1.0), ("swin", 1.05), ("sra", 2.2)):
        for seed, hits in enumerate(seeds_of(level, 3, seed=len(mixer))):
            add(mixer, hits, seed=seed)
    found = compare(store, ["halo", "swin", "sra"])
    assert [len(side.runs) for side in found.sides] == [3, 3, 3]
    assert all(isinstance(outcome.test, Seeded) for outcome in found.outcomes)
    assert [outcome.verdict for outcome in found.outcomes] == ["inconclusive", "better"]


def test_several_contenders_are_corrected_together(store: Store, add: Add) -> None:
    """p = 0.041 alone is enough, and in company is not."""
    halo = add("halo", OLD)
    others = [add("swin", NEW), add("sra", OLD), add("dwconv", ~OLD)]
    found = compare(store, [halo, *others])
    assert [outcome.verdict for outcome in found.outcomes] == ["inconclusive", "inconclusive", "worse"]
    swin, sra, dwconv = found.outcomes
    assert swin.test
    assert swin.test.p == pytest.approx(0.04139, abs=1e-5)
    assert swin.p == pytest.approx(2 * swin.test.p)
    assert (swin.level, sra.level, dwconv.level) == pytest.approx((0.025, 0.025, 0.05 / 3))
    for outcome in found.outcomes:
        assert outcome.interval
        assert (outcome.verdict == "inconclusive") == (outcome.interval[0] <= 0 <= outcome.interval[1])


def test_ema_weights_are_compared_wherever_there_are_any(store: Store, add: Add) -> None:
    halo, swin = add("halo", OLD), add("swin", OLD)
    evaluated.answer(store, swin, NEW, kind="ema")
    found = compare(store, [halo, swin])
    assert found.outcomes[0].test == Pair(5, 15, 400)
    assert found.sides[1].weights == ("ema",)
    assert found.sides[1].top1 == (78.75,)


def test_images_that_could_not_be_read_are_left_out(store: Store, add: Add) -> None:
    labels = evaluated.labels_of(400)
    labels[[0, 301]] = evaluated.UNREADABLE  # one that both would have got right, one for the old alone
    runs = [add(mixer, hits, labels=labels) for mixer, hits in (("halo", OLD), ("swin", NEW))]
    found = compare(store, runs)
    assert (found.images, found.outcomes[0].test) == (398, Pair(4, 15, 398))


# Which runs


def test_names_of_networks(store: Store, add: Add) -> None:
    ids = {
        "dwconv": add("dwconv", OLD),
        "plain": add("dwconv", OLD, backend="plain"),
        "tuned": add("dwconv", OLD, weights="some/start.pth", weights_sha256="ab" * 32),
        "timm": add("timm:resnet18", OLD, scale=""),
    }
    halo = add("halo", NEW)
    for name, run in {
        "dwconv": "dwconv",
        "convnext": "dwconv",
        "dwconv-micro": "dwconv",
        "dwconv micro": "dwconv",
        "dwconv (plain)": "plain",
        "dwconv from start.pth": "tuned",
        "timm:resnet18": "timm",
    }.items():
        [_, side] = compare(store, [halo, name]).sides
        assert [run.id for run in side.runs] == [ids[run]], name
    assert compare(store, [halo, "dwconv"]).sides[1].name == "dwconv micro"
    assert compare(store, [halo[:-1], ids["plain"]]).sides[0].name == halo  # enough of the beginning


def test_of_a_seed_the_newest_evaluated_run_counts(store: Store, add: Add, new_run: NewRun) -> None:
    halo = add("halo", OLD)
    add("swin", OLD, seed=0)
    newest = [add("swin", NEW, seed=0), add("swin", NEW, seed=1)]
    store.end_run(
        store.create_run(dataclasses.replace(new_run, mixer="swin", seed=1)).id, "done"
    )  # only timed
    assert [run.id for run in compare(store, [halo, "swin"]).sides[1].runs] == newest


def test_several_runs_may_be_named_as_one_side(store: Store, add: Add) -> None:
    halo = add("halo", OLD)
    runs = [add("swin", NEW, seed=seed) for seed in range(3)]
    [_, side] = compare(store, [halo, f"{runs[0]}, {runs[2]}"]).sides
    assert [run.id for run in side.runs] == [runs[0], runs[2]]
    with pytest.raises(ValueError, match="is several unlike runs: mixers swin or halo"):
        compare(store, ["halo", f"{runs[0]},{halo}"])


def test_an_ambiguous_network_names_the_choices(store: Store, add: Add) -> None:
    add("halo", OLD)
    add("swin", OLD)
    add("swin", NEW, scale="tiny")
    add("swin", NEW, recipe_name="fashion", recipe_digest="81ab", data_name="cats")
    with pytest.raises(
        ValueError, match=r"'swin' is several unlike runs: scales micro or tiny; recipes "
    ) as error:
        compare(store, ["halo", "swin"])
    assert "fashion (81ab)" in str(error.value)
    assert "Choose with --scale, --recipe" in str(error.value)
    found = compare(store, ["halo", "swin"], scale="micro", recipe_name="quick", data="fashion_mini")
    assert found.outcomes[0].verdict == "inconclusive"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["halo"], "two runs or networks, or more"),
        (["halo", "hallo"], r"Unknown run or network 'hallo'\. Did you mean 'halo'\?"),
        (["halo", "halo-micro-x"], r"Unknown run or network 'halo-micro-x'\. Did you mean 'halo-micro"),
        (["halo", ","], "An empty name"),
        (["halo", "halo"], "is on two sides: there is nothing to compare"),
    ],
)
def test_names_that_do_not_work(store: Store, add: Add, names: list[str], message: str) -> None:
    add("halo", OLD)
    with pytest.raises(ValueError, match=message):
        compare(store, names)


def test_a_filter_is_not_got_around(store: Store, add: Add) -> None:
    """`swin-micro` begins an id too, of a run that the filter has just put aside."""
    add("halo", OLD, recipe_name="fashion")
    add("swin", NEW)
    with pytest.raises(ValueError, match="No finished run of swin-micro passes --scale"):
        compare(store, ["halo", "swin-micro"], recipe_name="fashion")


# What is refused


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        (
            {"data_fingerprint": "fedcba98"},
            "is of other data than halo micro (fashion_mini fedcba98, not fash",
        ),
        ({"data_name": "cats"}, "is of other data than halo micro (cats 0123456789ab, not fashion_mini"),
        (
            {"recipe_digest": "81ab"},
            "swin micro followed another recipe than halo micro (quick 81ab, not quick 3f9",
        ),
        (
            {"preprocessing": {"mean": [0.5]}},
            "swin micro was shown images prepared otherwise than halo micro",
        ),
        ({"labels": np.zeros(400, int)}, "swin micro was tested on other images than halo micro"),
    ],
    ids=["fingerprint", "data", "recipe", "preprocessing", "labels"],
)
def test_unlike_sides_are_refused_unless_forced(
    store: Store, add: Add, difference: dict[str, Any], message: str
) -> None:
    add("halo", OLD)
    add("swin", NEW, **difference)
    with pytest.raises(ValueError, match=r"^Not compared: ") as error:
        compare(store, ["halo", "swin"])
    assert message in str(error.value)
    assert str(error.value).endswith("--force goes on as far as it can.")
    found = compare(store, ["halo", "swin"], force=True)
    assert message in found.forced[0]
    [outcome] = found.outcomes
    if "labels" in difference:
        assert (outcome.test, outcome.verdict, outcome.reason) == (
            None,
            None,
            "the test images are not the same",
        )
    else:
        assert outcome.verdict == "better"


def test_another_recipe_is_told_by_its_keys(store: Store, add: Add) -> None:
    values = Recipe().values()
    other = values | {
        "optimizer": values["optimizer"] | {"lr": 0.5},
        "profile": values["profile"] | {"samples": 7},
    }
    add("halo", OLD)
    add("swin", NEW, recipe_values=other, recipe_digest="81ab")
    with pytest.raises(ValueError, match=r"not quick 3f9c21aa8b10: optimizer\.lr\)"):
        compare(store, ["halo", "swin"])


def test_other_numbers_of_images_are_refused(store: Store, add: Add) -> None:
    add("halo", OLD)
    add("swin", NEW[:399])
    with pytest.raises(ValueError, match="other images"):
        compare(store, ["halo", "swin"])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (Path.unlink, r"The predictions of swin\S+ cannot be read: .*predictions_plain\.npz: No such file"),
        (
            lambda path: path.write_bytes(b"PK"),
            r"predictions_plain\.npz is no longer the file that swin\S+ wrote",
        ),
    ],
    ids=["missing", "changed"],
)
def test_predictions_that_are_gone_or_changed_are_one_clear_line(
    store: Store, add: Add, harm: Any, message: str
) -> None:
    add("halo", OLD)
    swin = add("swin", NEW, seed=0)
    harm(store.run(swin).folder / "predictions_plain.npz")
    with pytest.raises(ValueError, match=message) as error:
        compare(store, ["halo", "swin"])
    assert "\n" not in str(error.value)
    assert compare(store, ["halo", "swin"], force=True).outcomes[0].reason == "there are no predictions"
    add("swin", NEW, seed=1)
    forced = compare(store, ["halo", "swin"], force=True)  # goes on with the seed that is there
    assert [run.seed for run in forced.sides[1].runs] == [1]
    assert forced.outcomes[0].test == Pair(5, 15, 400)


def test_a_run_that_was_not_evaluated_is_refused(store: Store, add: Add, new_run: NewRun) -> None:
    add("halo", OLD)
    run = store.create_run(dataclasses.replace(new_run, mixer="swin"))
    with pytest.raises(ValueError, match=f"{run.id} has no predictions: it was not evaluated"):
        compare(store, ["halo", run.id])


def test_a_file_that_holds_something_else_is_refused(store: Store, add: Add) -> None:
    from stmbench.record import Artifact

    halo, swin = add("halo", OLD), add("swin", NEW)
    path = store.run(swin).folder / "predictions_plain.npz"
    for content in (b"not a zip file", b""):
        path.write_bytes(content)
        store.attach(swin, Artifact("eval", "predictions", path, "weights=plain"), path.parent)
        with pytest.raises(ValueError, match="does not hold labels and five best classes"):
            compare(store, [halo, swin])


# What differs


def test_what_differs_is_named_by_topic_and_nothing_else(store: Store, add: Add) -> None:
    values = Recipe().values()
    other = values | {"profile": values["profile"] | {"samples": 7}}
    halo = add("halo", OLD, versions={"torch": "2.6.0", "timm": "1.0.16"})
    swin = add(
        "swin",
        NEW,
        seed=1,
        recipe_values=other,
        overrides=("profile.samples=7",),
        precision="bf16",
        hardware="Other CPU",
        git_commit="0123456789abcdef",
        git_dirty=True,
        versions={"torch": "2.7.0", "timm": "1.0.16"},
    )
    for run, parameters in ((halo, 4_389_672), (swin, 4_381_042)):
        store.record(run, Measurement("build", "parameters", parameters))
        store.record(run, Measurement("build", "macs", 7e8, "MACs", "height=28,width=28"))
    assert differing(compare(store, [halo, swin])) == {
        "configuration: profile.samples": ("100", "7"),
        "configuration: --set": ("", "profile.samples=7"),
        "configuration: precision": ("fp32", "bf16"),
        "seeds: seed": ("0", "1"),
        "environment: hardware": ("Some CPU (2 cores) [cpu]", "Other CPU [cpu]"),
        "environment: code": ("", "0123456789ab with uncommitted changes"),
        "environment: torch": ("2.6.0", "2.7.0"),
        "architecture: mixer": ("halo", "swin"),
        "architecture: parameters": ("4,389,672", "4,381,042"),
    }


def test_seeds_of_one_network_differ_in_their_seed(store: Store, add: Add) -> None:
    runs = [add("halo", OLD, seed=0), add("halo", NEW, seed=1)]
    assert differing(compare(store, runs)) == {"seeds: seed": ("0", "1")}


def test_a_recipe_that_does_not_know_a_key_yet_has_its_default(store: Store, add: Add) -> None:
    values = Recipe().values()
    del values["erf"], values["profile"]["control"]
    runs = [add("halo", OLD, seed=0), add("halo", NEW, seed=1, recipe_values=values)]
    assert differing(compare(store, runs)) == {"seeds: seed": ("0", "1")}


def test_unlike_runs_of_a_side_are_joined(store: Store, add: Add) -> None:
    halo = add("halo", OLD)
    for seed, precision in enumerate(("fp32", "bf16", "fp32")):
        add("swin", NEW, seed=seed, precision=precision)
    found = differing(compare(store, [halo, "swin"]))
    assert found["configuration: precision"] == ("fp32", "fp32, bf16")
    assert found["seeds: seed"] == ("0", "0, 1, 2")


def test_costs_are_compared_under_one_condition_alone(store: Store, add: Add) -> None:
    halo, swin = add("halo", OLD), add("swin", NEW)

    def put(run: str, name: str, value: float, **under: object) -> None:
        store.record(run, Measurement("profile", name, value, "ms", condition(**under)))

    put(halo, "latency", 10, batch=1, threads=2, backend="sdpa")
    put(swin, "latency", 5, batch=1, threads=2, backend="plain")  # each by its fastest way: one condition
    put(swin, "latency", 3, batch=1, threads=4)
    put(halo, "best_throughput", 100, batches="1+8", threads=2)
    put(swin, "best_throughput", 300, batches="1+64", threads=2)
    put(swin, "disturbed", 1, batch=1, threads=2)
    [latency] = compare(store, [halo, swin]).costs
    assert (latency.name, latency.condition, latency.unit) == ("latency", "batch=1,threads=2", "ms")
    assert (latency.values, latency.ratios, latency.disturbed) == ((10, 5), (1, 0.5), True)


def test_times_on_other_hardware_are_not_compared(store: Store, add: Add) -> None:
    runs = [add("halo", OLD), add("swin", NEW, hardware="Other CPU")]
    for run in runs:
        store.record(run, Measurement("profile", "latency", 10, "ms", "batch=1"))
        store.record(run, Measurement("build", "macs", 7e8, "MACs", "height=28,width=28"))
    assert [cost.name for cost in compare(store, runs).costs] == ["MACs"]


# For machines


def test_the_record_holds_everything(store: Store, add: Add) -> None:
    halo, swin, sra = add("halo", OLD), add("swin", NEW), add("sra", OLD[:9])
    for run in (halo, swin):
        store.record(run, Measurement("build", "macs", 7e8, "MACs"))
    found = json.loads(json.dumps(comparing.record(compare(store, [halo, swin, sra], force=True))))
    assert (found["reference"], found["images"]) == (halo, 400)
    assert found["forced"] == [f"{sra} was tested on other images than {halo}"]
    assert found["sides"][1] == {
        "name": swin,
        "runs": [swin],
        "seeds": [0],
        "top1": [78.75],
        "weights": ["plain"],
    }
    assert {"topic": "architecture", "name": "mixer", "values": ["halo", "swin", "sra"]} in found[
        "differences"
    ]
    assert found["costs"][0]["ratios"] == [1.0, 1.0, None]
    first, second = found["comparisons"]
    assert (first["contender"], first["verdict"], first["difference"]) == (swin, "better", 2.5)
    assert (first["only_reference"], first["only_contender"], first["coverage"]) == (5, 15, 0.95)
    assert first["p"] == first["p_holm"]
    assert first["low"] < 2.5 < first["high"]
    assert (second["verdict"], second["p"], second["reason"]) == (
        None,
        None,
        "the test images are not the same",
    )
