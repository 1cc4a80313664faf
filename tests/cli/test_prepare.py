import csv

from bmft.datasets import DATASETS, FORMS


def ham(folder):
    folder.mkdir()
    (folder / "HAM10000_metadata.csv").write_text(
        "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
        "HAM_1,ISIC_1,bkl,histo,80.0,male,scalp\nHAM_2,ISIC_2,mel,histo,,female,back\n"
    )
    for name in ("ISIC_1", "ISIC_2"):
        (folder / f"{name}.jpg").write_bytes(b"an image")


def test_an_official_folder_becomes_a_manifest_with_its_counts_printed(bmft, tmp_path, capsys):
    ham(tmp_path / "HAM")
    assert bmft("prepare", "HAM10000", "HAM") == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == "ham10000.csv"
    assert "2 rows" in shown.out
    assert "0 1, 1 1" in shown.out
    assert "unknown 1" in shown.out
    assert "--images HAM" in shown.err
    with (tmp_path / "ham10000.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["sex"]) for row in rows] == [("0", "male"), ("1", "female")]


def test_without_a_folder_it_tells_what_is_expected(bmft, capsys):
    assert bmft("prepare", "ham10000") == 0
    assert "HAM10000_metadata" in capsys.readouterr().out


def test_the_datasets_can_be_listed(bmft, capsys):
    assert bmft("prepare", "--list") == 0
    assert capsys.readouterr().out.split() == [*DATASETS, *FORMS]


def test_an_unknown_dataset_and_a_wrong_folder_are_told(bmft, tmp_path, capsys):
    assert bmft("prepare", "ham1000", tmp_path) == 2
    assert "ham10000" in capsys.readouterr().err
    assert bmft("prepare", "ham10000", tmp_path) == 4
    assert "HAM10000_metadata" in capsys.readouterr().err
