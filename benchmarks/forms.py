"""Every form of checkpoint, made small by its own library, through bmft and back: python -m benchmarks.forms [TEXT]

Only forms whose name has the text; a library that is not installed is a dash. `tests/test_forms.py` runs the same.
"""

import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.common import footer, table
from benchmarks.roundtrip import COLUMNS, SIZE, Form, through

_TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIZE,
    "patch_size": 8,
}
_HF: dict[str, dict[str, Any]] = {
    "ViT": _TRANSFORMER,
    "DeiT": _TRANSFORMER,
    "Beit": _TRANSFORMER,
    "Dinov2": {key: value for key, value in _TRANSFORMER.items() if key != "intermediate_size"},
    "Swin": {
        "image_size": SIZE,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "ConvNext": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "ConvNextV2": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "Siglip": {"vision_config": _TRANSFORMER},
    "CLIP": {"vision_config": _TRANSFORMER, "text_config": {"bos_token_id": 0, "eos_token_id": 1}},
}


def hf_model(kind: str) -> Any:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**_HF[kind], id2label={0: "0", 1: "1"}, label2id={"0": 0, "1": 1})
    return getattr(transformers, f"{kind}ForImageClassification")(config)


def hf_folder(kind: str, folder: Path, **saving: Any) -> Path:
    from transformers import ViTImageProcessor

    path = folder / kind.lower()
    hf_model(kind).save_pretrained(path, **saving)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(path)
    return path


def hf_trainer(folder: Path) -> Path:
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainingArguments

    class Images(Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, row: int) -> dict[str, Any]:
            return {"pixel_values": torch.rand(3, SIZE, SIZE), "labels": row % 2}

    options = {"max_steps": 1, "save_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    arguments = TrainingArguments(str(folder / "run"), **options)  # type: ignore[arg-type,unused-ignore]
    Trainer(hf_model("ViT"), arguments, train_dataset=Images()).train()
    return folder / "run" / "checkpoint-1"


def hf_adapter(folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageClassification

    base = hf_folder("ViT", folder)
    config = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], init_lora_weights=False
    )
    get_peft_model(AutoModelForImageClassification.from_pretrained(base), config).save_pretrained(folder / "adapter")
    return folder / "adapter"


def hf_load(path: Path) -> Callable[[Tensor], Tensor]:
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32).eval()
    return lambda images: model(images).logits  # type: ignore[no-any-return]


def timm_hub(name: str, folder: Path, **options: Any) -> Path:
    import timm

    model = timm.create_model(name, num_classes=2, **options)
    timm.models.save_for_hf(model, folder / "hub", model_config={"label_names": ["0", "1"]}, safe_serialization="both")
    return folder / "hub"


def timm_hub_load(path: Path) -> nn.Module:
    import timm

    return timm.create_model(f"local-dir:{path}", pretrained=True).eval()  # type: ignore[no-any-return]


def timm_train(name: str, folder: Path, **options: Any) -> Path:
    """What timm's train.py keeps: the model, its average, the optimizer and the arguments."""
    import timm

    model = timm.create_model(name, num_classes=2, **options)
    arguments = Namespace(model=name, num_classes=2, gp=None, bn_eps=None, in_chans=None, model_kwargs=options, lr=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    average = timm.utils.ModelEmaV3(model)
    saver = timm.utils.CheckpointSaver(model, optimizer, arguments, average, checkpoint_dir=folder, recovery_dir=folder)
    saver.save_checkpoint(0, 0.5)
    return folder / "last.pth.tar"


def timm_load(name: str, path: Path, **options: Any) -> nn.Module:
    import timm

    model = timm.create_model(name, num_classes=2, **options)
    timm.models.load_checkpoint(model, path)
    return model.eval()  # type: ignore[no-any-return]


def bare(make: Callable[[], nn.Module], folder: Path) -> Path:
    """A state dict and nothing else."""
    torch.save(make().state_dict(), folder / "model.pth")
    return folder / "model.pth"


def strictly(make: Callable[[], nn.Module], path: Path) -> nn.Module:
    """The user's own loading: ``load_state_dict``, strict."""
    model = make()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def grey_resnet() -> nn.Module:
    model = torchvision.models.resnet18()
    model.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    model.fc = nn.Sequential(nn.Dropout(), nn.Linear(512, 2))
    return model


def deeper_head() -> nn.Module:
    model = torchvision.models.mobilenet_v3_small()
    model.classifier = nn.Sequential(nn.Linear(576, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 2))
    return model


def small_timm(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=2, **options)  # type: ignore[no-any-return]


def monai_net(name: str, *arguments: Any, **options: Any) -> nn.Module:
    from monai.networks import nets

    return getattr(nets, name)(*arguments, **options)  # type: ignore[no-any-return]


def monai_vit() -> nn.Module:
    return monai_net("ViT", in_channels=3, classification=True, spatial_dims=2, **_VIT)


def first_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda images: model(images)[0]  # type: ignore[no-any-return]


def monai_saver(folder: Path) -> Path:
    """What MONAI's CheckpointSaver keeps of a network and its optimizer at the end."""
    from ignite.engine import Engine
    from monai.handlers import CheckpointSaver

    network = _densenet()
    engine = Engine(lambda *_: None)
    kept = {"net": network, "opt": torch.optim.SGD(network.parameters(), lr=0.1)}
    CheckpointSaver(str(folder), kept, save_final=True, final_filename="model.pt").attach(engine)
    engine.run([0], max_epochs=1)
    return folder / "model.pt"


def monai_saver_load(path: Path) -> nn.Module:
    network = _densenet()
    network.load_state_dict(torch.load(path, weights_only=True)["net"])
    return network.eval()


_BUNDLE = {
    "spatial_dims": 2,
    "network_def": {
        "_target_": "DenseNet121",
        "spatial_dims": "@spatial_dims",
        "in_channels": 1,
        "out_channels": 2,
        "init_features": 16,
        "growth_rate": 8,
        "block_config": [1, 1, 1, 1],
    },
    "network": "$@network_def.to('cpu')",
}


def monai_bundle(folder: Path) -> Path:
    from monai.bundle import ConfigParser

    bundle = folder / "bundle"
    for name in ("configs", "models"):
        (bundle / name).mkdir(parents=True)
    (bundle / "configs" / "inference.json").write_text(json.dumps(_BUNDLE))
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0", "task": "classification"}))
    network = ConfigParser(_BUNDLE).get_parsed_content("network_def")
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    return bundle


def monai_bundle_load(path: Path) -> nn.Module:
    from monai.bundle import load

    found: nn.Module = load(
        name=path.name, bundle_dir=str(path.parent), source="monaihosting", workflow_type="inference"
    )
    return found.eval()


def xray_net(**options: Any) -> nn.Module:
    import torchxrayvision

    return torchxrayvision.models.DenseNet(**{"num_classes": 2, **_SMALL_XRAY, **options})  # type: ignore[no-any-return]


_LIGHTNING = """
import torch
import lightning
from torch import nn

class Lit(lightning.LightningModule):
    def __init__(self, width: int, num_classes: int = 2, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, num_classes),
        )

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

class Own(Lit):
    def __init__(self, width: int, num_classes: int = 2, lr: float = 0.1):
        super().__init__(width, num_classes, lr)
        self.net = None
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3))
        self.classifier = nn.Linear(8, num_classes)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(num_classes))

    def forward(self, images):
        return self.classifier(self.backbone(images).mean((2, 3)))
"""


def lit_class(folder: Path, name: str) -> Any:
    from bmft.models import found_function

    return found_function(f"{folder}/lit.py:{name}")


def lightning_checkpoint(name: str, folder: Path) -> Path:
    import lightning

    (folder / "lit.py").write_text(_LIGHTNING)
    data = torch.utils.data.TensorDataset(torch.rand(4, 3, SIZE, SIZE), torch.tensor([0, 1, 0, 1]))
    options = {"max_steps": 1, "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(accelerator="cpu", default_root_dir=folder, **options)  # type: ignore[arg-type,unused-ignore]
    trainer.fit(lit_class(folder, name)(6), torch.utils.data.DataLoader(data, 2))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def lightning_load(name: str, path: Path) -> nn.Module:
    return lit_class(path.parent, name).load_from_checkpoint(path, map_location="cpu").eval()  # type: ignore[no-any-return]


def fastai_learner(folder: Path) -> Any:
    from fastai.vision.all import ImageDataLoaders, get_image_files, resnet18, vision_learner
    from PIL import Image

    for place in range(4):
        (folder / "images").mkdir(exist_ok=True)
        Image.new("RGB", (SIZE, SIZE), (60 * place, 0, 0)).save(folder / "images" / f"{place % 2}_{place}.png")
    files = get_image_files(folder / "images")
    options = {"valid_pct": 0.5, "bs": 2, "num_workers": 0, "seed": 1, "device": "cpu"}
    loaders = ImageDataLoaders.from_name_func(folder, files, _first_letter, **options)
    learner = vision_learner(loaders, resnet18, pretrained=False)
    learner.create_opt()
    return learner


def _first_letter(name: str) -> str:
    return name[0]


def fastai_saved(folder: Path) -> Path:
    fastai_learner(folder).save("last")
    return folder / "models" / "last.pth"


def fastai_saved_load(path: Path) -> nn.Module:
    learner = fastai_learner(path.parents[1])
    learner.load(path.stem, device="cpu")
    return learner.model.eval()  # type: ignore[no-any-return]


def fastai_exported(folder: Path) -> Path:
    fastai_learner(folder).export(folder / "export.pkl")
    return folder / "export.pkl"


def fastai_exported_load(path: Path) -> nn.Module:
    from fastai.learner import load_learner

    return load_learner(path).model.eval()  # type: ignore[no-any-return]


def yolo_saved(folder: Path) -> Path:
    from ultralytics import YOLO

    model = YOLO("yolo11n-cls.yaml")
    model.model = type(model.model)("yolo11n-cls.yaml", nc=2, verbose=False)
    model.save(folder / "best.pt")
    return folder / "best.pt"


def yolo_load(path: Path) -> Callable[[Tensor], Tensor]:
    from ultralytics import YOLO

    model = YOLO(path).model.float().eval()
    return lambda images: model(images)[1]  # type: ignore[no-any-return]


_PROBE = """
import open_clip
from torch import nn

class Probe(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
        text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
        self.visual = open_clip.CLIP(16, vision, text).visual
        self.head = nn.Linear(16, num_classes)

    def forward(self, images):
        return self.head(self.visual(images))
"""


def probe_net(folder: Path) -> nn.Module:
    from bmft.models import found_function

    return found_function(f"{folder}/probe.py:Probe")(2)  # type: ignore[no-any-return]


def probe_saved(folder: Path) -> Path:
    (folder / "probe.py").write_text(_PROBE)
    return bare(partial(probe_net, folder), folder)


def probe_load(path: Path) -> nn.Module:
    return strictly(partial(probe_net, path.parent), path)


def reference_saved(folder: Path) -> Path:
    """What torchvision's references/classification/train.py keeps."""
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = torch.optim.swa_utils.AveragedModel(model)
    kept = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict(),
        "epoch": 3,
        "args": Namespace(model="shufflenet_v2_x0_5", data_path="/data", lr=0.1, weights=None, output_dir=Path("run")),
        "model_ema": average.state_dict(),
    }
    torch.save(kept, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def reference_load(path: Path) -> nn.Module:
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=2)
    model.load_state_dict(torch.load(path, weights_only=False)["model"])
    return model.eval()


_SMALL_XRAY = {"block_config": (1, 1, 1, 1), "growth_rate": 8, "num_init_features": 8}
_XRAY = ",".join(["torchxrayvision:DenseNet", *(f"{key}={value}" for key, value in _SMALL_XRAY.items())])
_HF_NEEDS = ("transformers",)
_densenet = partial(monai_net, "DenseNet121", spatial_dims=2, in_channels=1, out_channels=2)
_VIT = {"img_size": SIZE, "patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}
_TIMM = ("timm",)


def _bare(name: str, needs: tuple[str, ...], make: Callable[[], nn.Module], *options: str, **more: Any) -> Form:
    return Form(name, needs, partial(bare, make), partial(strictly, make), options, **more)


FORMS = [
    *(Form(f"Hugging Face {kind}", _HF_NEEDS, partial(hf_folder, kind), hf_load) for kind in _HF),
    Form("Hugging Face, shards", _HF_NEEDS, partial(hf_folder, "ViT", max_shard_size="40KB"), hf_load),
    Form("Hugging Face Trainer's checkpoint-N", (*_HF_NEEDS, "accelerate"), hf_trainer, hf_load),
    Form("Hugging Face, PEFT adapter of a local model", (*_HF_NEEDS, "peft"), hf_adapter, hf_load),
    Form("timm, hub folder", _TIMM, partial(timm_hub, "convnext_atto"), timm_hub_load),
    Form(
        "timm, hub folder, one channel, another size",
        _TIMM,
        partial(timm_hub, "vit_tiny_patch16_224", in_chans=1, img_size=SIZE),
        timm_hub_load,
        channels=1,
    ),
    Form(
        "timm, train.py's checkpoint, another size",
        _TIMM,
        partial(timm_train, "vit_tiny_patch16_224", img_size=SIZE),
        partial(timm_load, "vit_tiny_patch16_224", img_size=SIZE),
    ),
    _bare("timm, weights, one channel", _TIMM, partial(small_timm, "convnext_atto", in_chans=1), channels=1),
    _bare(
        "timm, a network without a head of its own (EVA02)",
        _TIMM,
        partial(small_timm, "eva02_tiny_patch14_224", img_size=28),
        "--arch",
        "timm:eva02_tiny_patch14_224",
        size=28,
    ),
    _bare("torchvision, one channel and a replaced head", (), grey_resnet, channels=1),
    _bare("torchvision, a head of two layers", (), deeper_head),
    Form("torchvision, its reference training's checkpoint", (), reference_saved, reference_load),
    _bare("MONAI DenseNet121", ("monai",), _densenet, channels=1),
    _bare(
        "MONAI DenseNet121, named",
        ("monai",),
        _densenet,
        "--arch",
        "monai:DenseNet121,spatial_dims=2,in_channels=1,out_channels=2",
        channels=1,
    ),
    _bare("MONAI ResNet", ("monai",), partial(monai_net, "resnet18", spatial_dims=2, num_classes=2)),
    _bare(
        "MONAI EfficientNetBN",
        ("monai",),
        partial(monai_net, "EfficientNetBN", "efficientnet-b0", pretrained=False, num_classes=2),
    ),
    _bare(
        "MONAI SEResNet",
        ("monai",),
        partial(monai_net, "SEResNet50", spatial_dims=2, in_channels=3, num_classes=2),
        seed=1,
    ),
    Form(
        "MONAI ViT, named",
        ("monai", "einops"),
        partial(bare, monai_vit),
        lambda path: first_of(strictly(monai_vit, path)),
        (
            "--arch",
            "monai:ViT,in_channels=3,img_size=32,patch_size=8,hidden_size=24,mlp_dim=32,num_layers=2,num_heads=2",
        ),
    ),
    Form("MONAI CheckpointSaver", ("monai", "ignite"), monai_saver, monai_saver_load, channels=1),
    Form("MONAI bundle", ("monai", "ignite"), monai_bundle, monai_bundle_load, channels=1),
    _bare("torchxrayvision DenseNet", ("torchxrayvision",), xray_net, "--arch", _XRAY, channels=1),
    _bare(
        "torchxrayvision DenseNet with op_threshs",
        ("torchxrayvision",),
        partial(xray_net, num_classes=1, op_threshs=torch.tensor([0.4])),
        "--arch",
        f"{_XRAY},op_threshs=True",
        data=("--answer-is", "probabilities"),
        channels=1,
    ),
    *(
        Form(
            f"Lightning, {what}",
            ("lightning",),
            partial(lightning_checkpoint, name),
            partial(lightning_load, name),
            ("--arch", "{folder}/lit.py:" + name),
        )
        for name, what in (("Lit", "self.net"), ("Own", "a backbone and a classifier of one's own"))
    ),
    Form("fastai, learn.save", ("fastai",), fastai_saved, fastai_saved_load),
    Form("fastai, learn.export", ("fastai",), fastai_exported, fastai_exported_load, ("--trust-pickle",)),
    Form("Ultralytics", ("ultralytics",), yolo_saved, yolo_load, ("--trust-pickle",)),
    Form("open_clip, a linear probe", ("open_clip",), probe_saved, probe_load, ("--arch", "{folder}/probe.py:Probe")),
]


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    rows = []
    for form in (form for form in FORMS if wanted in form.name):
        if form.missing:
            rows.append([form.name, *(["-"] * len(COLUMNS))])
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = through(form, Path(folder))
        rows.append([form.name, *(found[column] for column in COLUMNS)])
        print(json.dumps(dict(zip(("form", *COLUMNS), rows[-1], strict=True))), file=sys.stderr, flush=True)
    print(table(["form", *COLUMNS], rows))
    print(footer())
    return 0


if __name__ == "__main__":
    sys.exit(main())
