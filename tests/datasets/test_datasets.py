"""Each reader on a small made-up folder in the layout of the official release."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bmft import datasets
from bmft.data import load_manifest
from bmft.errors import ConfigError, DataError, MissingExtraError
from tests.tiers import in_ci


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), len(path.name), np.uint8)).save(path)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


def excel(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_excel(path, header=False, index=False)


def ham10000(root):
    text(
        root / "HAM10000_metadata.csv",
        "lesion_id,image_id,dx,dx_type,age,sex,localization",
        "HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp",
        "HAM_0000118,ISIC_0025030,bkl,histo,80.0,male,scalp",
        "HAM_0002730,ISIC_0026769,mel,histo,55.0,female,back",
        "HAM_0001466,ISIC_0031633,bcc,histo,,unknown,ear",
    )
    text(
        root / "ISIC2018_Task3_Test_GroundTruth.csv",
        "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset",
        "HAMTEST_0000000,ISIC_0034524,nv,follow_up,40.0,female,back,vidir_molemax",
    )
    for part, name in ((1, "ISIC_0027419"), (1, "ISIC_0025030"), (2, "ISIC_0026769"), (2, "ISIC_0031633")):
        image(root / f"HAM10000_images_part_{part}" / f"{name}.jpg")
    image(root / "ISIC2018_Task3_Test_Images" / "ISIC_0034524.jpg")
    return {
        "label": [0, 0, 1, 1, 0],
        "dx": ["bkl", "bkl", "mel", "bcc", "nv"],
        "sex": ["male", "male", "female", "", "female"],
        "age": ["80", "80", "55", "", "40"],
        "patient_id": ["HAM_0000118", "HAM_0000118", "HAM_0002730", "HAM_0001466", "HAMTEST_0000000"],
        "split": ["train"] * 4 + ["test"],
    }


def isic2017(root):
    for part, name, melanoma in (("Training", "ISIC_0000000", 0), ("Test_v2", "ISIC_0012086", 1)):
        text(
            root / f"ISIC-2017_{part}_Part3_GroundTruth.csv",
            "image_id,melanoma,seborrheic_keratosis",
            f"{name},{melanoma}.0,0.0",
        )
        data = root / f"ISIC-2017_{part}_Data"
        text(data / f"{data.name}_metadata.csv", "image_id,age_approximate,sex", f"{name},55,female")
        image(data / f"{name}.jpg")
        image(data / f"{name}_superpixels.png")
    return {"label": [0, 1], "sex": ["female"] * 2, "age": ["55"] * 2, "split": ["train", "test"]}


def isic2018(root):
    text(
        root / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_GroundTruth.csv",
        "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC",
        "ISIC_0024306,0.0,1.0,0.0,0.0,0.0,0.0,0.0",
        "ISIC_0024310,1.0,0.0,0.0,0.0,0.0,0.0,0.0",
    )
    text(
        root / "ISIC2018_Task3_Training_LesionGroupings.csv",
        "image,lesion_id,diagnosis_confirm_type",
        "ISIC_0024306,HAM_0000550,serial imaging showing no change",
        "ISIC_0024310,HAM_0003577,histopathology",
    )
    text(root / "HAM10000_metadata", "lesion_id,image_id,dx,dx_type,age,sex", "H,ISIC_0024310,mel,histo,60.0,male")
    for name in ("ISIC_0024306", "ISIC_0024310"):
        image(root / "ISIC2018_Task3_Training_Input" / f"{name}.jpg")
    return {
        "label": [0, 1],
        "dx": ["nv", "mel"],
        "sex": ["", "male"],
        "age": ["", "60"],
        "patient_id": ["HAM_0000550", "HAM_0003577"],
        "split": ["train", "train"],
    }


def isic2019(root):
    head = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
    text(root / "ISIC_2019_Training_GroundTruth.csv", head, "ISIC_0000000,0,1,0,0,0,0,0,0,0", "B,0,0,0,0,0,0,0,1,0")
    text(
        root / "ISIC_2019_Training_Metadata.csv",
        "image,age_approx,anatom_site_general,lesion_id,sex",
        "ISIC_0000000,55.0,anterior torso,,female",
        "B,,head/neck,BCN_0000001,",
    )
    text(
        root / "ISIC_2019_Test_GroundTruth.csv",
        head + ",score_weight",
        "C,0,0,0,0,0,0,0,0,1,0.0",
        "D,1,0,0,0,0,0,0,0,0,1",
    )
    text(root / "ISIC_2019_Test_Metadata.csv", "image,age_approx,anatom_site_general,sex", "C,1,x,male", "D,40,x,male")
    for part, names in (("Training", ("ISIC_0000000", "B")), ("Test", ("C", "D"))):
        for name in names:
            image(root / f"ISIC_2019_{part}_Input" / f"ISIC_2019_{part}_Input" / f"{name}.jpg")
    return {
        "label": [0, 1, 1],
        "dx": ["nv", "scc", "mel"],
        "sex": ["female", "", "male"],
        "age": ["55", "", "40"],
        "patient_id": ["", "BCN_0000001", ""],
        "split": ["train", "train", "test"],
    }


def isic2020(root):
    text(
        root / "ISIC_2020_Training_GroundTruth.csv",
        "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target",
        "ISIC_2637011,IP_7279968,male,45.0,head/neck,unknown,benign,0",
        "ISIC_0149568,IP_0962375,female,55.0,upper extremity,melanoma,malignant,1",
    )
    for name in ("ISIC_2637011", "ISIC_0149568"):
        image(root / "train" / f"{name}.jpg")
    return {
        "label": [0, 1],
        "sex": ["male", "female"],
        "age": ["45", "55"],
        "patient_id": ["IP_7279968", "IP_0962375"],
        "split": ["train", "train"],
    }


def fitzpatrick17k(root):
    text(
        root / "fitzpatrick17k.csv",
        "md5hash,fitzpatrick_scale,fitzpatrick_centaur,label,nine_partition_label,three_partition_label,qc,url",
        "5e82a45bc5d78bd24ae9202d194423f8,3,3,drug induced pigmentary changes,inflammatory,non-neoplastic,,u",
        "fa2911a9b13b6f8af79cb700937cc14f,-1,5,basal cell carcinoma,malignant epidermal,malignant,,u",
        "ffffffffffffffffffffffffffffffff,6,6,melanoma,malignant melanoma,malignant,,u",
    )
    for name in ("5e82a45bc5d78bd24ae9202d194423f8", "fa2911a9b13b6f8af79cb700937cc14f"):
        image(root / "data" / "finalfitz17k" / f"{name}.jpg")
    return {"label": [0, 1], "skin_type": ["3", ""], "fitzpatrick_centaur": ["3", "5"]}


def pad_ufes_20(root):
    text(
        root / "metadata.csv",
        "patient_id,lesion_id,smoke,drink,background_father,background_mother,age,pesticide,gender,"
        "skin_cancer_history,cancer_history,has_piped_water,has_sewage_system,fitspatrick,region,diameter_1,"
        "diameter_2,diagnostic,itch,grew,hurt,changed,bleed,elevation,img_id,biopsed",
        "PAT_1516,1765,,,,,8,,,,,,,,ARM,,,NEV,FALSE,FALSE,FALSE,FALSE,FALSE,FALSE,PAT_1516_1765_530.png,FALSE",
        "PAT_46,881,False,False,POMERANIA,POMERANIA,55,False,FEMALE,True,True,True,True,3.0,NECK,6.0,5.0,BCC,"
        "True,True,False,True,True,True,PAT_46_881_939.png,True",
    )
    image(root / "images" / "imgs_part_1" / "imgs_part_1" / "PAT_1516_1765_530.png")
    image(root / "images" / "imgs_part_2" / "imgs_part_2" / "PAT_46_881_939.png")
    return {
        "label": [0, 1],
        "diagnostic": ["NEV", "BCC"],
        "sex": ["", "female"],
        "age": ["8", "55"],
        "skin_type": ["", "3"],
        "patient_id": ["PAT_1516", "PAT_46"],
    }


def derm7pt(root):
    meta = root / "release_v0" / "meta"
    text(
        meta / "meta.csv",
        "case_num,diagnosis,seven_point_score,pigment_network,elevation,location,sex,clinic,derm,case_id,notes",
        "1,basal cell carcinoma,0,absent,nodular,abdomen,female,NEL/NEL025.JPG,NEL/Nel026.jpg,,",
        "2,clark nevus,1,typical,flat,back,male,NFL/Nfl1.jpg,NFL/Nfl2.jpg,,",
        "3,melanoma (in situ),5,atypical,flat,back,male,FAL/a.jpg,FAL/b.jpg,,",
    )
    for name, index in (("train", 2), ("valid", 0), ("test", 1)):
        text(meta / f"{name}_indexes.csv", "indexes", str(index))
    for name in ("NEL/NEL025.JPG", "NEL/Nel026.jpg", "NFL/Nfl1.jpg", "NFL/Nfl2.jpg", "FAL/a.jpg", "FAL/b.jpg"):
        image(root / "release_v0" / "images" / name)
    return {
        "path": [f"release_v0/images/{name}" for name in ("NEL/Nel026.jpg", "NFL/Nfl2.jpg", "FAL/b.jpg")],
        "label": [1, 0, 1],
        "sex": ["female", "male", "male"],
        "patient_id": ["1", "2", "3"],
        "split": ["validation", "test", "train"],
    }


def papila(root):
    header = [
        [None, "Age", "Gender", "Diagnosis", "Refractive_Defect", None],
        [None, None, None, None, "dioptre_1", "dioptre_2"],
        ["ID", None, None, None, None, None],
    ]
    excel(
        root / "ClinicalData" / "patient_data_od.xlsx",
        [*header, ["#002", 47, 0, 2, 0.75, -1.75], ["#004", 58, 1, 1, 1.5, -1.75]],
    )
    excel(
        root / "ClinicalData" / "patient_data_os.xlsx",
        [*header, ["#002", 47, 0, 0, 0.5, -1], ["#004", 58, 1, 1, 1, -1]],
    )
    for name in ("RET002OD", "RET002OS", "RET004OD", "RET004OS"):
        image(root / "FundusImages" / f"{name}.jpg")
    return {
        "path": [f"FundusImages/RET{name}.jpg" for name in ("004OD", "002OS", "004OS")],
        "label": [1, 0, 1],
        "eye": ["OD", "OS", "OS"],
        "sex": ["female", "male", "female"],
        "age": ["58", "47", "58"],
        "patient_id": ["004", "002", "004"],
    }


def ol3i(root):
    text(
        root / "clinical_data.csv",
        "anon_id,age,sex,label_1y,label_5y,set_1y",
        "abcde,63.0,M,0.0,1.0,train",
        "fghij,51.0,F,1.0,1.0,test",
        "klmno,51.0,F,,0.0,",
    )
    for name in ("abcde", "fghij", "klmno"):
        image(root / "l3_slices" / f"{name}.png")
    return {
        "label": ["0", "1"],
        "sex": ["male", "female"],
        "age": ["63", "51"],
        "patient_id": ["abcde", "fghij"],
        "split": ["train", "test"],
    }


def oasis1(root):
    text(
        root / "oasis_cross-sectional.csv",
        "ID,M/F,Hand,Age,Educ,SES,MMSE,CDR,eTIV,nWBV,ASF,Delay",
        "OAS1_0001_MR1,F,R,74,2.0,3.0,29.0,0.0,1344,0.743,1.306,",
        "OAS1_0003_MR1,F,R,73,4.0,3.0,27.0,0.5,1454,0.708,1.207,",
        "OAS1_0061_MR2,M,R,20,,,,,1500,0.85,1.17,1",
    )
    for disc, name in ((1, "OAS1_0001_MR1"), (1, "OAS1_0003_MR1"), (12, "OAS1_0061_MR2")):
        folder = root / f"disc{disc}" / name / "PROCESSED" / "MPRAGE" / "T88_111"
        image(folder / f"{name}_mpr_n4_anon_111_t88_masked_gfc_tra_90.gif")
        image(folder / f"{name}_mpr_n4_anon_111_t88_gfc_tra_90.gif")
    return {
        "label": [0, 1, 0],
        "cdr": ["0", "0.5", ""],
        "sex": ["female", "female", "male"],
        "age": ["74", "73", "20"],
        "patient_id": ["OAS1_0001", "OAS1_0003", "OAS1_0061"],
        "session": ["MR1", "MR1", "MR2"],
    }


CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,"
    "Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,"
    "Fracture,Support Devices"
)


def chexpert(root):
    base = root / "CheXpert-v1.0-small"
    one = "train/patient00001/study1/view1_frontal.jpg"
    two = "train/patient00002/study2/view1_lateral.jpg"
    three = "valid/patient64541/study1/view1_frontal.jpg"
    text(
        base / "train.csv",
        CHEXPERT,
        f"{base.name}/{one},Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
        f"{base.name}/{two},Male,0,Lateral,,,,-1.0,,,,-1.0,,,,1.0,,,",
    )
    text(base / "valid.csv", CHEXPERT, f"{base.name}/{three},Male,73,Frontal,AP,0.0,1.0,1.0,1.0" + ",0.0" * 10)
    for name in (one, two, three):
        image(base / name)
    excel(
        root / "CHEXPERT DEMO.xlsx",
        [
            ["PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY"],
            ["patient00001", "Female", 68, "White, non-Hispanic", "Non-Hispanic/Non-Latino"],
            ["patient64541", "Male", 73, "Unknown", "Unknown"],
        ],
    )
    return {
        "path": [f"{base.name}/{name}" for name in (one, two, three)],
        "label": [0, 1, 1],
        "Cardiomegaly": ["", "-1", "1"],
        "Pleural Effusion": ["", "1", "0"],
        "sex": ["female", "male", "male"],
        "age": ["68", "", "73"],
        "race": ["white", "", ""],
        "patient_id": ["patient00001", "patient00002", "patient64541"],
        "view": ["frontal", "lateral", "frontal"],
        "split": ["train", "train", "valid"],
    }


def mimic_cxr_jpg(root):
    findings = (
        "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
        "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
    )
    text(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        f"subject_id,study_id,{findings}",
        "10000032,50414267,,,,,,,,,1.0,,,,,",
        "10000764,57375967,,1.0,-1.0,,,,,,,,,,,",
    )
    text(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns",
        "02aa804e,10000032,50414267,CHEST,PA,3056,2544",
        "096052b7,10000764,57375967,CHEST,AP,2544,3056",
    )
    text(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        "dicom_id,study_id,subject_id,split",
        "02aa804e,50414267,10000032,train",
        "096052b7,57375967,10000764,test",
    )
    text(
        root / "hosp" / "patients.csv.gz",
        "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
        "10000032,F,52,2180,2014 - 2016,2180-09-09",
    )
    text(
        root / "hosp" / "admissions.csv.gz",
        "subject_id,hadm_id,race",
        "10000032,1,UNKNOWN",
        "10000032,2,BLACK/AFRICAN AMERICAN",
    )
    one, two = "p10/p10000032/s50414267/02aa804e.jpg", "p10/p10000764/s57375967/096052b7.jpg"
    image(root / "files" / one)
    image(root / "files" / two)
    return {
        "path": [f"files/{one}", f"files/{two}"],
        "label": [0, 1],
        "No Finding": ["1", ""],
        "Cardiomegaly": ["", "1"],
        "Consolidation": ["", "-1"],
        "sex": ["female", ""],
        "age": ["52", ""],
        "race": ["black", ""],
        "patient_id": ["10000032", "10000764"],
        "view": ["PA", "AP"],
        "split": ["train", "test"],
    }


def nih_chestxray14(root):
    text(
        root / "Data_Entry_2017_v2020.csv",
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]",
        "00000001_000.png,Cardiomegaly|Emphysema,0,1,57,M,PA,2682,2749,0.143,0.143",
        "00000002_000.png,No Finding,0,2,411,F,AP,2500,2048,0.171,0.171",
    )
    text(root / "train_val_list.txt", "00000002_000.png")
    text(root / "test_list.txt", "00000001_000.png")
    image(root / "images_001" / "images" / "00000001_000.png")
    image(root / "images_002" / "images" / "00000002_000.png")
    return {
        "label": [1, 0],
        "Cardiomegaly": [1, 0],
        "Emphysema": [1, 0],
        "Edema": [0, 0],
        "sex": ["male", "female"],
        "age": ["57", ""],
        "patient_id": ["1", "2"],
        "view": ["PA", "AP"],
        "split": ["test", "train"],
    }


def harvard_gf3300(root):
    thickness = np.full((200, 200), 350.0, np.float32)
    for name, glaucoma, male, race in (("train/data_0001", 1, 0, 1), ("test/data_0002", 0, 1, "White or Caucasian")):
        path = root / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, rnflt=thickness * male, glaucoma=glaucoma, age=61.5, male=male, race=race, md=-3.0)
    return {
        "label": ["1", "0"],
        "sex": ["female", "male"],
        "age": ["61.5", "61.5"],
        "race": ["black", "white"],
        "patient_id": ["data_0001", "data_0002"],
        "split": ["train", "test"],
    }


FOLDERS = {
    "ham10000": ham10000,
    "isic2017": isic2017,
    "isic2018": isic2018,
    "isic2019": isic2019,
    "isic2020": isic2020,
    "fitzpatrick17k": fitzpatrick17k,
    "pad-ufes-20": pad_ufes_20,
    "derm7pt": derm7pt,
    "papila": papila,
    "ol3i": ol3i,
    "oasis1": oasis1,
    "chexpert": chexpert,
    "mimic-cxr-jpg": mimic_cxr_jpg,
    "nih-chestxray14": nih_chestxray14,
    "harvard-gf3300": harvard_gf3300,
}


def test_every_dataset_has_a_made_up_folder_here():
    assert list(FOLDERS) == list(datasets.DATASETS)


@pytest.mark.parametrize("name", FOLDERS)
def test_an_official_folder_becomes_a_manifest(name, tmp_path):
    expected = FOLDERS[name](tmp_path)
    table = datasets.prepare(name, tmp_path)
    assert {key: table[key].tolist() for key in expected} == expected
    assert list(table.columns[:2]) == ["path", "label"]


@pytest.mark.parametrize("name", FOLDERS)
def test_every_path_of_a_manifest_is_a_file_under_the_root(name, tmp_path):
    FOLDERS[name](tmp_path)
    paths = datasets.prepare(name, tmp_path)["path"]
    assert all((tmp_path / path).is_file() for path in paths)
    assert paths.is_unique


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wrong_folder_says_what_was_expected(name, tmp_path):
    with pytest.raises(DataError, match=r"expected .*\.(csv|xlsx|npz)"):
        datasets.prepare(name, tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        datasets.prepare(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", sorted(set(FOLDERS) - {"papila", "harvard-gf3300"}))
def test_a_table_without_an_official_column_names_it(name, tmp_path):
    FOLDERS[name](tmp_path)
    for path in tmp_path.rglob("*.csv*"):
        text(path, "something,else", "1,2")
    with pytest.raises(DataError, match=r"the official file has a column '"):
        datasets.prepare(name, tmp_path)


@pytest.mark.parametrize("name", sorted(set(FOLDERS) - {"chexpert", "mimic-cxr-jpg", "harvard-gf3300"}))
def test_tables_without_their_images_are_an_error(name, tmp_path):
    FOLDERS[name](tmp_path)
    for path in tmp_path.rglob("*"):
        if path.suffix.lower() in {".jpg", ".png", ".gif"}:
            path.unlink()
    with pytest.raises(DataError, match=r"none of the \d+ images"):
        datasets.prepare(name, tmp_path)


def test_rows_without_an_image_are_left_out_and_counted(tmp_path, caplog):
    fitzpatrick17k(tmp_path)
    table = datasets.prepare("fitzpatrick17k", tmp_path)
    assert (len(table), table.attrs["left_out"]) == (2, 1)
    assert "1 of 3 images" in caplog.text


@pytest.mark.parametrize("name", ["HAM10000", "ham-10000", "PAD-UFES-20", "pad_ufes_20", "NIH ChestXray14"])
def test_names_are_taken_in_any_spelling(name, tmp_path):
    with pytest.raises(DataError, match="not an official folder"):
        datasets.prepare(name, tmp_path)


def test_an_unknown_name_gets_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'chexpert'"):
        datasets.prepare("cheXprt", tmp_path)


def test_a_written_manifest_loads(tmp_path):
    isic2020(tmp_path)
    path = datasets.write_manifest("isic2020", tmp_path, tmp_path / "manifest.csv")
    data = load_manifest(path, target="label", sensitive="sex", cluster="patient_id")
    assert data.targets.tolist() == [0, 1]
    assert data.attributes[0].groups == ("female", "male")


def test_maps_that_are_no_files_are_written_as_npz_beside_the_manifest(tmp_path):
    harvard_gf3300(tmp_path)
    path = datasets.write_manifest("harvard-gf3300", tmp_path, tmp_path / "out.csv")
    assert path.suffix == ".npz"
    data = load_manifest(path, target="label", sensitive="race", normalize="none", channels=1)
    assert data.inputs(slice(None)).amax((1, 2, 3)).tolist() == [0, 1]


def test_an_unwritable_manifest_is_a_data_error(tmp_path):
    isic2020(tmp_path)
    with pytest.raises(DataError, match="cannot be written"):
        datasets.write_manifest("isic2020", tmp_path, tmp_path / "no" / "such" / "folder.csv")


@pytest.mark.parametrize("name", ["isic2017", "isic2018", "isic2019", "isic2020"])
def test_a_label_that_is_no_number_is_named(name, tmp_path):
    FOLDERS[name](tmp_path)
    for path in tmp_path.rglob("*GroundTruth.csv"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], lines[1][:-1] + "?"]) + "\n")
    with pytest.raises(DataError, match=r"GroundTruth.csv: column '\w+' should hold numbers; row 0"):
        datasets.prepare(name, tmp_path)


def test_papila_says_which_extra_reads_excel(tmp_path, monkeypatch):
    papila(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bmft\[medical\]'"):
        datasets.prepare("papila", tmp_path)


def test_a_damaged_npz_of_a_patient_is_named(tmp_path):
    harvard_gf3300(tmp_path)
    (tmp_path / "train" / "data_0001.npz").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(DataError, match="data_0001"):
        datasets.prepare("harvard-gf3300", tmp_path)


def test_readers_are_loaded_only_when_asked_for():
    code = "import sys, bmft.datasets; print([m for m in sys.modules if m.startswith('bmft.datasets.')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
"""


@pytest.fixture
def grown(bmft, tmp_path):
    """Prepare a made-up folder, then write a manifest of the same splits with enough rows, people and pictures."""

    def grow(name):
        root = tmp_path / "release"
        root.mkdir()
        FOLDERS[name](root)
        assert bmft("prepare", name, root, "--out", "first.csv") == 0
        table = pd.read_csv("first.csv", dtype=str, keep_default_na=False)
        table = pd.concat([table] * (120 // len(table)), ignore_index=True).sort_values("split", kind="stable")
        rng = np.random.default_rng(0)
        for i in range(len(table)):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        turns = np.arange(len(table))
        table["path"] = [f"{i}.png" for i in turns]
        table["label"], table["sex"] = turns % 2, np.where(turns // 2 % 2, "female", "male")
        table["patient_id"] = [f"p{i // 4}-{part}" for i, part in zip(turns, table["split"], strict=True)]
        table.to_csv("all.csv", index=False)
        (tmp_path / "net.py").write_text(NETWORK)
        sys.modules.pop("net", None)
        names: dict[str, object] = {}
        exec(NETWORK, names)
        torch.manual_seed(0)
        torch.save(names["build"]().state_dict(), "model.pt")
        return table

    yield grow
    sys.modules.pop("net", None)


@pytest.mark.parametrize(
    "name", ["pad-ufes-20", "papila", *in_ci(*(name for name in FOLDERS if name not in ("pad-ufes-20", "papila")))]
)
def test_what_prepare_writes_is_debiased_by_its_split_column(name, grown, bmft, capsys, few_steps, plain_charts):
    table = grown(name)
    command = "debias model.pt --arch net:build --data all.csv --label label --sensitive sex --epochs 1,1 --keep last"
    code = bmft(*command.split(), "--cluster", "patient_id", "--split-column", "split", "--report", "report")
    said = capsys.readouterr().err
    assert code == 0, said
    report = json.loads(Path("report/report.json").read_text())
    sizes = table["split"].value_counts()
    there = [split for split in ("validation", "valid", "validate") if split in sizes]
    none = not any(sizes.index)
    assert report["evaluated_on"] == ("test" if "test" in sizes else "out of fold" if none else "select")
    if "test" in sizes:
        assert report["before"]["n"] == sizes["test"]
    elif none:
        assert report["before"]["n"] == len(table)
    else:
        chosen = sizes[there[0]] if there else sizes.get("train", len(table)) / 2
        assert report["before"]["n"] == pytest.approx(chosen, abs=4)
    assert there or ("5 folds" if none else "half of") in said


def test_a_set_without_an_official_split_is_measured_on_every_row(grown, bmft, capsys):
    grown("papila")
    command = "audit model.pt --arch net:build --data all.csv --label label --sensitive sex --split-column split"
    assert bmft(*command.split()) == 0
    out, said = capsys.readouterr()
    assert "every row of all.csv: n = 120" in out
    assert "the split column 'split' is empty" in said
