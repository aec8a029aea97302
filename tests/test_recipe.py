"""Recipes are strict, hashed by value, and the shipped ones say what they promise."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from stmbench import recipe

PLAIN = """
stages = ["build", "train"]
[optimizer]
lr = 0.002
betas = [0.9, 0.95]
[data]
channels = 1
mean = [0.5]
std = [0.5]
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "mine.toml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_recipe_is_what_its_file_says(write: Any) -> None:
    mine = recipe.load(write(PLAIN))
    assert (mine.name, mine.stages, mine.optimizer.betas) == ("mine", ("build", "train"), (0.9, 0.95))
    assert mine.schedule == recipe.Schedule()
    with pytest.raises(FrozenInstanceError):
        mine.optimizer.lr = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimzer]\nlr = 1.0", r"Unknown key 'optimzer'\. Did you mean 'optimizer'\?"),
        ("[optimizer]\nlearnrate = 1", r"Unknown key 'optimizer\.learnrate'"),
        ("[data]\nimagesize = 1", r"Unknown key 'data\.imagesize'\. Did you mean 'data\.image_size'\?"),
        ("[optimizer]\nlr = 'high'", r"optimizer\.lr must be .*, not 'high'"),
        ("[schedule]\nepochs = 1.5", r"schedule\.epochs must be .*, not 1\.5"),
        ("[train]\ncompile = 1", r"train\.compile must be .*, not 1"),
        ("[train]\nbatch_size = true", r"train\.batch_size must be .*, not True"),
        ("[data]\nchannels = 2", r"data\.channels must be one of 1, 3, not 2"),
        ("[data]\nchannels = true", r"data\.channels must be one of 1, 3, not True"),
        ("[data]\nmean = 0.5", r"data\.mean must be .*, not 0\.5"),
        ("[data]\nmean = [0.5]", r"data\.mean needs 3 values"),
        ("[optimizer]\nbetas = [0.9]", r"optimizer\.betas must have 2 values, not 1"),
        ("[optimizer]\nbetas = [0.9, 'x']", r"optimizer\.betas must be .*, not 'x'"),
        ("data = 3", r"data must be a \[section\], not 3"),
        ("[data]\ncrop_pct = 0", r"data\.crop_pct must be at least 0\.01, not 0"),
        ("[augment]\nhflip = 2", r"augment\.hflip must be from 0 to 1, not 2"),
        ("[augment]\nscale = [1.0, 0.5]", r"augment\.scale must be \[low, high\], not \[1\.0, 0\.5\]"),
        ("[data]\ninterpolation = 'cubic'", r"data\.interpolation must be one of .*'bicubic'.*, not 'cubic'"),
        ("[schedule]\nepochs = 0", r"schedule\.epochs must be at least 1, not 0"),
        ("[profile]\nprecisions = []", r"profile\.precisions is empty"),
        ("[invariance]\njpeg = [90, 101]", r"invariance\.jpeg must be at most 100, not 101"),
        ("[data]\nworkers = -2", r"data\.workers must be at least -1, not -2"),
        ("[augment]\nrepeats = 0", r"augment\.repeats must be at least 1, not 0"),
        ("[augment]\nrepeats = 3\n[train]\nbatch_size = 5", r"augment\.repeats 3 leaves a batch of 5"),
        ("[profile]\nbatch_sizes = [0]", r"profile\.batch_sizes must be at least 1, not 0"),
        ("[train", "is not valid TOML"),
    ],
)
def test_mistakes_are_named(write: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        recipe.load(write(text))
    assert "mine" in str(caught.value)


def test_an_unknown_stage_names_the_nearest(write: Any) -> None:
    with pytest.raises(ValueError, match=r"Unknown stage 'tain'\. Did you mean 'train'\?"):
        recipe.load(write("stages = ['tain']"))


def test_a_missing_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown recipe 'quik'\. Did you mean 'quick'\?"):
        recipe.load("quik")
    with pytest.raises(ValueError, match="No recipe file at"):
        recipe.load(str(tmp_path / "none.toml"))


def test_overrides_take_toml_values_and_bare_words(write: Any) -> None:
    mine = recipe.load(
        write(PLAIN),
        [
            "optimizer.lr=1e-4",
            "optimizer.name=sgd",
            "train.compile=true",
            "augment.scale=[0.5, 1]",
            'stages=["eval"]',
        ],
    )
    assert (mine.optimizer.lr, mine.optimizer.name, mine.optimizer.betas) == (1e-4, "sgd", (0.9, 0.95))
    assert (mine.train.compile, mine.augment.scale, mine.stages) == (True, (0.5, 1.0), ("eval",))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr", "--set takes section.key=value"),
        ("lr=1", "--set takes section.key=value"),
        ("optimzer.lr=1", "Did you mean 'optimizer'"),
        ("optimizer.rl=1", r"Unknown key 'optimizer\.rl'"),
        ("optimizer.lr=fast", "not 'fast'"),
    ],
)
def test_overrides_are_as_strict_as_the_file(write: Any, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe.load(write(PLAIN), [override])


def test_the_digest_sees_values_not_their_form(write: Any) -> None:
    digest = recipe.load(write(PLAIN)).digest
    reordered = """
        # another comment
        data = {std = [0.5], mean = [0.5], channels = 1, image_size = 224}
        optimizer.betas = [9e-1, 0.95]
        optimizer.lr = 2e-3
        stages = ["build", "train"]
    """
    assert recipe.load(write(reordered, "other.toml")).digest == digest
    assert recipe.from_values(recipe.load(write(PLAIN)).values(), "again").digest == digest
    assert len(digest) == 12
    assert int(digest, 16) >= 0


def test_a_whole_number_is_the_same_float(write: Any) -> None:
    text = "[augment]\nhflip = {0}\n[optimizer]\nclip_grad = {0}"
    a, b = (recipe.load(write(text.format(number))) for number in ("1", "1.0"))
    assert a.digest == b.digest


@pytest.mark.parametrize(
    "override",
    ["optimizer.lr=0.003", "augment.repeats=3", "train.compile=true", "model.drop_path=0.1"],
)
def test_the_digest_sees_every_value(write: Any, override: str) -> None:
    path = write(PLAIN)
    assert recipe.load(path, [override]).digest != recipe.load(path).digest


@pytest.mark.parametrize(
    "override",
    [
        "profile.samples=7",
        "train.checkpointing=true",
        "data.workers=9",
        "data.cache=none",
        'stages=["train"]',
        "erf.images=7",
        "invariance.rotation=[0, 90]",
        'robustness.a="/somewhere"',
    ],
)
def test_the_digest_is_blind_to_what_decides_no_result(write: Any, override: str) -> None:
    path = write(PLAIN)
    assert recipe.load(path, [override]).digest == recipe.load(path).digest


def test_the_digest_stays_what_it_is() -> None:
    """Old results keep their recipe's identity: change this only with the meaning of a default."""
    assert recipe.Recipe().digest == "24c598476414"


@pytest.mark.parametrize("name", ["quick", "fashion", "imagenet_attention", "imagenet_conv"])
def test_a_shipped_recipe_keeps_its_form(name: str) -> None:
    shipped = recipe.load(name)
    promise = recipe.promise(recipe.find(name))
    assert name in recipe.names()
    assert "stmbench run --mixer " in promise
    assert name == "quick" or f"--recipe {name}" in promise
    assert all(word in promise for word in ("arXiv:", "Hardware", "Expected"))
    assert shipped.stages == ("build", "train", "eval", "profile", "erf", "invariance")


def test_the_published_protocols() -> None:
    attention, conv = recipe.load("imagenet_attention"), recipe.load("imagenet_conv")
    assert (attention.augment, attention.data) == (conv.augment, conv.data)
    assert (attention.train.batch_size, conv.train.batch_size) == (1024, 4096)
    assert (attention.optimizer.lr, conv.optimizer.lr) == (1e-3, 4e-3)
    assert (attention.schedule.warmup_lr, attention.schedule.min_lr) == (1e-6, 1e-5)
    assert (conv.schedule.warmup_lr, conv.schedule.min_lr) == (0.0, 1e-6)
    for published in (attention, conv):
        assert (published.schedule.epochs, published.schedule.warmup_epochs) == (300, 20)
        assert (published.optimizer.weight_decay, published.optimizer.clip_grad) == (0.05, 5.0)
        assert published.augment.auto_augment == "rand-m9-mstd0.5-inc1"
        assert (published.train.ema_decay, published.data.crop_pct) == (0.9999, 0.875)
        assert published.model.drop_path is None
        assert published.optimizer.decay_positions == ("halo", "sra")
        assert published.optimizer.decay_layer_scales == ("halo", "dwconv")


def test_the_published_protocols_of_the_large_data_set_and_the_large_images() -> None:
    for kind, rates, batch in (("attention", (1e-3, 4e-5), 1024), ("conv", (4e-3, 5e-5), 512)):
        first, second = (recipe.load(f"imagenet{step}_{kind}") for step in ("21k", "384"))
        assert (first.optimizer.lr, second.optimizer.lr) == rates
        assert (first.train.batch_size, second.train.batch_size) == (4096, batch)
        assert (first.schedule.epochs, second.schedule.epochs) == (90, 30)
        assert (first.data.image_size, second.data.image_size) == (192, 384)
        assert (first.optimizer.weight_decay, second.optimizer.weight_decay) == (0.05, 1e-8)
        assert (first.train.ema_decay, second.train.ema_decay) == (0, 0)
        assert (first.model.window, second.model.window) == (0, 12 if kind == "attention" else 0)
        assert first.augment == second.augment == recipe.load(f"imagenet_{kind}").augment
        for each in (first, second):
            promise = recipe.promise(recipe.find(each.name))
            assert f"--recipe {each.name}" in promise
            assert all(word in promise for word in ("arXiv:", "Hardware", "not measured yet"))


def test_the_fair_recipe_differs_from_the_published_ones_in_their_confounds_alone() -> None:
    fair, attention, conv = (recipe.load(f"imagenet_{name}") for name in ("fair", "attention", "conv"))
    rules = {
        "model.drop_path": ("null", "0.2"),
        "optimizer.decay_positions": ('["halo", "sra"]', "[]"),
        "optimizer.decay_layer_scales": ('["halo", "dwconv"]', "[]"),
    }
    assert recipe.differences(attention, fair) == rules
    confounds = {"train.batch_size", "optimizer.lr", "schedule.warmup_lr", "schedule.min_lr"}
    assert set(recipe.differences(conv, fair)) == confounds | set(rules)
    per_image = [each.optimizer.lr / each.train.batch_size for each in (attention, conv)]
    assert per_image[0] == pytest.approx(per_image[1])


def test_recipes_that_are_the_same_differ_in_nothing() -> None:
    assert recipe.differences(recipe.load("quick"), recipe.load("quick", ["optimizer.lr=0.5"])).keys() == {
        "optimizer.lr"
    }
    assert recipe.differences(recipe.load("quick"), recipe.load("quick")) == {}
