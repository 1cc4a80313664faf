"""`bmft export`: ONNX that agrees with torch, and a folder for the hub that its libraries load."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import bmft as package
from bmft.checkpoints import write_onnx
from bmft.errors import MismatchError, MissingExtraError

REPORT = {"report.md": "---\ntags: [bmft]\n---\n# A card\n", "report.html": "<p>", "report.json": "{}"}


@pytest.fixture
def report(tmp_path):
    (tmp_path / "report").mkdir()
    for name, text in REPORT.items():
        (tmp_path / "report" / name).write_text(text)
    return tmp_path / "report"


@pytest.fixture
def onnxruntime():
    pytest.importorskip("onnxscript", reason="needs the onnx extra")
    return pytest.importorskip("onnxruntime", reason="needs the onnx extra")


@pytest.mark.ci
def test_the_file_answers_as_torch_does_for_any_number_of_images(bmft, study, tmp_path, onnxruntime, capsys):
    assert bmft("export", study / "model.pt", "--onnx", "m.onnx", "--image-size", 32) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "m.onnx"
    assert "image: n x 3 x 32 x 32" in said.err
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    model = package.load_checkpoint(study / "model.pt")
    for n in (1, 7):
        images = torch.randn(n, 3, 32, 32)
        with torch.no_grad():
            expected = model(images).numpy()
        np.testing.assert_allclose(session.run(None, {"image": images.numpy()})[0], expected, atol=1e-4)


class Uneven(nn.Module):
    """Says something else to torch's tracer than when it is run."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 1)

    def forward(self, image):
        return self.head(image.flatten(1)) + float(torch.compiler.is_exporting())


@pytest.mark.ci
def test_a_file_that_does_not_agree_is_not_written(tmp_path, onnxruntime):
    with pytest.raises(MismatchError, match=r"differ from torch's by 1, more than 0\.0001"):
        write_onnx(Uneven(), (3, 2, 2), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_the_hub_s_folder_has_weights_config_card_and_report(bmft, study, tmp_path, report):
    assert bmft("export", study / "model.pt", "--hub", "hub", "--report", report) == 0
    hub = tmp_path / "hub"
    assert {path.name for path in hub.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
        "report.html",
        "report.json",
    }
    assert (hub / "README.md").read_text() == REPORT["report.md"]
    config = json.loads((hub / "config.json").read_text())
    assert config["architecture"] == "torchvision:shufflenet_v2_x0_5"
    assert config["num_classes"] == 1
    original = torch.load(study / "model.pt")
    weights = load_file(hub / "model.safetensors")
    assert weights.keys() == original.keys()
    assert all(torch.equal(weights[name], original[name]) for name in original)
    again = package.load_checkpoint(hub / "model.safetensors")
    assert type(again) is type(package.load_checkpoint(study / "model.pt"))


def test_timm_loads_the_folder_of_its_network(bmft, tmp_path, report):
    timm = pytest.importorskip("timm", reason="needs timm")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    torch.save(model.state_dict(), "m.pt")
    assert bmft("export", "m.pt", "--hub", "hub", "--report", report, "--arch", "timm:test_resnet") == 0
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "Say what to write"),
        (["--hub", "hub"], 2, "--hub needs --report"),
        (["--hub", "hub", "--report", "nowhere"], 2, "no report.md in it"),
        (["--hub", ".", "--report", "report"], 2, "not empty"),
    ],
)
def test_what_cannot_be_written_says_why(bmft, study, report, options, code, message, capsys):
    assert bmft("export", study / "model.pt", *options) == code
    assert message in capsys.readouterr().err


def test_without_the_extra_it_says_which_one(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"onnx and onnxscript and onnxruntime: pip install 'bmft\[onnx\]'"):
        write_onnx(nn.Linear(2, 1), (3, 2, 2), tmp_path / "m.onnx")
