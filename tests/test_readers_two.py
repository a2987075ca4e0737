"""Readers of published data sets on miniature trees: BUSI, Liver735, HC18, MMOTU, UF1990, Thyroid4K."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from ussl.data import masks
from ussl_plugins.sources.busi import BUSI
from ussl_plugins.sources.hc18 import HC18
from ussl_plugins.sources.liver735 import Liver735
from ussl_plugins.sources.mmotu import LABELS, MMOTU
from ussl_plugins.sources.thyroid4k import Thyroid4K
from ussl_plugins.sources.uf1990 import UF1990

READERS = [BUSI, Liver735, HC18, MMOTU, UF1990, Thyroid4K]
TRAIN, TEST = "training_set_pixel_size_and_HC.csv", "test_set_pixel_size.csv"


@pytest.fixture
def tree(tmp_path):
    """tree({name: text or None}): a folder of files; None is a small grey picture. Junk of a zip file is added."""

    def tree(files, folder="set"):
        root = tmp_path / folder
        for name, text in {**dict.fromkeys(files), **(files if isinstance(files, dict) else {})}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if text is None and not name.lower().endswith((".txt", ".csv", ".json")):
                with (root / name).open("wb") as file:
                    Image.fromarray(np.full((6, 8), len(name) % 250, dtype=np.uint8)).save(file, "PNG")
            else:
                (root / name).write_text(text or "", encoding="utf-8-sig")
        (root / "__MACOSX").mkdir()
        (root / "__MACOSX/._x.png").touch()
        (root / ".DS_Store").touch()
        return root

    return tree


def listed(reader):
    """Rows and rejected rows by path below the root; every file is one of them, or set aside, and counted once."""
    items = list(reader.listing())
    again = list(reader.listing())
    assert again == items
    files = {
        os.path.relpath(os.path.join(folder, name), reader.root)
        for folder, _, names in os.walk(reader.root)
        for name in names
        if "__MACOSX" not in folder and not name.startswith(".")
    }
    places = {os.path.relpath(row["path"], reader.root): row for row in items}
    assert len(places) == len(items)
    assert len(files & set(places)) + sum(reader.aside.values()) == len(files)
    rows = {place: row for place, row in places.items() if "rejected" not in row}
    assert list(reader.rows()) == list(rows.values())
    for row in rows.values():
        assert row["source"] == reader.name
        assert row["group_kind"] in ("patient", "case", "image")
        assert ("patient" in row) == (row["group_kind"] != "image")
        assert reader.read(row).shape == (6, 8)
        assert all(os.path.isfile(path) for path in masks.columns(row).values())
    return rows, {place: row["rejected"] for place, row in places.items() if "rejected" in row}


def regions(row, root):
    return {name: os.path.relpath(path, root) for name, path in masks.columns(row).items()}


@pytest.mark.parametrize("reader", READERS)
def test_another_folder_is_refused_with_what_was_expected_and_found(tree, tmp_path, reader):
    root = tree({"scan.png": None, "notes.txt": "x"})
    with pytest.raises(ValueError, match=r"notes\.txt, scan\.png") as caught:
        list(reader(path=root).listing())
    assert f"{root}: not {reader.name} as it is published: expected {reader.expected}; found " in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no such folder"):
        list(reader(path=tmp_path / "gone").listing())
    with pytest.raises(ValueError, match="Write its folder"):
        list(reader().listing())


def test_busi_has_all_masks_of_a_picture_and_no_mask_as_a_picture(tree):
    top = "Dataset_BUSI_with_GT"
    names = [
        *(f"{top}/benign/benign (1){end}.png" for end in ("", "_mask", "_mask_1", "_mask_2")),
        *(f"{top}/benign/benign (10){end}.png" for end in ("", "_mask")),
        *(f"{top}/malignant/malignant (1){end}.png" for end in ("", "_mask")),
        *(f"{top}/normal/normal (1){end}.png" for end in ("", "_mask")),
        f"{top}/normal/normal (2).png",
        f"{top}/normal/normal (3)_mask.png",
        f"{top}/readme.txt",
    ]
    reader = BUSI(path=tree(names))
    rows, rejected = listed(reader)
    assert not rejected
    assert len(rows) == 5
    first = rows[f"{top}/benign/benign (1).png"]
    assert (first["organ"], first["label"], first["group_kind"]) == ("breast", "benign", "image")
    assert list(regions(first, reader.root).items()) == [
        ("mask_lesion", f"{top}/benign/benign (1)_mask.png"),
        ("mask_lesion_1", f"{top}/benign/benign (1)_mask_1.png"),
        ("mask_lesion_2", f"{top}/benign/benign (1)_mask_2.png"),
    ]
    assert list(regions(rows[f"{top}/malignant/malignant (1).png"], reader.root).values()) == [
        f"{top}/malignant/malignant (1)_mask.png"
    ]
    assert set(regions(rows[f"{top}/normal/normal (1).png"], reader.root)) == {"mask_lesion"}
    assert not regions(rows[f"{top}/normal/normal (2).png"], reader.root)
    assert reader.aside == {"masks": 6, "masks without a picture": 1, ".txt files": 1}


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        ("images/benign/benign (1).png", "masks/benign/benign (1).png"),
        ("images/benign (1).png", "masks/benign (1)_mask.png"),
        ("Benign/images/1.PNG", "Benign/Masks/1.PNG"),
        ("benign/benign_1.png", "benign/mask/benign_1.png"),
        ("benign/1.jpg", "benign_masks/1.jpg"),
        ("train/BENIGN/Benign (1).bmp", "train/BENIGN/Benign (1)_Mask.bmp"),
        ("images/benign/benign (1).png", "images/benign/masks/benign (1)_mask.png"),
    ],
)
def test_busi_is_read_with_its_masks_moved(tree, picture, mask):
    reader = BUSI(path=tree([picture, mask]))
    rows, _ = listed(reader)
    assert list(rows) == [picture]
    assert rows[picture]["label"] == "benign"
    assert regions(rows[picture], reader.root) == {"mask_lesion": mask}


def test_busi_pictures_of_no_class_are_rejected_and_equal_numbers_are_kept_apart(tree):
    reader = BUSI(path=tree(["benign/1.png", "malignant/1.png", "malignant/1_mask.png", "cover.png"], "benign things"))
    rows, _ = listed(reader)
    assert rows["malignant/1.png"]["label"] == "malignant"
    assert "mask_lesion" not in rows["benign/1.png"]
    assert rows["cover.png"]["label"] == "benign"  # by the name of the root, where nothing else says it
    reader = BUSI(path=tree(["benign/1.png", "benign/1_mask.png", "cover.png"], "other"))
    assert listed(reader)[1] == {"cover.png": "neither its folders nor its name say benign, malignant, normal"}


SQUARE = json.dumps([[1.0, 1.0], [5.0, 1.0], [5.0, 4.0], [1.0, 4.0]])


def contours(folder, number, *regions):
    return {f"{folder}/segmentation/{region}/{number}.json": SQUARE for region in regions}


def test_liver735_has_contours_as_masks_and_a_patient_an_image(tree):
    files = {
        "Benign/Benign/image/2.jpg": None,
        **contours("Benign/Benign", 2, "liver", "outline", "mass"),
        "Normal/Normal/image/2.jpg": None,
        **contours("Normal/Normal", 2, "liver", "outline"),
        "Malignant/Malignant/image/1.JPG": None,
        **contours("Malignant/Malignant", 7, "mass"),
        "Malignant/Malignant/image/cover.jpg": None,
        "licence.txt": None,
    }
    reader = Liver735(path=tree(files))
    rows, rejected = listed(reader)
    row = rows["Benign/Benign/image/2.jpg"]
    assert (row["organ"], row["label"], row["patient"], row["group_kind"]) == (
        "liver",
        "benign",
        "benign_2",
        "patient",
    )
    assert regions(row, reader.root) == {
        "mask_liver": "Benign/Benign/segmentation/liver/2.json",
        "mask_sector": "Benign/Benign/segmentation/outline/2.json",
        "mask_mass": "Benign/Benign/segmentation/mass/2.json",
    }
    assert masks.read(row["mask_mass"], (6, 8)).sum() == 5 * 4
    assert set(regions(rows["Normal/Normal/image/2.jpg"], reader.root)) == {"mask_liver", "mask_sector"}
    assert not regions(rows["Malignant/Malignant/image/1.JPG"], reader.root)
    assert list(rejected) == ["Malignant/Malignant/image/cover.jpg"]
    assert reader.aside == {"masks": 5, "masks without a picture": 1, ".txt files": 1}


def test_liver735_liver_contours_in_the_outline_folder_are_put_right(tree):
    files = {f"{label}/image/{number}.jpg": None for label in ("Malignant", "Benign") for number in (229, 306, 374)}
    for label in ("Malignant", "Benign"):
        files |= (
            contours(label, 229, "outline", "mass") | contours(label, 306, "outline") | contours(label, 374, "outline")
        )
    rows, _ = listed(reader := Liver735(path=tree(files)))
    for number in (229, 306):
        liver = regions(rows[f"Malignant/image/{number}.jpg"], reader.root)
        assert liver["mask_liver"] == f"Malignant/segmentation/outline/{number}.json"
        assert "mask_sector" not in liver
        assert "mask_sector" in rows[f"Benign/image/{number}.jpg"]
        assert "mask_liver" not in rows[f"Benign/image/{number}.jpg"]
    assert set(regions(rows["Malignant/image/374.jpg"], reader.root)) == {"mask_sector"}


def test_liver735_mended_contours_stay(tree):
    files = {"Malignant/image/229.jpg": None, **contours("Malignant", 229, "outline", "liver")}
    rows, _ = listed(reader := Liver735(path=tree(files)))
    assert regions(rows["Malignant/image/229.jpg"], reader.root) == {
        "mask_liver": "Malignant/segmentation/liver/229.json",
        "mask_sector": "Malignant/segmentation/outline/229.json",
    }


def test_liver735_one_class_alone_is_known_by_the_roots_name(tree):
    rows, _ = listed(Liver735(path=tree({"image/3.jpg": None, **contours(".", 3, "liver")}, "benign")))
    assert rows["image/3.jpg"]["patient"] == "benign_3"
    assert "mask_liver" in rows["image/3.jpg"]


def test_the_real_livers_are_read_with_their_masks(ultrasound):
    reader = Liver735(path=ultrasound / "liver735")
    rows = list(reader.rows())
    assert len(rows) == len({row["patient"] for row in rows}) == 735
    assert sum("mask_mass" in row for row in rows) == 635
    assert reader.aside["masks"] == 1367
    for row in rows[::150]:
        size = reader.read(row).shape[:2]
        assert all(masks.read(path, size).mean() > 0.001 for path in masks.columns(row).values())


def hc18(parts=("training_set/training_set", "test_set/test_set")):
    train, test = parts
    return {
        f"{train}/000_HC.png": None,
        f"{train}/000_HC_Annotation.png": None,
        f"{train}/000_2HC.png": None,
        f"{train}/000_2HC_Annotation.png": None,
        f"{train}/010_HC.png": None,
        f"{test}/000_HC.png": None,
        TRAIN: "filename,pixel size(mm),head circumference (mm)\n000_HC.png,0.069,44.3\n000_2HC.png,0.07,56.81\n"
        "010_HC.png,0.1,200\n011_HC.png,0.1,200\n",
        TEST: "filename,pixel size(mm)\n000_HC.png,0.235\n",
    }


@pytest.mark.parametrize(
    "parts", [("training_set/training_set", "test_set/test_set"), ("training_set", "test_set"), ("Train", "TEST")]
)
def test_hc18_numbers_start_again_in_the_test_part(tree, parts):
    reader = HC18(path=tree(hc18(parts)))
    rows, rejected = listed(reader)
    train, test = parts
    assert [row["patient"] for row in rows.values()].count("train_000") == 2
    first, last = rows[f"{train}/000_2HC.png"], rows[f"{test}/000_HC.png"]
    assert (first["organ"], first["patient"], first["group_kind"]) == ("fetus", "train_000", "patient")
    assert (first["split"], first["hc_mm"], first["pixel_mm"]) == ("train", 56.81, 0.07)
    assert regions(first, reader.root) == {"outline_head": f"{train}/000_2HC_Annotation.png"}
    assert (last["split"], last["patient"], last["pixel_mm"]) == ("test", "test_000", 0.235)
    assert "hc_mm" not in last
    assert "outline_head" not in last
    assert len(rows) == 4
    assert rejected == {"training_set/011_HC.png": f"listed in {TRAIN}, but there is no such file"}
    assert reader.aside == {"tables": 2, "masks": 2}


def test_hc18_one_part_alone_is_read(tree):
    files = {name.removeprefix("training_set/"): text for name, text in hc18(("training_set", "x")).items()}
    files = {name: text for name, text in files.items() if name != TEST and not name.startswith("x/")}
    for folder in ("training_set", "pictures"):  # by the root's name, or by the one table
        rows, _ = listed(HC18(path=tree(files, folder)))
        assert rows["000_HC.png"]["patient"] == "train_000"
        assert rows["000_HC.png"]["hc_mm"] == 44.3


def test_hc18_masks_in_a_folder_are_no_pictures_and_a_missing_table_is_said(tree, capsys):
    root = tree(["train/images/001_HC.png", "train/masks/001_HC.png", "train/masks/009_HC.png", "train/other.png"])
    reader = HC18(path=root)
    rows, _ = listed(reader)
    assert regions(rows["train/images/001_HC.png"], root) == {"mask_head": "train/masks/001_HC.png"}
    assert reader.aside == {"masks": 1, "masks without a picture": 1, ".png files": 1}
    assert "1 of 1 pictures are in no table" in capsys.readouterr().err


def test_hc18_a_broken_number_is_named(tree):
    root = tree({"training_set/001_HC.png": None, TRAIN: "filename,pixel size(mm)\n001_HC.png,wide\n"})
    with pytest.raises(ValueError, match="'wide' is not a number"):
        list(HC18(path=root).listing())


def mmotu(top):
    return {
        f"{top}/images/1.JPG": None,
        f"{top}/images/2.JPG": None,
        f"{top}/images/10.JPG": None,
        f"{top}/annotations/1.PNG": None,
        f"{top}/annotations/1_binary.PNG": None,
        f"{top}/annotations/1_binary_binary.PNG": None,
        f"{top}/annotations/99_binary.PNG": None,
        f"{top}/train.txt": "1\n10\n",
        f"{top}/val.txt": "2\n3\n\n",
        f"{top}/train_cls.txt": "1.JPG  0\n10.JPG\t7\n",
        f"{top}/val_cls.txt": "2.JPG  5\n3.JPG  5\n",
        f"{top}/notes.md": "x",
    }


@pytest.mark.parametrize("top", ["MMOTU/OTU_2d", "OTU_2d", "otu_2D/OTU_2d"])
def test_mmotu_has_labels_splits_and_masks(tree, top):
    reader = MMOTU(path=tree(mmotu(top)))
    rows, rejected = listed(reader)
    labels = {row["path"].rpartition("/")[2]: (row["label"], row["split"]) for row in rows.values()}
    assert labels == {
        "1.JPG": ("chocolate cyst", "train"),
        "10.JPG": ("high-grade serous", "train"),
        "2.JPG": ("normal ovary", "val"),
    }
    row = rows[f"{top}/images/1.JPG"]
    assert (row["organ"], row["group_kind"], row["modality"]) == ("ovary", "image", "b-mode")
    assert regions(row, reader.root) == {
        "mask_lesion": f"{top}/annotations/1_binary.PNG",
        "mask_class": f"{top}/annotations/1.PNG",
    }
    assert rejected == {f"{top}/images/3": f"listed in {top}/val.txt, but there is no such file"}
    expected = {"masks": 2, "masks without a picture": 1, "masks that repeat others": 1, "tables": 4, ".md files": 1}
    assert reader.aside == expected
    assert len(set(LABELS)) == 8


def test_mmotu_with_contrast_is_told_apart_from_b_mode_of_the_same_number(tree, capsys):
    files = {**mmotu("OTU_2d"), "OTU_3d/images/1.JPG": None, "OTU_3d/annotations/1_binary.PNG": None}
    files |= {"OTU_3d/train.txt": "1", "OTU_3d/train_cls.txt": "1.JPG  3"}
    rows, _ = listed(MMOTU(path=tree(files)))
    row = rows["OTU_3d/images/1.JPG"]
    assert (row["modality"], row["label"], row["split"]) == ("ceus", "theca cell tumor", "train")
    assert row["mask_lesion"].endswith("OTU_3d/annotations/1_binary.PNG")
    assert rows["OTU_2d/images/1.JPG"]["modality"] == "b-mode"
    assert "no patient ids" in capsys.readouterr().err


def test_mmotu_is_read_from_the_folder_itself_and_from_a_copy_without_lists(tree):
    files = {name.removeprefix("x/"): text for name, text in mmotu("x").items()}
    assert listed(MMOTU(path=tree(files)))[0]["images/1.JPG"]["label"] == "chocolate cyst"
    reader = MMOTU(path=tree(["MMOTU/images/1.png", "MMOTU/labels/1.png"], "copy"))
    rows, _ = listed(reader)
    assert "label" not in rows["MMOTU/images/1.png"]
    assert regions(rows["MMOTU/images/1.png"], reader.root)["mask_lesion"] == "MMOTU/labels/1.png"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("train_cls.txt", "1.JPG  8\n", r"train_cls\.txt: '1\.JPG 8' is not <picture> <class 0 to 7>"),
        ("train_cls.txt", "1.JPG\n", r"train_cls\.txt: '1\.JPG' is not <picture> <class 0 to 7>"),
        ("val.txt", "1\n", r"val\.txt: 1 is in train as well"),
    ],
)
def test_mmotu_broken_lists_are_named(tree, name, text, reason):
    with pytest.raises(ValueError, match=reason):
        list(MMOTU(path=tree({**mmotu("OTU_2d"), f"OTU_2d/{name}": text})).listing())


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["UF/1.jpg", "NUF/1.jpg"], [("uf", None), ("nuf", None)]),
        (["a/b/Uterine  fibroid/1.JPG", "a/b/Non fibroid/2.jpg"], [("uterine fibroid", None), ("non fibroid", None)]),
        (["train/UF/1.jpg", "Test/NUF/1.jpg"], [("uf", "train"), ("nuf", "test")]),
        (
            ["d/train/UF/1.jpg", "d/valid/UF/1.jpg", "d/test/NUF/1.jpg"],
            [("uf", "train"), ("uf", "val"), ("nuf", "test")],
        ),
        (["UF/training/images/1.jpg", "NUF/x/1.jpg"], [("uf", "train"), ("nuf", None)]),
        (["UF/1.jpg"], [("uf", None)]),
        (["set/UF/1.jpg", "set/NUF/1.jpg", "set/cover.jpg"], [("uf", None), ("nuf", None), (None, None)]),
    ],
)
@pytest.mark.parametrize("reader", [UF1990, Thyroid4K])
def test_class_folders_are_labels_and_splits(tree, reader, places, expected):
    rows, rejected = listed(reader(path=tree(places)))
    assert [(rows[place].get("label"), rows[place].get("split")) for place in places] == expected
    assert {row["organ"] for row in rows.values()} == {reader.organ}
    assert {row["group_kind"] for row in rows.values()} == {"image"}
    assert not rejected


def test_class_folders_warn_that_there_is_no_patient_id(tree, capsys):
    listed(UF1990(path=tree(["UF/1.jpg", "NUF/2.jpg", "NUF/3.jpg"])))
    assert ": 3 of 3 pictures have no patient id" in capsys.readouterr().err


def test_class_folders_keep_masks_apart(tree):
    reader = Thyroid4K(
        path=tree(["benign/images/1.jpg", "benign/masks/1.png", "malignant/images/2.jpg", "masks/9.png"])
    )
    rows, _ = listed(reader)
    assert regions(rows["benign/images/1.jpg"], reader.root) == {"mask_masks": "benign/masks/1.png"}
    assert rows["malignant/images/2.jpg"]["label"] == "malignant"
    assert reader.aside == {"masks": 1, "masks without a picture": 1}


def test_folders_of_patients_are_not_taken_for_classes(tree):
    with pytest.raises(ValueError, match=r"12 class folders .* too many to be classes"):
        list(UF1990(path=tree([f"p{i}/1.jpg" for i in range(12)])).listing())


def test_a_table_says_more_than_folders(tree, capsys):
    text = "File Name;Diagnosis;Patient ID;Split;Age;Width\nUF/1.jpg;Fibroid;007;Training;41;9\n2;;8;test;;\n"
    text += "x.jpg;a;b;c;;\n"
    root = tree({"UF/1.jpg": None, "NUF/2.jpg": None, "NUF/3.jpg": None, "t.csv": text})
    reader = UF1990(path=root, table=root / "t.csv")
    rows, rejected = listed(reader)
    first, second, third = rows["UF/1.jpg"], rows["NUF/2.jpg"], rows["NUF/3.jpg"]
    assert (first["label"], first["patient"], first["group_kind"]) == ("fibroid", "007", "patient")
    assert (first["split"], first["age"], first["table_width"]) == ("train", "41", "9")
    assert (second["label"], second["patient"], second["split"]) == ("nuf", "8", "test")
    assert (third["label"], third["group_kind"]) == ("nuf", "image")
    assert rejected == {"x.jpg": "listed in t.csv, but there is no such file"}
    said = capsys.readouterr().err
    assert "1 of 3 pictures have no patient id" in said
    assert "1 of 3 pictures have no row in" in said
    assert reader.aside == {"tables": 1}


def test_a_table_alone_can_say_the_classes(tree):
    root = tree({"1.jpg": None, "2.jpg": None, "t.csv": "image,class,case\n1.jpg,UF,a\n2.jpg,NUF,a\n"})
    rows, _ = listed(UF1990(path=root, table=root / "t.csv"))
    assert [(row["label"], row["patient"], row["group_kind"]) for row in rows.values()] == [
        ("uf", "a", "case"),
        ("nuf", "a", "case"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("class,patient\na,b\n", r"no column names the pictures .* there are class, patient"),
        ("image,class\n1.jpg,a\n1.jpg,b\n", r"two rows say different things of 1\.jpg"),
        ("image,class\n", "the table has no rows"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tree, text, reason):
    root = tree({"UF/1.jpg": None, "t.csv": text})
    with pytest.raises(ValueError, match=reason):
        list(UF1990(path=root, table=root / "t.csv").listing())
    with pytest.raises(ValueError, match=r"a table is a \.csv file"):
        list(UF1990(path=root, table=root / "t.xlsx").listing())


def test_a_name_in_two_folders_is_no_match(tree):
    root = tree({"UF/1.jpg": None, "NUF/1.jpg": None, "t.csv": "image,age\n1.jpg,40\nC:\\data\\UF\\1.jpg,41\n"})
    rows, rejected = listed(UF1990(path=root, table=root / "t.csv"))
    assert rows["UF/1.jpg"]["age"] == "41"
    assert "age" not in rows["NUF/1.jpg"]
    assert rejected == {"1.jpg": "listed in t.csv, but 2 files have this name"}


def test_folders_of_another_data_set_are_refused(tree):
    buid = ["Benign/1 Benign Image.bmp", "Benign/1 Benign Lesion.bmp", "Malignant/1 Malignant Image.bmp"]
    others = {BUSI: buid, UF1990: ["a/1.png", "b/1.png", "c/1.png"], MMOTU: ["images/1.png", "masks/1.png"]}
    for cls, places in others.items():
        with pytest.raises(ValueError, match="expected"):
            listed(cls(path=tree(places, f"not {cls.name[:2]}")))


def test_masks_named_so_are_no_pictures_of_class_folders(tree):
    reader = Thyroid4K(path=tree(["benign/1.png", "benign/1 Mask.tif", "malignant/2.png", "malignant/2_mask.png"]))
    rows, _ = listed(reader)
    assert list(rows) == ["benign/1.png", "malignant/2.png"]
    assert reader.aside["masks without a picture"] == 2


def test_rehosted_masks_of_mmotu_are_not_said_to_hold_classes(tree):
    rows, _ = listed(MMOTU(path=tree(["images/1.png", "labels/1.png"], "MMOTU")))
    assert "mask_class" not in rows["images/1.png"]
    assert rows["images/1.png"]["mask_lesion"].endswith("labels/1.png")
