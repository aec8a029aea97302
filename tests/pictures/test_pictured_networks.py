"""Which networks stand in a picture together, and what they are called there."""

from collections.abc import Callable

import pytest

from stmbench.pictures.networks import Group, counts, groups, origin, seeds
from stmbench.store import RunRecord, Store

Add = Callable[..., RunRecord]


def grouped(store: Store, condition: str = "size=28") -> list[Group[str]]:
    """All runs of the database, each of which found its own id."""
    return groups((run, condition, run.id) for run in store.runs())


def names(group: Group[str]) -> list[str]:
    return [network.name for network in group.networks]


@pytest.mark.parametrize(
    "other",
    [
        {"recipe_name": "fashion"},
        {"recipe_digest": "000000000000"},
        {"data_name": "other"},
        {"data_fingerprint": "0"},
    ],
)
def test_what_may_not_be_compared_stands_in_another_picture(store: Store, add: Add, other: dict) -> None:
    add(mixer="halo")
    add(mixer="swin", **other)
    assert sorted(map(names, grouped(store))) == [["halo"], ["swin"]]


def test_conditions_are_not_mixed(store: Store, add: Add) -> None:
    runs = [add(mixer="halo"), add(mixer="swin")]
    found = groups((run, f"size={28 * (i + 1)}", i) for i, run in enumerate(runs))
    assert [group.shared.condition for group in found] == ["size=28", "size=56"]


def test_the_newest_run_of_a_seed_counts(store: Store, add: Add) -> None:
    first, _, last = add(seed=1), add(seed=0), add(seed=1)
    ((network,),) = [group.networks for group in grouped(store)]
    assert list(network.seeds) == [0, 1]
    assert network.seeds[1] == last.id != first.id


def test_networks_stand_in_the_catalogues_order(store: Store, add: Add) -> None:
    for mixer in ("timm:resnet18", "identity", "swin", "halo"):
        add(mixer=mixer)
    (group,) = grouped(store)
    assert names(group) == ["halo", "swin", "identity", "timm:resnet18"]
    assert group.scale == "micro"


def test_scales_are_named_where_they_differ(store: Store, add: Add) -> None:
    add(mixer="halo", scale="tiny")
    add(mixer="halo", scale="micro")
    add(mixer="swin", scale="tiny")
    (group,) = grouped(store)
    assert names(group) == ["halo micro", "halo tiny", "swin tiny"]
    assert group.scale == ""


def test_other_weights_and_backends_are_other_networks(store: Store, add: Add) -> None:
    add(backend="plain")
    add(weights="some/w.pth", weights_sha256="1")
    add()
    (group,) = grouped(store)
    assert names(group) == ["halo", "halo (plain)", "halo from w.pth"]


def test_one_name_for_two_networks_is_told_apart(store: Store, add: Add) -> None:
    runs: list[RunRecord] = [add(weights="w.pth", weights_sha256=sha) for sha in ("1", "2")]
    (group,) = grouped(store)
    assert sorted(names(group)) == sorted(f"halo from w.pth ({run.id})" for run in runs)


def test_a_caption_says_what_the_numbers_are_of(store: Store, add: Add) -> None:
    for seed in (0, 1):
        add(seed=seed)
    (group,) = grouped(store)
    assert origin(group, {2000.0}) == (
        "Data fashion_mini (0123456789ab), recipe quick (3f9c21aa8b10), scale micro, "
        "n = 2,000 images, seeds 0, 1."
    )


def test_words_for_counts_and_seeds() -> None:
    assert counts([500]) == "500"
    assert counts({2000, 1998}) == "1,998 to 2,000"
    assert seeds({"halo": [3], "swin": [3]}) == "seed 3"
    assert seeds({"halo": [0, 1], "swin": [0]}) == "seeds 0, 1 (halo), 0 (swin)"
