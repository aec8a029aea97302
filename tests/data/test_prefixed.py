"""timm's names: torchvision, Hugging Face and webdataset data sets, all of them local here."""

import importlib.util
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from samples import images_of

from stmbench import data
from stmbench.data import prefixed
from stmbench.data.images import Stream
from stmbench.recipe import Recipe


def labels_of(loader: data.Loader) -> list[int]:
    return torch.cat([labels for _, labels in loader]).tolist()


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    """The images of `folder` as webdataset shards, two for training, with the index timm reads."""
    root = tmp_path / "shards"
    root.mkdir()
    splits = {}
    for split, name, parts in (("train", "train", 2), ("val", "validation", 1)):
        paths = sorted((folder / split).rglob("*.png"))
        files = [f"{name}-{part}.tar" for part in range(parts)]
        for part, file in enumerate(files):
            with tarfile.open(root / file, "w") as tar:
                for path in paths[part::parts]:
                    key = f"{path.parent.name}_{path.stem}"
                    tar.add(path, f"{key}.png")
                    label = str(["ant", "bee", "cow"].index(path.parent.name)).encode()
                    member = tarfile.TarInfo(f"{key}.cls")
                    member.size = len(label)
                    tar.addfile(member, io.BytesIO(label))
        lengths = [len(paths[part::parts]) for part in range(parts)]
        splits[name] = {
            "name": name,
            "filenames": files,
            "shard_lengths": lengths,
            "num_samples": sum(lengths),
        }
    (root / "_info.json").write_text(json.dumps({"splits": splits}))
    return root


def test_torchvision_image_folder(folder: Path, small: Callable[..., Recipe]) -> None:
    info = data.find(f"torch/image_folder?root={folder}")
    assert (info.name, info.num_classes, info.num_train, info.num_val) == ("torch/image_folder", 3, 12, 6)
    assert info.class_names == ("ant", "bee", "cow")
    assert labels_of(data.eval_loader(info, small(), device="cpu")) == [0, 0, 1, 1, 2, 2]
    (folder / "train" / "ant" / "0.png").write_bytes(b"gone")
    images = images_of(info.source)
    assert (images[0][1], images.skipped) == (0, 1)


def test_hugging_face_folder(
    folder: Path, small: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    info = data.find(f"hfds/{folder}?root={folder.parent / 'cache'}")
    assert (info.num_classes, info.num_train, info.num_val) == (3, 12, 6)
    assert info.class_names == ("ant", "bee", "cow")
    loader = data.eval_loader(
        info, small("data.channels=3", "data.mean=[0,0,0]", "data.std=[1,1,1]"), device="cpu"
    )
    assert labels_of(loader) == [0, 0, 1, 1, 2, 2]
    plain = data.eval_loader(
        data.find(str(folder)),
        small("data.channels=3", "data.mean=[0,0,0]", "data.std=[1,1,1]"),
        device="cpu",
    )
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(loader, plain, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset(shards: Path, small: Callable[..., Recipe], workers: int) -> None:
    pytest.importorskip("webdataset")
    info = data.find(f"wds/{shards}?classes=3")
    assert (info.num_classes, info.num_train, info.num_val) == (3, 12, 6)
    recipe = small(f"data.workers={workers}")
    evaluation = data.eval_loader(info, recipe, device="cpu")
    assert isinstance(evaluation.dataset, Stream)
    assert labels_of(evaluation) == [0, 0, 1, 1, 2, 2]
    loader = data.train_loader(info, recipe, device="cpu", seed=0, micro_batch=3)
    orders = []
    for epoch in (1, 2, 1):
        loader.start(epoch)
        orders.append(labels_of(loader))
    assert sorted(orders[0]) == [0] * 4 + [1] * 4 + [2] * 4
    assert orders[0] == orders[2] != orders[1]
    loader.start(1, 2)
    assert labels_of(loader) == orders[0][6:]
    assert (loader.dataset.skipped, loader.dataset.skipped_names()) == (0, [])


def test_a_stream_over_ranks(shards: Path, small: Callable[..., Recipe]) -> None:
    pytest.importorskip("webdataset")
    info = data.find(f"wds/{shards}?classes=3")
    whole = labels_of(data.eval_loader(info, small(), device="cpu"))
    for rank in range(4):
        loader = data.eval_loader(info, small(), device="cpu", rank=rank, world=4)
        assert labels_of(loader) == whole[rank::4]
        assert len(loader) == 1

    def train(*overrides: str, world: int = 2) -> None:
        recipe = small(*overrides)
        data.train_loader(info, recipe, device="cpu", seed=0, micro_batch=3, rank=1, world=world)

    with pytest.raises(ValueError, match="is a stream, which timm deals out"):
        train()
    with pytest.raises(ValueError, match="is a stream, whose images cannot be repeated"):
        train("augment.repeats=2", world=1)


def test_webdataset_needs_its_number_of_classes(shards: Path, small: Callable[..., Recipe]) -> None:
    pytest.importorskip("webdataset")
    with pytest.raises(ValueError, match=r"add \?classes=N"):
        data.find(f"wds/{shards}")
    loader = data.eval_loader(data.find(f"wds/{shards}?classes=2"), small(), device="cpu")
    with pytest.raises(ValueError, match="has the label 2, which does not fit classes=2"):
        labels_of(loader)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixed, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'stmbench\[hf\]'"):
        data.find("hfds/cifar10")
    with pytest.raises(ValueError, match=r"pip install 'stmbench\[webdataset\]'"):
        data.find("wds/shards")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torch/image_folder", "it needs the folder of the data"),
        ("torch/image_folder?rot=/data", r"Unknown data option 'rot'\. Did you mean 'root'\?"),
        ("torch/image_folder?root=/data&classes=ten", "classes must be a number, not 'ten'"),
        ("torch/no_such_set?root=/data", "timm cannot open .* Unknown torchvision dataset no_such_set"),
        ("torch/cifar10?root=/nowhere", "timm cannot open .* Dataset not found or corrupted"),
    ],
)
def test_mistakes_are_one_clear_line(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        data.find(source)
    assert "\n" not in str(caught.value)


def test_every_prefix_says_what_it_needs() -> None:
    assert set(prefixed.STREAMS) < set(prefixed.NEEDS)
    assert importlib.util.find_spec(prefixed.NEEDS["torch"][0]) is not None
