"""Networks of an image and columns of the table, through every command."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

NETWORK = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self, numbers=2, sites=3):
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.site, self.mlp = nn.Embedding(sites, 4), nn.Sequential(nn.Linear(numbers, 8), nn.ReLU())
        self.fc = nn.Linear(20, 1)

    def forward(self, image, table, site):
        return self.fc(torch.cat([self.cnn(image), self.mlp(table), self.site(site)], 1))
"""
INPUTS = ["age=60/14", "dose=0/1", "site=head,trunk,limb"]
ASKED = [part for one in INPUTS for part in ("--input", one)]


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """A folder with ``two.py``, ``d.npz``, ``d.csv`` and checkpoints of a network that takes the tint for the label."""
    from importlib.util import module_from_spec, spec_from_file_location

    from bmft import load_manifest

    folder = tmp_path_factory.mktemp("clinic")
    (folder / "two.py").write_text(NETWORK)
    spec = spec_from_file_location("two", folder / "two.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    rng, n = np.random.default_rng(0), 360
    labels, groups = rng.integers(0, 2, n), rng.integers(0, 2, n)
    images = rng.normal(0.5, 0.12, (n, 16, 16, 3)) + 0.05 * (2 * labels - 1)[:, None, None, None]
    images[..., 0] += 0.12 * (2 * groups - 1)[:, None, None]
    np.savez(folder / "d.npz", images=(images.clip(0, 1) * 255).astype(np.uint8))
    table = {
        "y": labels,
        "sex": np.array(["f", "m"])[groups],
        "age": rng.normal(60, 14, n).round(),
        "dose": rng.normal(0, 1, n).round(3),
        "site": np.array(["head", "trunk", "limb"])[rng.integers(0, 3, n)],
        "split": np.array(["fit", "select", "test"])[np.arange(n) % 3],
    }
    pd.DataFrame(table).to_csv(folder / "d.csv", index=False)
    data = load_manifest(folder / "d.npz", target="y", sensitive="sex", inputs=INPUTS)
    learned = torch.from_numpy(np.where(rng.random(n) < 0.7, groups, labels)).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = module.Two()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(30):
            for rows in torch.randperm(n).split(64):
                logits = model(*data.inputs(rows))[:, 0]
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(logits, learned[rows]).backward()
                optimizer.step()
    state = model.state_dict()
    torch.save(state, folder / "bare.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "dict.pt")
    save_file(state, folder / "file.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def options(clinic):
    data = ["--data", clinic / "d.npz", "--label", "y", "--sensitive", "sex", "--split-column", "split"]
    return [*data, "--arch", f"{clinic / 'two.py'}:Two", "--quiet"]


def audited(path):
    return json.loads(path.read_text())


def test_a_network_of_several_inputs_says_which_option_names_the_columns(bmft, clinic, options, capsys):
    assert bmft("audit", clinic / "bare.pt", *options) == 4
    assert "Two takes 3 inputs (image, table, site) and is given 1: name the columns" in capsys.readouterr().err


def test_too_many_columns_are_refused_by_a_network_of_the_image_alone(bmft, study, data_options, capsys):
    assert bmft("audit", study / "model.pt", *data_options, "--input", "age=50/20") == 4
    assert "takes 1 input (x) and is given 2" in capsys.readouterr().err


def test_an_embedding_without_a_row_for_every_name_is_refused_though_no_row_has_the_last(bmft, clinic, options, capsys):
    more = [*ASKED[:-1], "site=head,trunk,limb,nose"]
    assert bmft("audit", clinic / "bare.pt", *options, *more) == 4
    assert "index out of range" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bare.pt", "dict.pt", "file.safetensors"])
def test_what_is_debiased_records_its_columns_and_is_audited_with_them(bmft, clinic, options, tmp_path, name):
    out = tmp_path / f"fair.{name.rpartition('.')[2]}"
    run = ["--epochs", "1", "--keep", "last", "--views", "hflip", "--out", out, "--report", "report"]
    assert bmft("debias", clinic / name, *options, *ASKED, *run) == 0
    assert bmft("audit", out, *options, "--json", "said.json", *ASKED) == 0
    assert bmft("audit", out, *options, "--json", "recorded.json") == 0
    said, recorded = audited(tmp_path / "said.json"), audited(tmp_path / "recorded.json")
    assert said["gaps"] == recorded["gaps"]
    assert recorded["assumed"]["inputs"][0]["from"] == "the checkpoint's record"
    report = audited(tmp_path / "report" / "report.json")
    assert report["config"]["inputs"] == ["age=60.0/14.0", "dose=0.0/1.0", "site=head,trunk,limb"]
    assert report["after"]["gaps"] == recorded["gaps"]


def test_a_table_without_a_recorded_column_is_refused_by_name(bmft, clinic, options, tmp_path, capsys):
    assert bmft("debias", clinic / "dict.pt", *options, *ASKED, "--epochs", "1", "--keep", "last") == 0
    pd.read_csv(clinic / "d.csv").drop(columns="dose").to_csv(tmp_path / "d.csv", index=False)
    (tmp_path / "d.npz").write_bytes((clinic / "d.npz").read_bytes())
    assert bmft("audit", "fair.pt", "--data", "d.npz", *options[2:]) == 4
    assert "as its checkpoint records, and the table has no column 'dose'" in capsys.readouterr().err


def test_going_back_by_the_patch_takes_the_record_away(bmft, clinic, options, tmp_path):
    run = ["--epochs", "1", "--keep", "last", "--out", "fair.safetensors"]
    assert bmft("debias", clinic / "file.safetensors", *options, *ASKED, *run) == 0
    patch = "fair.patch.safetensors"
    assert bmft("patch", "apply", clinic / "file.safetensors", patch, "--out", "again.safetensors") == 0
    assert bmft("patch", "revert", "fair.safetensors", patch, "--out", "back.safetensors") == 0
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "fair.safetensors").read_bytes()
    assert (tmp_path / "back.safetensors").read_bytes() == (clinic / "file.safetensors").read_bytes()


def test_inspect_runs_the_network_with_the_columns_or_says_which_option_names_them(bmft, clinic, capsys):
    network = [clinic / "bare.pt", "--arch", f"{clinic / 'two.py'}:Two"]
    assert bmft("inspect", *network) == 0
    assert (
        "it could not be run on an image of noise: Two takes 3 inputs (image, table, site)" in capsys.readouterr().out
    )
    assert bmft("inspect", *network, *ASKED) == 0
    shown = capsys.readouterr().out
    assert "1 outputs for an image of 3 x 224 x 224 and numbers, site" in shown
    assert "numbers (n, 2): age=60.0/14.0; dose=0.0/1.0, integers (n,): site=head,trunk,limb" in shown


def test_inspect_asks_how_a_column_is_given(bmft, clinic, capsys):
    assert bmft("inspect", clinic / "bare.pt", "--arch", f"{clinic / 'two.py'}:Two", "--input", "age") == 2
    assert "--input age: nothing says how the network is given it" in capsys.readouterr().err


@pytest.mark.ci
def test_onnx_has_an_input_for_each_and_answers_as_torch_does(bmft, clinic, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the onnx extra")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    from bmft import load_checkpoint

    arch = f"{clinic / 'two.py'}:Two"
    run = ["--onnx", "m.onnx", "--image-size", "16"]
    assert bmft("export", clinic / "bare.pt", "--arch", arch, *run) == 4
    assert bmft("export", clinic / "bare.pt", "--arch", arch, *run, *ASKED) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["image", "numbers", "site"]
    image, numbers, site = torch.randn(7, 3, 16, 16), torch.randn(7, 2), torch.arange(7) % 3
    with torch.no_grad():
        expected = load_checkpoint(clinic / "bare.pt", arch=arch)(image, numbers, site).numpy()
    fed = {"image": image.numpy(), "numbers": numbers.numpy(), "site": site.numpy()}
    np.testing.assert_allclose(session.run(None, fed)[0], expected, atol=1e-4)


def test_a_folder_for_the_hub_is_audited_with_the_columns_it_records(bmft, clinic, options, tmp_path):
    run = ["--epochs", "1", "--keep", "last", "--report", "report"]
    assert bmft("debias", clinic / "dict.pt", *options, *ASKED, *run) == 0
    assert "Inputs: the image, numbers (n, 2)" in (tmp_path / "report" / "report.md").read_text()
    arch = options[options.index("--arch") :][:2]
    assert bmft("export", "fair.pt", "--hub", "hub", "--report", "report", *arch) == 0
    assert [one["name"] for one in json.loads((tmp_path / "hub" / "config.json").read_text())["inputs"]] == [
        "age",
        "dose",
        "site",
    ]
    assert bmft("audit", "hub", *options, "--json", "hub.json") == 0
    assert bmft("audit", "fair.pt", *options, "--json", "file.json") == 0
    assert audited(tmp_path / "hub.json")["gaps"] == audited(tmp_path / "file.json")["gaps"]


@pytest.mark.ci
def test_a_gate_a_comparison_and_a_search_run_with_the_columns(bmft, clinic, options):
    gate = ["gate", clinic / "bare.pt", *options, *ASKED, "--policy", "policy.toml"]
    assert bmft(*gate, "--init") == 0
    assert bmft(*gate) in (0, 1, 3)
    once = ["--epochs", "1,1", "--seeds", "1", "--tuning", "1", "--jobs", "1", "--methods", "bmft,head"]
    assert bmft("compare", clinic / "bare.pt", *options, *ASKED, *once) == 0
    assert bmft("search", clinic / "bare.pt", *options, *ASKED, "--trials", "1", "--epochs", "1") in (0, 1)
