"""Data sets of unsure layout: RadImageNet, ultrasoundcases.info, LEPset; every file is accounted for."""

import os

import pytest
from test_readers_one import accounted, by_name, plant, put, refusal

from ussl import notice
from ussl_plugins.sources.lepset import LEPset
from ussl_plugins.sources.radimagenet import RadImageNet
from ussl_plugins.sources.ultrasoundcases import UltrasoundCases


@pytest.fixture(autouse=True)
def _say_again(monkeypatch):
    monkeypatch.setattr(notice, "_said", set())


# RadImageNet


@pytest.mark.parametrize("top", ["", "radimagenet/"])
def test_of_radimagenet_only_ultrasound_is_indexed_by_class_organ_and_published_split(tmp_path, top, capsys):
    us = f"{top}radiology_ai/US"
    plant(tmp_path, f"{us}/liver/usn1.png", f"{us}/Portal Vein/a.PNG", f"{us}/CBD/b.png", f"{us}/thyroid nodule/c.png")
    plant(tmp_path, f"{us}/testis/d.png", f"{us}/loose.png", f"{us}/liver/__MACOSX/usn1.png", f"{top}readme")
    plant(tmp_path, f"{top}radiology_ai/CT/abd/liver/e.png", f"{top}radiology_ai/MR/knee/acl/f.png")
    plant(tmp_path, f"{top}correction_masks/usn1.npy", f"{top}correction_masks/usn1.png", f"{top}figure.png")
    head = "filename,label\n"
    put(tmp_path / f"{top}RadiologyAI_train.csv", f"{head}radiology_ai/US/liver/usn1.png,liver\n", "utf-8-sig")
    put(tmp_path / f"{top}RadiologyAI_val.csv", f"{head}radiology_ai/CT/abd/liver/e.png,abd-liver\n")
    listed = "radiology_ai/US/portal vein/a.png,pv\nradiology_ai/US/aorta/gone.png,aorta\n"
    put(tmp_path / f"{top}RadiologyAI_test.csv", head + listed)
    source = RadImageNet(path=tmp_path)
    rows, lost = accounted(source)
    assert by_name(rows, "organ") == {
        "usn1": "liver",
        "a": "vein",
        "b": "bile duct",
        "c": "thyroid",
        "d": "testis",
    }
    assert by_name(rows, "label")["a"] == "Portal Vein"
    assert by_name(rows, "split") == {"usn1": "train", "a": "test", "b": None, "c": None, "d": None}
    assert {row["group_kind"] for row in rows} == {"image"}
    assert not any("patient" in row for row in rows)
    reasons = {os.path.basename(item["path"]): item["rejected"] for item in lost}
    assert reasons.keys() == {"loose.png", "figure.png", "gone.png"}
    assert reasons["gone.png"] == "listed in RadiologyAI_test.csv, but there is no such file"
    assert source.aside == {
        "CT pictures": 1,
        "MR pictures": 1,
        "correction masks": 2,
        "tables": 3,
        "nameless files": 1,
    }
    said = capsys.readouterr().err
    assert said.count("the class testis is of no organ known here") == 1
    assert "3 pictures are in no table" in said


@pytest.mark.parametrize(
    ("label", "organ"),
    [("IVC", "vein"), ("fibroid", "uterus"), ("portal_vein", "vein"), ("Thyroid", "thyroid"), ("bladder", "bladder")],
)
def test_the_classes_of_radimagenet_are_organs_of_the_table(tmp_path, label, organ):
    plant(tmp_path, f"US/{label}/a.png")
    ((row,), _) = accounted(RadImageNet(path=tmp_path))
    assert (row["organ"], row["label"]) == (organ, label)


def test_radimagenet_may_be_named_by_the_folder_us_or_hold_its_classes_alone(tmp_path):
    plant(tmp_path / "US", "liver/a.png", "kidney/b.png")
    plant(tmp_path / "copy", "ultrasound/Kidney/b.png", "ultrasound/liver/a.png")
    for root in ("US", "copy"):
        rows, lost = accounted(RadImageNet(path=tmp_path / root))
        assert by_name(rows, "organ") == {"a": "liver", "b": "kidney"}
        assert not lost


def test_tables_of_radimagenet_may_lie_elsewhere_and_the_side_further_from_training_counts(tmp_path, capsys):
    plant(tmp_path / "pictures", "radiology_ai/US/liver/a.png")
    for part in ("train", "val", "test"):
        put(tmp_path / f"tables/RadiologyAI_{part}.csv", "filename,label\nradiology_ai/US/liver/a.png,liver\n")
    ((row,), _) = accounted(RadImageNet(path=tmp_path / "pictures", tables=tmp_path / "tables"))
    assert row["split"] == "test"
    assert "2 pictures are in several of" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no such folder"):
        list(RadImageNet(path=tmp_path / "pictures", tables=tmp_path / "nowhere").listing())
    with pytest.raises(ValueError, match=r"expected RadiologyAI_train\.csv"):
        list(RadImageNet(path=tmp_path / "pictures", tables=tmp_path / "pictures").listing())


# ultrasoundcases.info

HEAD = "group,subgroup,subgroup url,case description,img url,img name,sex,age,body part\n"


def crawled(name, case="A lump", group="Breast", part="Breast"):
    return f'{group},"Benign, simple",/cases/7/,{case},https://x.info/t/{name}.jpg?s=1,{name}.jpg,F,45,{part}\n'


@pytest.mark.parametrize("table", ["HMSS.csv", "tables/HMSS.csv"])
def test_crawled_pictures_are_grouped_by_case_with_what_the_table_says(tmp_path, table, capsys):
    plant(tmp_path, "imgs/5-98-1.JPG", "imgs/5-98-2.jpg", "imgs/6-1-1.jpg", "imgs/9-9-9.jpg", "imgs/clip.mp4")
    rest = crawled("5-98-2") + crawled("6-1-1", "Another") + crawled("7-7-7") + crawled("6-1-1", "Again")
    put(tmp_path / table, HEAD + crawled("5-98-1") + rest, "utf-8-sig")
    put(tmp_path / "links.csv", "url\nx\n")
    source = UltrasoundCases(path=tmp_path)
    rows, lost = accounted(source)
    patients = by_name(rows, "patient")
    assert patients["5-98-1"] == patients["5-98-2"] != patients["6-1-1"]
    assert patients["6-1-1"].endswith("Another")
    assert by_name(rows, "group_kind") == {"5-98-1": "case", "5-98-2": "case", "6-1-1": "case", "9-9-9": "image"}
    assert by_name(rows, "label")["5-98-1"] == "Benign, simple"
    assert by_name(rows, "organ") == {"5-98-1": "breast", "5-98-2": "breast", "6-1-1": "breast", "9-9-9": None}
    assert (rows[0]["sex"], rows[0]["age"], rows[0]["group"]) == ("F", "45", "Breast")
    assert [os.path.basename(item["path"]) for item in lost] == ["7-7-7.jpg"]
    assert source.aside == {"tables": 1, ".csv files": 1, ".mp4 files": 1}
    said = capsys.readouterr().err
    assert "1 rows of tables name a picture again" in said
    assert "1 pictures are in no table" in said


def test_a_table_of_a_section_is_about_the_pictures_of_its_own_folder(tmp_path):
    plant(tmp_path, "section7/imgs/1.jpg", "section8/1.jpg")
    put(tmp_path / "section7/section7.csv", HEAD + crawled("1", "Seven"))
    put(tmp_path / "section8/section8.csv", HEAD + crawled("1", "Eight", part="Thyroid"))
    rows, lost = accounted(UltrasoundCases(path=tmp_path))
    assert [row["patient"].split()[-1] for row in rows] == ["Seven", "Eight"]
    assert [row["organ"] for row in rows] == ["breast", "thyroid"]
    assert not lost


def test_columns_of_a_crawl_can_be_named_otherwise(tmp_path):
    plant(tmp_path, "a/1.png", "b/1.png")
    text = "Picture File;Case No;Diagnosis;split;Organ\na/1.png;12;cyst;fold2;Liver\nold/b/1;13;;fold1;Liver\n"
    put(tmp_path / "list.csv", text)
    options = {"image": "Picture File", "case": "Case No", "label": "diagnosis"}
    rows, lost = accounted(UltrasoundCases(path=tmp_path, organ_column="organ", **options))
    assert [(row["patient"], row.get("label"), row["organ"]) for row in rows] == [
        ("12", "cyst", "liver"),
        ("13", None, "liver"),
    ]
    assert [row["table_split"] for row in rows] == ["fold2", "fold1"]
    assert not lost
    rows, _ = accounted(UltrasoundCases(path=tmp_path, organ="breast", **options))
    assert {row["organ"] for row in rows} == {"breast"}


def test_an_older_crawl_tells_cases_by_their_cover_and_pictures_by_their_address(tmp_path):
    plant(tmp_path, "5-98-1.jpg", "5-98-2.jpg", "9.jpg")
    head = "subgroup,img url,case id/cover img id,tumor type\n"
    same = "x,https://x.info/a/9.jpg,9,benign\nx,https://x.info/b/9.jpg,8,benign\n"
    put(
        tmp_path / "t.csv",
        f"{head}x,https://x.info/a/5-98-1.jpg,5-98,benign\nx,//x.info/5-98-2.jpg,5-98,benign\n{same}",
    )
    rows, _ = accounted(UltrasoundCases(path=tmp_path, label="tumor type"))
    assert by_name(rows, "patient") == {"5-98-1": "5-98", "5-98-2": "5-98", "9": None}
    assert by_name(rows, "label") == {"5-98-1": "benign", "5-98-2": "benign", "9": None}


def test_wrong_columns_of_a_crawl_are_refused_with_those_there_are(tmp_path):
    plant(tmp_path, "1.jpg")
    put(tmp_path / "t.csv", HEAD + crawled("1"))
    for option in ({"label": "diagnosis"}, {"case": ["case", "subgroup"]}, {"organ_column": "part"}):
        with pytest.raises(ValueError, match=r"t\.csv: no column .*; its columns are: age, body_part"):
            list(UltrasoundCases(path=tmp_path, **option).listing())
    with pytest.raises(ValueError, match="no column `file`"):
        list(UltrasoundCases(path=tmp_path, table=tmp_path / "t.csv", image="file").listing())
    with pytest.raises(ValueError, match="organ_column has no effect"):
        UltrasoundCases(organ="breast", organ_column="body part")


# LEPset


def test_pictures_of_lepset_take_their_label_from_class_folders(tmp_path, capsys):
    plant(tmp_path, "LEPset/Labeled/Pancreatic Cancer/p1/1.jpg", "LEPset/Labeled/non-pancreatic cancer/1.jpg")
    plant(tmp_path, "LEPset/Unlabeled data/1.JPG", "LEPset/other/1.jpg", "LEPset/readme.md")
    source = LEPset(path=tmp_path)
    rows, lost = accounted(source)
    assert [row.get("label") for row in rows] == ["non-pancreatic cancer", "pancreatic cancer", None]
    assert {(row["organ"], row["group_kind"]) for row in rows} == {("pancreas", "image")}
    assert "--classes" in lost[0]["rejected"]
    assert len(lost) == source.aside[".md files"] == 1
    assert "LEPset has no patient ids" in capsys.readouterr().err


def test_other_names_of_class_folders_can_be_given(tmp_path):
    plant(tmp_path, "train/0/a.png", "test/1/b.png")
    with pytest.raises(ValueError, match="not lepset as it is published: expected class folders"):
        list(LEPset(path=tmp_path).listing())
    rows, _ = accounted(LEPset(path=tmp_path, classes={"0": "pancreatic cancer", "1": "none"}))
    assert by_name(rows, "label") == {"a": "pancreatic cancer", "b": "none"}
    assert by_name(rows, "split") == {"a": "train", "b": "test"}
    with pytest.raises(ValueError, match="classes names the folder 2"):
        list(LEPset(path=tmp_path, classes={"0": "a", "2": "b"}).listing())


def test_a_picture_in_several_folds_of_lepset_is_indexed_once(tmp_path):
    sup = "data/withoutMOT/sup"
    plant(tmp_path, *(f"{sup}/{part}/PC/a.png" for part in ("train_fold1", "val_fold2", "train_fold3")))
    plant(tmp_path, *(f"{sup}/{part}/NPC/a.png" for part in ("val_fold1", "train_fold2", "train_fold3")))
    plant(tmp_path, "data/withoutMOT/unsup/PC/a.png", "data/withoutMOT/unsup/x/a.png")
    source = LEPset(path=tmp_path)
    rows, lost = accounted(source)
    assert source.aside == {"copies in other folds": 4}
    assert not lost
    labelled = {row["label"]: row for row in rows if "label" in row}
    assert [labelled["pancreatic cancer"][f"fold_{fold}"] for fold in (1, 2, 3)] == ["train", "val", "train"]
    assert [labelled["non-pancreatic cancer"][f"fold_{fold}"] for fold in (1, 2, 3)] == ["val", "train", "train"]
    assert len(rows) == 4
    assert not any("split" in row for row in rows)
    rows, _ = accounted(LEPset(path=tmp_path, fold=2))
    assert sorted(row["split"] for row in rows if "label" in row) == ["train", "val"]
    with pytest.raises(ValueError, match=r"no fold 4; its folds are: \[1, 2, 3\]"):
        list(LEPset(path=tmp_path, fold=4).listing())


def test_a_part_of_lepset_is_known_by_the_name_of_its_folder(tmp_path):
    plant(tmp_path / "lepset_unlabelled", "1.png", "more/2.png")
    rows, _ = accounted(LEPset(path=tmp_path / "lepset_unlabelled"))
    assert len(rows) == 2
    assert not any("label" in row for row in rows)


@pytest.mark.parametrize("reader", [RadImageNet, UltrasoundCases, LEPset])
def test_a_folder_of_something_else_is_refused_with_what_was_expected_and_found(tmp_path, reader):
    (tmp_path / "none").mkdir()
    assert refusal(reader(path=tmp_path / "none")).endswith("found nothing")
    plant(tmp_path / "some", "mass/1.jpg", "notes.txt")
    line = refusal(reader(path=tmp_path / "some"))
    assert line.startswith(f"{tmp_path / 'some'}: not {reader.name} as it is published: expected {reader.expected}")
    assert line.endswith("found mass, notes.txt")
