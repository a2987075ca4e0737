"""Data sets as published and as copied: BUV, BUS-BRA, BUID, fetal planes; every file is accounted for."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from ussl import notice
from ussl.data import manifest
from ussl.data.folders import walk
from ussl_plugins.sources.buid import BUID
from ussl_plugins.sources.bus_bra import BUSBRA
from ussl_plugins.sources.buv import BUV
from ussl_plugins.sources.fetal_planes_db import FetalPlanes

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


@pytest.fixture(autouse=True)
def _say_again(monkeypatch):
    monkeypatch.setattr(notice, "_said", set())


def plant(root, *names, mode="L"):
    """Pictures (by their end) and other files of these names under `root`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".bmp", ".tif"):
            Image.fromarray(GREY).convert(mode).save(path)
        else:
            path.write_text("something else")


def put(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def accounted(source):
    """The rows and the rejected of a source, once it is certain that they and what is set aside are all files."""
    items = list(source.listing())
    there = [item["path"] for item in items if os.path.exists(item["path"])]
    assert len(set(there)) == len(there)
    assert len(there) + sum(source.aside.values()) == len(list(walk(source.root)))
    assert 0 not in source.aside.values()
    rows = [item for item in items if "rejected" not in item]
    assert list(source.rows()) == rows
    for row in rows:
        picture = source.read(row)
        assert picture.shape == GREY.shape
        assert np.abs(picture.astype(int) - GREY).max() < 8  # JPEG loses some
    return rows, [item for item in items if "rejected" in item]


def by_name(rows, column):
    """A column of rows by the file's name without its end."""
    return {os.path.splitext(os.path.basename(row["path"]))[0]: row.get(column) for row in rows}


def refusal(source):
    """The one line that a source refuses its folder with."""
    with pytest.raises(ValueError, match="expected") as caught:
        list(source.listing())
    assert "\n" not in str(caught.value)
    return str(caught.value)


# BUV


def coco(frames, boxes=()):
    """A table of frames in COCO's form: names, and (name, box) pairs."""
    images = [{"id": i, "file_name": name, "video_id": 1, "frame_id": i} for i, name in enumerate(frames, 1)]
    ids = {image["file_name"]: image["id"] for image in images}
    said = [{"id": i, "image_id": ids[name], "category_id": 1, "bbox": box} for i, (name, box) in enumerate(boxes)]
    categories = [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}]
    return json.dumps({"categories": categories, "videos": [], "images": images, "annotations": said})


@pytest.mark.parametrize("train", ["train.json", "imagenet_vid_train_15frames.json", "trainval.json"])
@pytest.mark.parametrize("top", ["", "Miccai 2022 BUV Dataset/"])
def test_frames_of_buv_have_label_video_split_and_box_whatever_the_json_is_called(tmp_path, train, top):
    plant(tmp_path, *(f"{top}rawframes/benign/x0a/00000{i}.png" for i in (0, 1, 10)), f"{top}readme.txt")
    plant(tmp_path, f"{top}rawframes/Malignant/7f/000000.PNG", "__MACOSX/rawframes/benign/x0a/._000000.png")
    put(tmp_path / top / train, coco(["benign/x0a/000000.png"], [("benign/x0a/000000.png", [5, 4, 3, 2])]))
    held_out = "test.json" if train == "trainval.json" else "annotations/instances_imagenet_vid_val.json"
    put(tmp_path / top / held_out, coco(["malignant/x7f/000000.png"]))
    source = BUV(path=tmp_path)
    rows, lost = accounted(source)
    assert not lost
    assert source.aside == {"tables": 2, ".txt files": 1}
    assert [row["frame_number"] for row in rows] == [0, 1, 10, 0]
    assert [row["label"] for row in rows] == ["benign"] * 3 + ["malignant"]
    assert [row["split"] for row in rows] == ["train"] * 3 + [{"test.json": "test"}.get(held_out, "val")]
    assert [row["video"] for row in rows] == ["0a", "0a", "0a", "7f"]
    assert {(row["group_kind"], row["organ"], row["source"]) for row in rows} == {("video", "breast", "buv")}
    assert [rows[0][f"box_{name}"] for name in ("x", "y", "width", "height")] == [5, 4, 3, 2]
    assert "box_x" not in rows[1]


def test_a_box_of_buv_drawn_from_right_to_left_is_turned_and_a_second_one_kept(tmp_path):
    name = "benign/x1/000000.png"
    plant(tmp_path, f"rawframes/{name}")
    put(tmp_path / "train.json", coco([name], [(name, [50, 40, -30, -20]), (name, [1, 2, 3, 4])]))
    (row,), _ = accounted(BUV(path=tmp_path))
    assert [row[f"box_{side}"] for side in ("x", "y", "width", "height")] == [20, 20, 30, 20]
    assert [row[f"box_{side}_1"] for side in ("x", "y", "width", "height")] == [1, 2, 3, 4]


PATIENT = ("benign/x63c9ba1377f35bf6", "benign/5a1c46ec6377e946", "malignant/2390fbea047347b")
LAST = "malignant/x7a39ab5d4970bf89"


def test_the_authors_corrections_of_buv_are_applied(tmp_path):
    videos = (*PATIENT, LAST, "benign/x66ef02e7f1b9a0ef", "malignant/3b88488853e8b7d1", "benign/1")
    plant(tmp_path, *(f"rawframes/{video}/000000.png" for video in videos))
    put(tmp_path / "train.json", coco(["benign/63c9ba1377f35bf6/000000.png"]))
    rows, lost = accounted(BUV(path=tmp_path))
    assert [item["path"].split("/")[-2] for item in lost] == ["x66ef02e7f1b9a0ef"]
    assert "copy of malignant/x3b88488853e8b7d1" in lost[0]["rejected"]
    one = [row for row in rows if row["group_kind"] == "patient"]
    assert len(one) == 4
    assert {(row["label"], row["patient"]) for row in one} == {("malignant", one[0]["patient"])}
    assert [row["video"] for row in one if "split" in row] == ["63c9ba1377f35bf6"]
    assert len({row["patient"] for row in rows}) == 3
    assert not any("flag" in row for row in rows)


def test_the_corrections_of_buv_can_be_left_out(tmp_path):
    plant(tmp_path, *(f"rawframes/{video}/000000.png" for video in (*PATIENT, LAST, "benign/66ef02e7f1b9a0ef")))
    rows, lost = accounted(BUV(path=tmp_path, corrected=False))
    assert not lost
    assert len({row["patient"] for row in rows}) == 5
    assert [row["label"] for row in rows] == ["benign"] * 3 + ["malignant"] * 2


def test_a_table_still_holds_for_a_video_of_buv_that_a_copy_has_moved_to_its_right_label(tmp_path):
    plant(tmp_path, "malignant/63c9ba1377f35bf6/000000.png")
    name = "benign/x63c9ba1377f35bf6/000000.png"
    put(tmp_path / "val.json", coco([name], [(name, [1, 2, 3, 4])]))
    (row,), lost = accounted(BUV(path=tmp_path))
    assert (row["split"], row["label"], row["box_height"], lost) == ("val", "malignant", 4, [])


def test_two_identical_videos_of_buv_under_both_labels_are_one_group_and_flagged(tmp_path):
    plant(tmp_path, "rawframes/benign/x1282311c38f808f/0.png", "rawframes/malignant/9c1c965d274c457/0.png")
    rows, _ = accounted(BUV(path=tmp_path))
    assert {row["flag"] for row in rows} == {"doubtful_label"}
    assert len({row["patient"] for row in rows}) == 1
    assert len({row["video"] for row in rows}) == 2


def test_a_frame_that_only_the_json_of_buv_knows_is_rejected(tmp_path):
    plant(tmp_path, "rawframes/benign/x1/000000.png", "rawframes/benign/loose.png", "figure.png")
    put(tmp_path / "val.json", coco(["benign/1/000000.png", "benign/1/000001.png"]))
    rows, lost = accounted(BUV(path=tmp_path))
    assert len(rows) == 1
    reasons = {os.path.basename(item["path"]): item["rejected"] for item in lost}
    assert reasons["000001.png"] == "listed in val.json, but there is no such file"
    assert "rawframes" in reasons["loose.png"]
    assert "rawframes" in reasons["figure.png"]


@pytest.mark.parametrize("content", ['{"images": [{"id": 1}]}', '{"images": [{"id": 1, "file_name": "a.png"}]}', "{"])
def test_a_json_of_buv_that_cannot_be_understood_is_named(tmp_path, content):
    plant(tmp_path, "rawframes/benign/x1/000000.png")
    put(tmp_path / "train.json", content)
    with pytest.raises(ValueError, match=r"train\.json: not "):
        list(BUV(path=tmp_path).listing())


# BUS-BRA

TABLE = "ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX\n"
ONE = 'bus_0001-l,7,"Fibroadenoma, simple",Benign,3,GE Logiq 7,8,6,left,"[1,2,3,4]"\n'
TWO = "bus_0002-r,7,Carcinoma,malignant,5,GE Logiq 7,8,6,right,\n"
THREE = "bus_0003-r,8,Carcinoma,malignant,5,GE Logiq 7,8,6,right,\n"


@pytest.mark.parametrize("top", ["", "BUSBRA/BUSBRA/"])
def test_bus_bra_is_grouped_by_case_and_has_masks_and_folds(tmp_path, top):
    plant(tmp_path, *(f"{top}Images/bus_000{end}.png" for end in ("1-l", "2-r")), "__MACOSX/Images/._bus_0001-l.png")
    plant(tmp_path, *(f"{top}Masks/mask_000{end}.png" for end in ("1-l", "2-r", "9-l")), f"{top}license.txt")
    put(tmp_path / top / "bus_data.csv", f"{TABLE}{ONE}{TWO}{THREE}", "utf-8-sig")
    put(tmp_path / top / "5-fold-cv.csv", "ID,Pathology,kFold,valid_1,valid_2\nbus_0001-l,benign,1,0,1\n")
    put(tmp_path / top / "10-fold-cv.csv", "ID,Pathology,kFold,valid_1\nbus_0001-l,benign,9,1\n")
    source = BUSBRA(path=tmp_path)
    rows, lost = accounted(source)
    assert source.aside == {"tables": 3, "masks": 2, "masks without a picture": 1, ".txt files": 1}
    assert by_name(rows, "patient") == {"bus_0001-l": "7", "bus_0002-r": "7"}
    assert by_name(rows, "label") == {"bus_0001-l": "benign", "bus_0002-r": "malignant"}
    masks = by_name(rows, "mask_lesion")
    assert masks["bus_0002-r"] == str(tmp_path / top / "Masks/mask_0002-r.png")
    first = rows[0]
    assert (first["histology"], first["birads"], first["side"]) == ("Fibroadenoma, simple", "3", "left")
    assert (first["kfold_5"], first["kfold_5_valid_2"], first["kfold_10"]) == ("1", "1", "9")
    assert (first["table_width"], first["group_kind"], first["organ"]) == ("8", "patient", "breast")
    assert not {"width", "split"} & first.keys()
    assert [(os.path.basename(x["path"]), x["rejected"]) for x in lost] == [
        ("bus_0003-r.png", "listed in bus_data.csv, but there is no such file")
    ]


def test_a_copy_of_bus_bra_with_other_names_is_read_without_patients(tmp_path, capsys):
    plant(tmp_path, "images/img_0.png", "images/img_1.png", "masks/img_0.png", "root.png")
    put(tmp_path / "annotations.csv", "image_filename,pathology,birads\nimg_0.png,benign,2\n")
    rows, lost = accounted(BUSBRA(path=tmp_path))
    assert by_name(rows, "label") == {"img_0": "benign", "img_1": None}
    assert {row["group_kind"] for row in rows} == {"image"}
    assert not any("patient" in row for row in rows)
    assert by_name(rows, "mask_lesion") == {"img_0": str(tmp_path / "masks/img_0.png"), "img_1": None}
    assert [os.path.basename(item["path"]) for item in lost] == ["root.png"]
    assert capsys.readouterr().err.count("1 pictures are not in the table") == 1


def test_a_manifest_of_bus_bra_is_read_as_it_was_written(tmp_path):
    plant(tmp_path, "Images/bus_0001-l.png", "Masks/mask_0001-l.png")
    put(tmp_path / "bus_data.csv", f"{TABLE}{ONE}")
    rows, _ = accounted(BUSBRA(path=tmp_path))
    for name in ("manifest.csv", "manifest.parquet"):
        manifest.write(rows, tmp_path / name)
        assert manifest.read(tmp_path / name) == rows


# BUID


@pytest.mark.parametrize("top", ["", "BUID/", "BUID/Benign/"])
def test_of_buid_the_picture_alone_is_indexed_with_its_mask(tmp_path, top):
    plant(tmp_path, *(f"{top}Benign/{i} Benign {kind}.bmp" for i in (1, 2, 10) for kind in ("Image", "Lesion")))
    plant(tmp_path, *(f"{top}Benign/{i} Benign Mask.tif" for i in (1, 2, 3)))
    plant(tmp_path, f"{top}Malignant/1 malignant image.BMP", f"{top}Malignant/1 Malignant Mask.TIF")
    plant(tmp_path, f"{top}Malignant/1 Malignant Image copy.bmp", "Benign.zip")
    source = BUID(path=tmp_path)
    rows, lost = accounted(source)
    names = [os.path.splitext(os.path.basename(row["path"]))[0] for row in rows]
    assert names == ["1 Benign Image", "2 Benign Image", "10 Benign Image", "1 malignant image"]
    assert [row["label"] for row in rows] == ["benign"] * 3 + ["malignant"]
    assert len({row["patient"] for row in rows}) == 4
    assert {(row["group_kind"], row["organ"]) for row in rows} == {("case", "breast")}
    masks = [os.path.basename(row.get("mask_lesion", "")) for row in rows]
    assert masks == ["1 Benign Mask.tif", "2 Benign Mask.tif", "", "1 Malignant Mask.TIF"]
    assert source.aside == {
        "copies with the outline drawn in": 3,
        "masks": 3,
        "masks without a picture": 1,
        ".zip files": 1,
    }
    assert [os.path.basename(item["path"]) for item in lost] == ["1 Malignant Image copy.bmp"]


# FETAL_PLANES_DB

COLUMNS = "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train \n"
PLANES = (
    "Patient00001_Plane1_1_of_2;1;Other;Not A Brain;Other;Aloka;1\n"
    "Patient00002_Plane3_1_of_1;2;Fetal brain;Trans-thalamic;Op. 1;Voluson E6;0 \n"
    "Patient00003_Plane1_1_of_1;3;Fetal femur;Not A Brain;Op. 1;Voluson E6;0\n"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    "table", [COLUMNS + PLANES, f"{COLUMNS}{PLANES}".replace(";", ",").replace("Train ", "Train")]
)
def test_fetal_planes_have_patients_planes_and_the_published_split(tmp_path, table, encoding):
    top = tmp_path / "FETAL_PLANES_ZENODO"
    plant(top, "Images/Patient00001_Plane1_1_of_2.png", "Images/Patient00002_Plane3_1_of_1.PNG", mode="RGBA")
    plant(top, "Images/Patient00009_Plane3_1_of_1.png", "FETAL_PLANES_DB_data.xlsx", "License.txt", "cover.png")
    put(top / "FETAL_PLANES_DB_data.csv", table, encoding)
    source = FetalPlanes(path=tmp_path)
    rows, lost = accounted(source)
    assert source.aside == {"tables": 2, ".txt files": 1}
    assert [row.get("split") for row in rows] == ["train", "test", None]
    assert [row["patient"] for row in rows] == ["1", "2", "9"]
    assert [row.get("label") for row in rows] == ["Other", "Fetal brain", None]
    assert [row.get("us_machine") for row in rows] == ["Aloka", "Voluson E6", None]
    assert {(row["organ"], row["group_kind"]) for row in rows} == {("fetus", "patient")}
    reasons = {os.path.basename(item["path"]): item["rejected"] for item in lost}
    assert reasons["Patient00003_Plane1_1_of_1.png"].startswith("listed in FETAL_PLANES_DB_data.csv")
    assert "neither in the table nor in the folder Images" in reasons["cover.png"]


def test_numbers_of_a_table_of_fetal_planes_that_pandas_has_written_are_understood(tmp_path):
    plant(tmp_path, "Images/a.png")
    put(tmp_path / "data.csv", ",Image_name,Patient_num,Plane,Train\n0,a.png,12.0,Other,1.0\n")
    ((row,), _) = accounted(FetalPlanes(path=tmp_path))
    assert (row["patient"], row["split"]) == ("12", "train")


def test_a_split_that_is_no_split_is_named(tmp_path):
    plant(tmp_path, "Images/a.png")
    put(tmp_path / "data.csv", "Image_name;Patient_num;Plane;Train\na;1;Other;maybe\n")
    with pytest.raises(ValueError, match=r"data\.csv: the column Train says maybe"):
        list(FetalPlanes(path=tmp_path).listing())


def test_an_unrelated_table_is_set_aside_even_when_it_is_broken(tmp_path):
    plant(tmp_path, "Images/a.png")
    put(tmp_path / "data.csv", "Image_name;Patient_num;Plane;Train\na;1;Other;1\n")
    put(tmp_path / "notes.csv", "a,b\n1\n")
    (tmp_path / "more.csv").write_bytes(b"\xff\xfe\x00")
    put(tmp_path / "empty.csv", "")
    source = FetalPlanes(path=tmp_path)
    accounted(source)
    assert source.aside == {"tables": 1, ".csv files": 3}


def test_a_table_in_another_encoding_is_named(tmp_path):
    plant(tmp_path, "Images/a.png")
    put(tmp_path / "data.csv", "Image_name;Patient_num;Plane;Train\na;1;Fémur;1\n", "latin-1")
    with pytest.raises(ValueError, match=r"data\.csv: not a table in UTF-8"):
        list(FetalPlanes(path=tmp_path).listing())


@pytest.mark.parametrize("reader", [BUV, BUSBRA, BUID, FetalPlanes])
def test_a_folder_of_something_else_is_refused_with_what_was_expected_and_found(tmp_path, reader):
    (tmp_path / "none").mkdir()
    assert refusal(reader(path=tmp_path / "none")).endswith("found nothing")
    plant(tmp_path / "some", "liver/image/1.jpg", "notes.txt")
    line = refusal(reader(path=tmp_path / "some"))
    assert line.startswith(f"{tmp_path / 'some'}: not {reader.name} as it is published: expected {reader.expected}")
    assert line.endswith("found liver, notes.txt")
