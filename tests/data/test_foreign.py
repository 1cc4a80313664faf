"""Data sets of other libraries, read as ours."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

import bmft
from bmft.errors import ConfigError, DataError


def picture(value, size=(8, 8)):
    return Image.fromarray(np.full((*size, 3), value, np.uint8))


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def dicts(n=8, size=(8, 8)):
    return Items(
        [
            {
                "image": picture(10 * i, size),
                "ill": i % 2,
                "sex": "fm"[i // 2 % 2],
                "age": 30.0 + 10 * i,
                "patient": f"p{i}",
            }
            for i in range(n)
        ]
    )


def test_a_data_set_of_dicts_is_read_by_the_names_of_its_parts():
    data = bmft.from_dataset(dicts(), target="ill", sensitive=["sex", "age:60"], cluster="patient", normalize="none")
    assert data.targets.tolist() == [0, 1] * 4
    assert data.groups[:, 0].tolist() == [0, 0, 1, 1] * 2
    assert data.groups[:, 1].tolist() == [0] * 3 + [1] * 5
    assert len(set(data.clusters.tolist())) == 8
    np.testing.assert_allclose(data.inputs(slice(0, 8))[:, 0, 0, 0], np.arange(8) * 10 / 255, atol=1e-6)


def test_images_become_what_a_manifest_s_become(tmp_path):
    items = dicts(size=(12, 9))
    rows = []
    for i, item in enumerate(items.items):
        item["image"].save(tmp_path / f"{i}.png")
        rows.append({"path": f"{i}.png", "ill": item["ill"], "sex": item["sex"]})
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    ours = bmft.load_manifest(tmp_path / "m.csv", target="ill", sensitive="sex", image_size=8)
    theirs = bmft.from_dataset(items, target="ill", sensitive="sex", image_size=8)
    assert torch.equal(ours.inputs(slice(0, 8)), theirs.inputs(slice(0, 8)))
    assert [one.value for one in ours.assumed if one.subject == "pixels"] == [
        one.value for one in theirs.assumed if one.subject == "pixels"
    ]


def test_tuples_are_read_by_place_and_loaders_in_their_data_set_s_order():
    items = Items([(torch.full((3,), float(i)), i % 2, i // 2 % 2) for i in range(8)])
    data = bmft.from_dataset(DataLoader(items, shuffle=True, batch_size=3), target=1, sensitive=2)
    assert data.inputs(slice(0, 8))[:, 0].tolist() == list(range(8))
    assert data.targets.tolist() == [0, 1] * 4


@pytest.fixture
def folder(tmp_path):
    for number in range(8):
        path = tmp_path / "images" / ("benign", "malignant")[number % 2] / f"case{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    people = pd.DataFrame({"id": [f"case{i}" for i in range(8)], "sex": ["f", "f", "m", "m"] * 2})
    people.to_csv(tmp_path / "people.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("part", [None, [7, 0, 3, 2]])
def test_an_image_folder_takes_its_people_from_a_table(folder, part):
    whole = ImageFolder(str(folder / "images"), transform=transforms.ToTensor())
    taken = list(range(8)) if part is None else part
    data = bmft.from_dataset(
        whole if part is None else Subset(whole, part),
        target=1,
        sensitive="sex",
        people=folder / "people.csv",
        positive="malignant",
    )
    assert data.classes == ("benign", "malignant")
    assert data.targets.tolist() == [whole.targets[i] for i in taken]
    number = [int(whole.samples[i][0].rsplit("case")[-1][:-4]) for i in taken]
    assert data.groups[:, 0].tolist() == [n // 2 % 2 for n in number]
    assert torch.equal(data.inputs(slice(0, 1))[0], whole[taken[0]][0])


class Module:
    """What a LightningDataModule looks like from outside."""

    def __init__(self, **loaders):
        self.log, self.loaders = [], loaders

    def prepare_data(self):
        self.log.append("prepared")

    def setup(self, stage):
        self.log.append(stage)
        self.ready = True

    def train_dataloader(self):
        assert self.ready
        return DataLoader(self.loaders["train"], batch_size=2, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.loaders["val"], batch_size=2)


def tabular(n, seed):
    rng = np.random.default_rng(seed)
    items = [
        {"x": torch.tensor(rng.normal(size=4) + i % 2, dtype=torch.float32), "ill": i % 2, "sex": "fm"[i // 2 % 2]}
        for i in range(n)
    ]
    return Items(items)


def test_the_loaders_of_a_module_are_fit_and_select_of_a_debiasing():
    module = Module(train=tabular(80, 0), val=tabular(80, 1))
    sets = bmft.from_datamodule(module, target="ill", sensitive="sex")
    assert list(sets) == ["fit", "select"]
    assert module.log == ["prepared", "fit"]
    model = nn.Linear(4, 1)
    nn.init.ones_(model.weight)
    nn.init.constant_(model.bias, -2.0)
    outcome = bmft.debias(model, **sets, method="head", config={"epochs": 1}, device="cpu", keep="last")
    assert outcome.before.n == 80


def test_a_module_without_a_val_loader_says_so():
    class Missing:
        train_dataloader = Module.train_dataloader

    with pytest.raises(ConfigError, match="Missing has no val_dataloader"):
        bmft.from_datamodule(Missing(), target="ill", sensitive="sex")


def test_lightning_s_own_module_is_read():
    lightning = pytest.importorskip("lightning", reason="needs lightning")

    class Own(lightning.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(tabular(12, 0), batch_size=4, shuffle=True)

        def val_dataloader(self):
            return DataLoader(tabular(8, 1), batch_size=4)

    sets = bmft.from_datamodule(Own(), target="ill", sensitive="sex")
    assert {name: len(part) for name, part in sets.items()} == {"fit": 12, "select": 8}


def test_a_hugging_face_data_set_keeps_its_class_names():
    datasets = pytest.importorskip("datasets", reason="needs the Hugging Face datasets library")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["no", "yes"]), sex=datasets.Value("string")
    )
    rows = {"image": [picture(i) for i in range(4)], "label": [0, 1, 0, 1], "sex": ["f", "f", "m", "m"]}
    data = bmft.from_dataset(
        datasets.Dataset.from_dict(rows, features=features), target="label", sensitive="sex", positive="yes"
    )
    assert data.classes == ("no", "yes")
    assert data.targets.tolist() == [0, 1, 0, 1]
    assert data.inputs(slice(0, 1)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("items", "options", "error", "message"),
    [
        (Items([]), {}, DataError, "no items"),
        (Items([3]), {}, DataError, "item 0 is a int: expected a dict or a tuple"),
        (dicts(), {"inputs": "picture"}, ConfigError, "an item has image, ill, sex"),
        (dicts(), {"target": "il"}, DataError, "Did you mean 'ill'"),
        (dicts(), {"sensitive": "gender"}, DataError, "gender"),
        (Items([{"ill": 0, "sex": "f"}]), {}, ConfigError, "no part could be the inputs"),
        (Items([{"a": torch.ones(2), "b": torch.ones(2)}]), {}, ConfigError, "several parts"),
        (Items([*dicts().items, {**dicts().items[0], "image": picture(1, (4, 4))}]), {}, DataError, "image_size=N"),
    ],
)
def test_what_cannot_be_read_says_why(items, options, error, message):
    with pytest.raises(error, match=message):
        bmft.from_dataset(items, **{"target": "ill", "sensitive": "sex", **options})
