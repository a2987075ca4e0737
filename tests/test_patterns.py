"""What paths mean: patterns, and the masks that belong to pictures by folder and name."""

import pytest

from ussl.data.pairing import numbered, pair
from ussl.data.pattern import Pattern
from ussl.data.tree import split_of
from ussl_plugins.sources.images import Images


@pytest.fixture
def tree(tmp_path):
    """tree(*names): a folder with those files, empty: listing opens none."""

    def tree(*names):
        for name in names:
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).touch()
        return tmp_path / "set"

    return tree


def listed(root, **options):
    """The rows of a folder without root and source, and what was set aside."""
    source = Images(path=root, **options)
    rows = [dict(row) for row in source.listing()]
    for row in rows:
        assert row.pop("source") == root.name
        for name in row:
            row[name] = row[name].removeprefix(f"{root}/")
    return rows, dict(source.aside)


def refusal(root, **options):
    with pytest.raises(ValueError) as caught:
        Images(path=root, **options).listing()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "path", "fields"),
    [
        ("{organ}/{label}/{patient}_{view}.png", "liver/benign/p1_2.png", ["liver", "benign", "p1", "2"]),
        ("{organ}/{label}/{patient}_{view}.png", "liver/benign/p1_2.PNG", ["liver", "benign", "p1", "2"]),
        ("{organ}/{label}/{patient}_{view}.PNG", "a b/ü/x y_2.png", ["a b", "ü", "x y", "2"]),
        ("{organ}/{label}/{patient}_{view}.png", "liver/benign/p1_2.jpg", None),
        ("{organ}/{label}/{patient}_{view}", "liver/benign/p1_2.jpeg", ["liver", "benign", "p1", "2"]),
        ("{organ}/{label}/{patient}_{view}", "liver/p1_2.jpeg", None),
        ("{organ}/{label}/{patient}_{view}", "a/liver/benign/p1_2.jpeg", None),
        ("{patient}_{view}", "a_b_c.png", ["a", "b_c"]),
        ("{patient}.{view}", "a.b.png", ["a", "b"]),
        ("{patient}.{ext}", "a.b.png", ["a", "b.png"]),
        ("{patient}.*", "a.PNG", ["a"]),
        ("./{patient}_*", "a_b_c.png", ["a"]),
        ("{patient}_*", "a_.png", ["a"]),
        ("**/{patient}/*", "x/y/p/1.png", ["p"]),
        ("**/{patient}/*", "p/1.png", ["p"]),
        ("**/{patient}/*", "1.png", None),
        ("{organ}/**/{view}.png", "a/1.png", ["a", "1"]),
        ("{organ}/**/{view}.png", "a/b/c/1.png", ["a", "1"]),
        ("{organ}/**", "a/b/c/1.png", ["a"]),
        ("*/{label}/x(1)+[a].{ext}", "q/b/x(1)+[a].tif", ["b", "tif"]),
        ("{label}/x.png", "b/xapng.png", None),
        ("Images/{view}.png", "images/1.png", None),
    ],
)
def test_a_pattern_reads_the_fields_of_a_path(pattern, path, fields):
    found = Pattern(pattern).match(path)
    assert (found and list(found.values())) == fields


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("liver/*.png", "it has no field"),
        ("", "it has no field"),
        ("{a}/{b}/{a}.png", "{a} is in it twice"),
        ("{a}{b}.png", "two fields need something between them"),
        ("{patient:d}/{a}", "not {patient:d}"),
        ("{Organ}/{a}", "{organ}, not {Organ}"),
        ("{}/{a}", "not {}"),
        ("{a}/{b", "'{' without its other half"),
        ("{a}/b}", "'}' without its other half"),
        ("{path}/{a}", "`path` is a column"),
        ("{digest}/{a}", "`digest` is a column"),
        ("{mask_x}/{a}", "`mask_x` is a column"),
        ("/data/{a}", "without a slash at its start"),
        ("a**/{a}", "stands at the start or after a slash"),
        ("a/**b/{a}", "stands at the start or after a slash"),
    ],
)
def test_a_pattern_that_is_none_is_refused_with_an_example(tree, pattern, reason):
    line = refusal(tree("liver/benign/1.png"), pattern=pattern)
    assert reason in line
    assert line.endswith("a picture's path below the folder is liver/benign/1.png")


def test_a_pattern_that_matches_nothing_shows_a_path(tree):
    line = refusal(tree("liver/benign/1.png"), pattern="{organ}/{view}.png")
    assert "'{organ}/{view}.png' matches none of the 1 pictures" in line
    assert line.endswith("a picture's path below the folder is liver/benign/1.png")


def test_fields_become_columns_and_pictures_that_do_not_match_are_rejected(tree):
    root = tree("liver/benign/p1_a.png", "liver/benign/p2.png", "x.JPG", "notes.txt", "liver/t.csv")
    rows, aside = listed(root, pattern="{organ}/{label}/{patient}_{view}.png")
    assert [row["path"] for row in rows] == ["x.JPG", "liver/benign/p1_a.png", "liver/benign/p2.png"]
    fields = {"organ": "liver", "label": "benign", "patient": "p1", "view": "a", "group_kind": "patient"}
    assert rows[1] == {"path": "liver/benign/p1_a.png", **fields}
    for row in (rows[0], rows[2]):
        assert row["rejected"] == "does not match the pattern {organ}/{label}/{patient}_{view}.png"
    assert aside == {".txt files": 1, "tables": 1}


def test_pictures_that_do_not_match_are_left_out_of_rows_aloud(tree, capsys):
    root = tree("liver/p1.png", "x.png")
    assert [row["patient"] for row in Images(path=root, pattern="{organ}/{patient}").rows()] == ["p1"]
    said = capsys.readouterr().err
    assert "1 files" in said
    assert "x.png: does not match the pattern {organ}/{patient}" in said


def test_names_that_can_be_read_in_two_ways_are_told(tree, capsys):
    root = tree("p1_a_b.png", "p2_a.png")
    rows, _ = listed(root, pattern="{patient}_{view}")
    assert [(row["patient"], row["view"]) for row in rows] == [("p1", "a_b"), ("p2", "a")]
    assert "1 paths match the pattern {patient}_{view} in several ways, such as p1_a_b.png" in capsys.readouterr().err


def test_splits_get_their_common_names(tree):
    rows, _ = listed(tree("Training/1.png", "valid/1.png", "test_set/1.png", "x/1.png"), pattern="{split}/{view}")
    assert sorted(row["split"] for row in rows) == ["test", "train", "val", "x"]
    assert split_of("Validation Set") == "val"
    assert split_of("benign") is None


def test_constants_are_columns_of_all_rows(tree):
    root = tree("a/1.png")
    row = next(Images(path=root, pattern="{label}/{view}", organ="liver", source="mine").listing())
    assert row == {"path": f"{root}/a/1.png", "source": "mine", "organ": "liver", "label": "a", "view": "1"}
    line = refusal(root, pattern="{label}/{view}", label="benign")
    assert line == "label is a field of the pattern and an option as well: leave one out"
    assert refusal(root, organ=" ") == "organ is empty: write one, or leave it out"


def test_masks_are_paired_by_folder_and_never_pictures(tree):
    root = tree("images/1.png", "images/2.JPG", "Masks/1.png", "Masks/mass/2.png", "Masks/mass/deep/2.png")
    rows, aside = listed(root)
    assert rows == [
        {"path": "images/1.png", "mask_masks": "Masks/1.png"},
        {"path": "images/2.JPG", "mask_mass": "Masks/mass/2.png", "mask_mass_deep": "Masks/mass/deep/2.png"},
    ]
    assert aside == {"masks": 3}


@pytest.mark.parametrize("folder", ["mask", "masks", "MASKS", "Label", "labels", "annotation", "Annotations"])
def test_a_folder_is_of_masks_by_its_name_at_any_level(tree, folder):
    rows, aside = listed(tree("a/b/1.png", f"a/b/{folder}/1.tif"))
    assert rows == [{"path": "a/b/1.png", f"mask_{folder.lower()}": f"a/b/{folder}/1.tif"}]
    assert aside == {"masks": 1}


@pytest.mark.parametrize(
    "mask",
    [
        "1.png",
        "1_mask.png",
        "mask_1.png",
        "1-Mask.PNG",
        "1 label.tif",
        "1_gt.bmp",
        "1_seg.png",
        "1_mass.png",
        "1.json",
    ],
)
def test_a_mask_has_its_pictures_stem_or_a_word_more(mask):
    assert pair(["images/1.png", "images/11.png"], [f"masks/mass/{mask}"]) == (
        {"images/1.png": {"mask_mass": f"masks/mass/{mask}"}},
        [],
    )


def test_several_masks_of_a_picture_are_all_kept():
    masks = ["masks/1_mask.png", "masks/1_mask_1.png", "masks/1_mask_2.png"]
    found, lost = pair(["1.png"], masks)
    assert found == {"1.png": dict(zip(["mask_masks", "mask_masks_1", "mask_masks_2"], masks, strict=True))}
    assert lost == []
    assert numbered("a", ["a", "a_1"]) == "a_2"


def test_a_picture_may_be_called_an_image():
    assert pair(["a/1_image.png"], ["a/masks/1_mask.png"])[0] == {
        "a/1_image.png": {"mask_masks": "a/masks/1_mask.png"}
    }


def test_the_nearest_picture_is_the_masks_own():
    pictures = ["a/images/1.png", "b/images/1.png"]
    masks = ["a/masks/1.png", "b/masks/1.png"]
    assert pair(pictures, masks) == ({p: {"mask_masks": m} for p, m in zip(pictures, masks, strict=True)}, [])
    assert pair(["1.png", "old/1.png"], ["masks/1.png"])[0] == {"1.png": {"mask_masks": "masks/1.png"}}


def test_folders_that_repeat_those_of_pictures_are_no_region():
    pictures = ["images/benign/1.png", "images/malignant/1.png"]
    masks = ["masks/benign/1.png", "masks/malignant/1.png", "masks/lesion/benign/1.png"]
    assert pair(pictures, masks) == (
        {
            "images/benign/1.png": {"mask_masks": masks[0], "mask_lesion": masks[2]},
            "images/malignant/1.png": {"mask_masks": masks[1]},
        },
        [],
    )
    assert pair(["train/images/1.png", "test/images/1.png"], ["masks/test/1.png"])[0] == {
        "test/images/1.png": {"mask_masks": "masks/test/1.png"}
    }
    region = {"liver/benign/b_1.jpg": {"mask_liver": "masks/liver/b_1.png"}}
    assert pair(["liver/benign/b_1.jpg"], ["masks/liver/b_1.png"])[0] == region


def test_masks_without_a_picture_and_ambiguous_ones_are_counted(tree):
    names = ["images/1.png", "images/1.jpg", "images/2.png", "masks/1.png", "masks/3.png", "masks/2.txt"]
    rows, aside = listed(tree(*names))
    assert all(set(row) == {"path"} for row in rows)
    assert aside == {"masks without a picture": 2, ".txt files": 1}


def test_a_mask_is_never_paired_with_another_case(tree):
    rows, aside = listed(tree("case1/0.png", "case2/1.png", "case2/masks/0.png"))
    assert all(set(row) == {"path"} for row in rows)
    assert aside == {"masks without a picture": 1}


def test_a_tree_of_masks_alone_says_so(tree):
    line = refusal(tree("Labels/1.png", "Labels/a/2.png"))
    assert "no pictures but those below folders named Labels, which are taken for masks" in line
    assert "--data .../Labels" in line


def test_a_folder_named_for_masks_can_itself_be_the_data(tree):
    rows, _ = listed(tree("labels/1.png", "labels/a/2.png") / "labels")
    assert [row["path"] for row in rows] == ["1.png", "a/2.png"]


def test_masks_are_found_whatever_the_pattern(tree):
    rows, aside = listed(tree("liver/p1.png", "masks/p1.png"), pattern="{organ}/{patient}")
    assert rows[0]["mask_masks"] == "masks/p1.png"
    assert len(rows) == 1
    assert aside == {"masks": 1}


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [("{}/images/{}.png", "{}/masks/lesion/{}.png"), ("images/{}/{}.png", "masks/lesion/{}/{}.png")],
)
def test_masks_of_many_cases_with_the_same_names_are_each_paired_with_their_own(pictures, masks):
    pictures = [pictures.format(case, i) for case in range(1500) for i in range(5)]
    masks = [masks.format(case, i) for case in range(1500) for i in range(5)]
    found, lost = pair(pictures, masks)
    assert lost == []
    assert all(found[p] == {"mask_lesion": m} for p, m in zip(pictures, masks, strict=True))
