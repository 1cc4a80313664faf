"""docs/recipes.md, run as it stands: what you have, the commands, and loading the result by its own library."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image

from benchmarks import forms
from bmft.checkpoints import build_from, read_checkpoint
from bmft.models import forward_logits
from bmft_cli.main import main
from tests.tiers import in_ci

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
TOML = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1]
# Tiny and untrained networks, few rows: a threshold of one half may have all of them on one side.
QUICK = 'image-size = 32\n[debias]\nthreshold-from = "select"\nepochs = 1\nkeep = "last"\n'
SECTIONS = {name: text for name, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S) if "```" in text}


def some_model(folder):
    return {"model": torchvision.models.shufflenet_v2_x0_5(num_classes=2)}


def timm_model(folder):
    return {"timm": pytest.importorskip("timm"), "model": forms.small_timm("convnext_atto")}


def hugging_face(folder):
    transformers = pytest.importorskip("transformers")
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return {"transformers": transformers, "model": forms.hf_model("ViT"), "processor": processor}


def adapter(folder):
    peft, names = pytest.importorskip("peft"), hugging_face(folder)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], init_lora_weights=False
    )
    base = names["transformers"].AutoModelForImageClassification.from_pretrained(forms.hf_folder("ViT", folder))
    return names | {"peft_model": peft.get_peft_model(base, config)}


def lightning_parts(folder):
    lightning = pytest.importorskip("lightning")
    data = torch.utils.data.TensorDataset(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", default_root_dir=folder, max_steps=1, **quiet)
    return {"trainer": trainer, "loader": torch.utils.data.DataLoader(data, 2)}


def monai_model(folder):
    return {"monai": pytest.importorskip("monai"), "model": forms._densenet()}


def xray_model(folder):
    pytest.importorskip("torchxrayvision")
    model = forms.xray_net()
    model(2048 * torch.rand(32, 1, 32, 32) - 1024)  # its normalization gets to know such pixels
    return {"model": model.eval()}


def open_clip_there(folder):
    pytest.importorskip("open_clip")
    return {}


def fastai_learner(folder):
    pytest.importorskip("fastai.learner")
    return {"fastai": sys.modules["fastai"], "learn": forms.fastai_learner(folder)}


def yolo(folder):
    ultralytics = pytest.importorskip("ultralytics")
    return {"ultralytics": ultralytics, "yolo": ultralytics.YOLO(forms.yolo_saved(folder))}


def for_deployment(folder):
    runtime = pytest.importorskip("onnxruntime")
    torch.save(some_model(folder)["model"].state_dict(), folder / "model.pth")
    table = pd.read_csv(folder / "isic.csv").query("split == 'test'")
    pixels = np.stack([np.asarray(Image.open(folder / path)) for path in table["path"]])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return {"onnxruntime": runtime, "np": np, "table": table, "images": images}


# What each recipe starts from, small, and the channels of its images.
START = {
    "PyTorch and torchvision": (some_model, 3),
    "A network of your own": (lambda folder: {}, 3),
    "A network of an image and a table": (lambda folder: {}, 3),
    "timm": (timm_model, 3),
    "Hugging Face transformers": (hugging_face, 3),
    "PEFT": (adapter, 3),
    "Lightning": (lightning_parts, 3),
    "MONAI": (monai_model, 1),
    "torchxrayvision": (xray_model, 1),
    "open_clip": (open_clip_there, 3),
    "fastai": (fastai_learner, 3),
    "Ultralytics": (yolo, 3),
    "ONNX and TorchScript": (for_deployment, 3),
}


PLAIN = "PyTorch and torchvision"
OTHERWISE = ("A network of an image and a table", "ONNX and TorchScript")


def write_study(folder, channels):
    """Noise as images of two groups, each row a patient."""
    rng = np.random.default_rng(0)
    (folder / "img").mkdir()
    labels, groups = rng.integers(0, 2, (2, 96))
    for row, pixels in enumerate(rng.integers(0, 200, (96, 32, 32, channels), dtype=np.uint8)):
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(folder / "img" / f"{row}.png")
    table = {"path": [f"img/{row}.png" for row in range(96)], "malignant": labels}
    table |= {"sex": np.array(["female", "male"])[groups], "patient_id": range(96)}
    table |= {"age": rng.normal(62, 14, 96).round(), "smoker": np.where(rng.random(96) < 0.5, "yes", "no")}
    table |= {"site": np.array(["head", "trunk", "limb"])[rng.integers(0, 3, 96)]}
    pd.DataFrame(table | {"split": np.repeat(["fit", "select", "test"], 32)}).to_csv(folder / "isic.csv", index=False)


@pytest.fixture
def folder(tmp_path, monkeypatch, few_steps):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bmft.toml").write_text(TOML + QUICK)
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def run(section, names):
    """Every block of a section, in its order; a block that names a file becomes it. Gives the commands."""
    commands = []
    for language, text in re.findall(r"```(python|console)\n(.*?)```", section, re.S):
        named = re.match(r"# (\w+\.py)\n", text)
        if named:
            Path(named[1]).write_text(text)
            sys.modules.pop(Path(named[1]).stem, None)  # another test's file of that name
        elif language == "python":
            exec(compile(text, "recipes.md", "exec"), names)
        else:
            for line in text.splitlines():
                commands.append(shlex.split(line.removeprefix("$ bmft ")))
                assert main(commands[-1]) == 0, line
    return commands


def answers(path, options, images):
    """What bmft makes of a checkpoint, told the same."""
    arch = options[options.index("--arch") + 1] if "--arch" in options else None
    model = build_from(read_checkpoint(path, trust_pickle="--trust-pickle" in options), arch=arch)
    return forward_logits(model, images)


@pytest.mark.parametrize("name", [PLAIN, *in_ci(*(name for name in START if name not in (PLAIN, *OTHERWISE)))])
@pytest.mark.filterwarnings("ignore")  # what libraries warn of is theirs
def test_a_recipe_gives_back_a_debiased_model_of_its_library(name, folder):
    make, channels = START[name]
    write_study(folder, channels)
    torch.manual_seed(0)
    names = {"torch": torch, **make(folder)}
    *_, (_, given, *options) = run(SECTIONS[name], names)
    images = torch.rand(4, channels, 32, 32)
    with torch.no_grad():
        theirs = forward_logits(names["model"].eval(), images)
        before, after = (answers(path, options, images) for path in (given, options[options.index("--out") + 1]))
    torch.testing.assert_close(theirs, after, atol=1e-5, rtol=1e-4)
    assert not torch.equal(before, after)


def test_a_network_of_an_image_and_a_table_is_debiased_and_audited_with_what_is_recorded(folder, capsys):
    name = "A network of an image and a table"
    write_study(folder, 3)
    torch.manual_seed(0)
    names = {"torch": torch}
    run(SECTIONS[name], names)
    assert "from the checkpoint's record" in capsys.readouterr().err
    before = torch.load("model.pt")["model"]
    assert any(not torch.equal(value, before[key]) for key, value in names["model"].state_dict().items())


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore")
def test_what_a_deployed_file_says_is_audited_as_predictions(folder, capsys):
    write_study(folder, 3)
    torch.manual_seed(0)
    run(SECTIONS["ONNX and TorchScript"], {"torch": torch, **for_deployment(folder)})
    assert "male" in capsys.readouterr().out
    assert len(pd.read_csv("predictions.csv")) == 32


def test_every_recipe_of_the_page_is_run():
    assert list(SECTIONS) == list(START)
