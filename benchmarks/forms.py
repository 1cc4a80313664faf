"""Every form of checkpoint, made small by its own library, through bmft and back: python -m benchmarks.forms [TEXT]

Only forms whose name has the text; a library that is not installed is a dash. `tests/test_forms.py` runs the same.
"""

import csv
import io
import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.common import footer, table
from bmft.checkpoints import build_from, read_checkpoint
from bmft.models import forward_logits

SIZE, ROWS = 32, 96
COLUMNS = ("inspect", "audit", "debias", "loaded again by its own library")


@dataclass(frozen=True)
class Form:
    """One way to keep a classifier.

    Attributes:
        name: of the row.
        needs: the packages that make it and load it again.
        make: writes one into a folder and gives its path.
        load: the library's own loader: path -> images to logits.
        options: what the command line has to be told.
        channels: of the images.
        size: what they are resized to.
        ours: bmft's model and images to what `load` gives.
    """

    name: str
    needs: tuple[str, ...]
    make: Callable[[Path], Path]
    load: Callable[[Path], Callable[[Tensor], Any]]
    options: tuple[str, ...] = ()
    channels: int = 3
    size: int = SIZE
    ours: Callable[[nn.Module, Tensor], Tensor] = forward_logits

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


def write_data(folder: Path, channels: int = 3, size: int = SIZE) -> list[str]:
    """Drawn images as an npz with their table; the options that name them."""
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, ROWS), rng.integers(0, 2, ROWS)
    images = rng.integers(0, 200, (ROWS, SIZE, SIZE, channels), dtype=np.uint8)
    images[:, 8:24, 8:24] += (40 * labels).astype(np.uint8)[:, None, None, None]
    np.savez(folder / "study.npz", images=images if channels == 3 else images[..., 0])
    with (folder / "study.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ill", "sex", "patient", "split"])
        names = np.repeat(["fit", "select", "test"], ROWS // 3)
        rows.writerows(zip(labels, groups, range(ROWS), names, strict=True))
    data = ["--data", folder / "study.npz", "--label", "ill", "--sensitive", "sex", "--cluster", "patient"]
    more = ["--normalize", "0.5/0.25"] if channels == 1 else []
    data += ["--split-column", "split", "--image-size", size, "--threshold-from", "select"]
    return [*map(str, data), *more]


def run(*arguments: str) -> tuple[int, str]:
    """A command's exit code, and the last line it said."""
    from bmft_cli.main import main

    shown = io.StringIO()
    with redirect_stdout(shown), redirect_stderr(shown):
        code = main(list(arguments))
    return code, shown.getvalue().strip().rpartition("\n")[2]


def through(form: Form, folder: Path) -> dict[str, str]:
    """What became of one form in each column: ``yes``, or what was said."""
    torch.manual_seed(0)
    with quiet():
        path = form.make(folder)
    data, out = write_data(folder, form.channels, form.size), path.with_name(f"fair{path.suffix}")
    options = [*form.options, "--quiet"]
    own = [*data, "--device", "cpu"]
    commands = {
        "inspect": ["inspect", str(path), *options],
        "audit": ["audit", str(path), *own, *options, "--json", str(folder / "audit.json")],
        "debias": ["debias", str(path), *own, *options, "--out", str(out), "--epochs", "1", "--keep", "last"],
    }
    found = {}
    for name, command in commands.items():
        code, said = run(*command)
        found[name] = "yes" if code == 0 else f"{code}: {said}"
    found[COLUMNS[-1]] = again(form, path, out) if out.exists() else "nothing was written"
    return found


def again(form: Form, path: Path, out: Path) -> str:
    """Whether the library's loader makes of the result what bmft makes of it, and no longer what it was."""
    images = torch.rand(4, form.channels, form.size, form.size)
    trusted = "--trust-pickle" in form.options
    arch = form.options[form.options.index("--arch") + 1] if "--arch" in form.options else None
    answers, kept = [], []
    for one in (path, out):
        checkpoint = read_checkpoint(one, trust_pickle=trusted)
        with quiet(), torch.no_grad():
            theirs, ours = form.load(one)(images), form.ours(build_from(checkpoint, arch=arch), images)
        if not torch.allclose(theirs, ours, atol=1e-5):
            return f"bmft makes another model of {one.name}: {float((theirs - ours).abs().max()):.2g} apart"
        answers.append(theirs)
        kept.append(checkpoint)
    if list(kept[0].state) != list(kept[1].state) or kept[0].container != kept[1].container:
        return "its names or its container are others"
    return "yes" if not torch.allclose(*answers, atol=1e-6) else "it answers as before"


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, libraries' remarks and progress bars go nowhere."""
    import warnings

    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


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


_HF_NEEDS = ("transformers",)
_SMALL = {"img_size": SIZE}
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
