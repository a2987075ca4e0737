"""Splits: by patient, with copies kept together, every class in its share, the same everywhere."""

import warnings
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
from PIL import Image

from ussl.cli import main
from ussl.data import manifest
from ussl.data.balancing import balanced
from ussl.data.split import assign

PARTS = ("train", "val", "test")


def pictures(patients, labels="ab", most=6, seed=0, **more):
    """Rows of so many patients, each of one label and with 1 to `most` pictures."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        label = labels[patient % len(labels)]
        for i in range(rng.integers(1, most + 1)):
            row = {"path": f"/data/{patient}/{i}.png", "source": "s", "patient": f"{patient}", "label": label}
            rows.append(row | more)
    return rows


def shares(rows, splits, label=None):
    counted = Counter(s for row, s in zip(rows, splits, strict=True) if label in (None, row["label"]))
    return [counted[part] / counted.total() for part in PARTS]


def sides(rows, splits, column):
    """The splits that each value of a column is in."""
    found = defaultdict(set)
    for row, split in zip(rows, splits, strict=True):
        found[row["source"], row[column]].add(split)
    return found


@pytest.mark.parametrize("ratio", [(3, 1, 1), (0.7, 0.15, 0.15), (8, 1, 1)])
def test_all_and_every_class_have_their_shares(ratio):
    rows = pictures(200, "aaaabbc")
    splits = assign(rows, ratio)
    for label in (None, "a", "b", "c"):
        assert np.allclose(shares(rows, splits, label), np.array(ratio) / sum(ratio), atol=0.02)


def test_two_numbers_are_train_and_test():
    splits = assign(pictures(50), (4, 1))
    assert set(splits) == {"train", "test"}
    assert splits.count("test") / len(splits) == pytest.approx(0.2, abs=0.02)


def test_a_patient_is_on_one_side():
    rows = pictures(60)
    assert all(len(parts) == 1 for parts in sides(rows, assign(rows), "patient").values())


def test_patients_of_two_sources_are_two_even_with_one_name():
    rows = [{"path": f"{s}{i}", "source": s, "patient": "1", "label": "x"} for s in "abc" for i in range(2)]
    splits = assign(rows, (1, 1, 1))
    assert sorted(splits[::2]) == sorted(splits[1::2]) == ["test", "train", "val"]


def test_pictures_without_patient_stand_alone():
    rows = [{"path": f"{i}", "source": "s", "label": "x"} for i in range(10)]
    assert Counter(assign(rows)) == {"train": 6, "val": 2, "test": 2}


def test_frames_without_patient_stay_with_their_file():
    rows = [{"path": f"{i // 4}.dcm", "frame": i % 4, "source": "s"} for i in range(40)]
    assert all(len(parts) == 1 for parts in sides(rows, assign(rows), "path").values())


@pytest.mark.parametrize("column", ["digest", "hash"])
def test_copies_join_their_patients(column):
    rows = pictures(30, most=1)
    rng = np.random.default_rng(0)
    for i, row in enumerate(rows):
        row[column] = rng.bytes(32).hex()
        if i % 3 == 1:
            row[column] = rows[i - 1][column]
            row["label"] = rows[i - 1]["label"]
    splits = assign(rows)
    assert splits[0::3] == splits[1::3]


def test_near_copies_join_and_blank_pictures_do_not():
    rows = pictures(9, "a", most=1)
    for i, row in enumerate(rows):
        row["hash"] = f"{(1 << i) - 1:064x}"  # 8 bits apart at most
    with pytest.raises(ValueError, match="9 images of 1 patients"):
        assign(rows)
    assert len(set(assign([row | {"flag": "tiny;blank"} for row in rows]))) == 3


def test_the_order_of_rows_does_not_count():
    rows = pictures(40)
    for row in rows[::3]:
        del row["patient"]
    order = np.random.default_rng(0).permutation(len(rows))
    one, other = assign(rows), assign([rows[i] for i in order])
    assert [one[i] for i in order] == other


def test_the_folder_of_the_pictures_does_not_count():
    rows = [{"path": f"/data/{i % 7}/{i}.png", "source": "s", "label": "ab"[i % 2]} for i in range(40)]
    moved = [row | {"path": row["path"].replace("/data", "/mnt/else where")} for row in rows]
    assert assign(rows) == assign(moved)


def test_this_split_stays_as_it_is():
    """On any machine, in any process, with any release."""
    rows = [{"path": f"{i}", "source": "s", "patient": f"{i}", "label": "ab"[i % 2]} for i in range(16)]
    assert "".join(split[1] for split in assign(rows, seed=1)) == "rrrrrreaaerrrrae"


def test_another_seed_is_another_split():
    rows = pictures(40)
    assert assign(rows, seed=0) == assign(rows, seed=0) != assign(rows, seed=1)


def test_a_class_of_three_patients_is_in_every_split():
    rows = pictures(60, "a", most=9)
    rows += [{"path": f"r{i}", "source": "s", "patient": f"r{i % 3}", "label": "rare"} for i in range(7)]
    splits = assign(rows)
    assert {split for row, split in zip(rows, splits, strict=True) if row["label"] == "rare"} == set(PARTS)


def test_every_class_is_in_every_part_wherever_groups_allow():
    rng = np.random.default_rng(0)
    possible = 0
    for _ in range(150):
        classes = int(rng.integers(1, 5))
        count = int(rng.integers(3, 7))
        groups = [
            {int(kind): int(rng.integers(1, 6)) for kind in rng.choice(classes, rng.integers(1, classes + 1), False)}
            for _ in range(count)
        ]

        def complete(parts, groups=groups):
            kinds = {kind for group in groups for kind in group}
            return all(
                len({part for group, part in zip(groups, parts, strict=True) if kind in group}) == 3 for kind in kinds
            )

        if any(complete(parts) for parts in product(range(3), repeat=count)):
            possible += 1
            assert complete(balanced(groups, [0.6, 0.2, 0.2]))
    assert possible > 30


def test_classes_are_as_even_as_by_stratified_group_folds():
    model_selection = pytest.importorskip("sklearn.model_selection")
    ours, folds = [], []
    for seed in range(10):
        rows = pictures(30, "aaab", most=12, seed=seed)
        labels = np.array([row["label"] for row in rows])
        fold = np.zeros(len(rows), dtype=int)
        splitter = model_selection.StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for i, (_, chosen) in enumerate(splitter.split(labels, labels, [row["patient"] for row in rows])):
                fold[chosen] = i
        for name, splits in ((ours, assign(rows)), (folds, np.array(["train"] * 3 + ["val", "test"])[fold])):
            name.append(max(abs(np.subtract(shares(rows, splits, x), (0.6, 0.2, 0.2))).max() for x in "ab"))
    assert np.mean(ours) < np.mean(folds)


def test_large_patients_are_not_all_in_train():
    rows = pictures(100, "a", most=1)
    rows += [
        {"path": f"{p}/{i}", "source": "s", "patient": f"l{p}", "label": "a"} for p in range(15) for i in range(20)
    ]
    splits = assign(rows)
    large = Counter(parts for value, (parts,) in sides(rows, splits, "patient").items() if value[1].startswith("l"))
    assert min(large[part] for part in PARTS) >= 2


def test_without_labels_the_organs_are_the_classes():
    rows = [{**row, "organ": row["label"], "label": None} for row in pictures(100, "aaab")]
    splits = assign(rows)
    for organ in "ab":
        chosen = [split for row, split in zip(rows, splits, strict=True) if row["organ"] == organ]
        assert chosen.count("train") / len(chosen) == pytest.approx(0.6, abs=0.03)


def test_another_column_may_be_divided_and_another_kept_together():
    rows = [row | {"video": f"v{i // 4}", "view": "xyz"[i // 4 % 3]} for i, row in enumerate(pictures(60))]
    splits = assign(rows, stratify="view", group="video")
    assert all(len(parts) == 1 for parts in sides(rows, splits, "video").values())
    assert any(len(parts) > 1 for parts in sides(rows, splits, "patient").values())
    for view in "xyz":
        assert {split for row, split in zip(rows, splits, strict=True) if row["view"] == view} == set(PARTS)


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        ([], {}, "there are no rows"),
        (pictures(9), {"ratio": (1,)}, "ratio 1: write two or three"),
        (pictures(9), {"ratio": (1, 1, 1, 1)}, "ratio 1:1:1:1: write two or three"),
        (pictures(9), {"ratio": (3, 0, 1)}, "ratio 3:0:1: .* above 0"),
        (pictures(9), {"ratio": (3, -1, 1)}, "above 0"),
        (pictures(9), {"ratio": (3, float("nan"), 1)}, "above 0"),
        (pictures(9), {"ratio": (3, float("inf"), 1)}, "above 0"),
        (pictures(9), {"stratify": "grade"}, "stratify grade: no row has it; the columns are path, source, patient"),
        (pictures(9), {"group": "exam"}, "group exam: no row has it"),
        (pictures(1, most=1) * 5, {}, "5 images of 1 patients .* 3 splits"),
        (pictures(8, "aaab", most=1), {}, "'b' has 2 images of 2 patients .* cannot be in 3 splits"),
    ],
)
def test_what_cannot_be_is_refused_with_the_numbers(rows, options, told):
    with pytest.raises(ValueError, match=told) as error:
        assign(rows, **options)
    assert "\n" not in str(error.value)


def test_a_class_of_two_patients_can_be_in_two_splits():
    rows = pictures(8, "aaab", most=1)
    assert {s for row, s in zip(rows, assign(rows, (1, 1)), strict=True) if row["label"] == "b"} == {"train", "test"}


@pytest.fixture
def corpus(tmp_path):
    """A manifest of 30 pictures of 15 patients, and a copy of one of them by a 16th."""
    folder = tmp_path / "my data"
    folder.mkdir()
    rows = []
    for i in range(31):
        rng = np.random.default_rng(0 if i == 30 else i)
        coarse = Image.fromarray(rng.integers(20, 255, (8, 8), dtype=np.uint8)).resize((64, 64), Image.BICUBIC)
        picture = coarse.resize((90, 90)) if i == 30 else coarse
        picture.save(folder / f"{i}.png")
        rows.append(
            {"path": str(folder / f"{i}.png"), "source": "s", "patient": f"{i // 2}", "label": "ab"[i // 2 % 2]}
        )
    rows[30]["label"] = "a"
    manifest.write(rows, folder / "corpus.csv")
    return folder / "corpus.csv"


def split(path, *options):
    return main(["data", "split", str(path), "--workers", "1", *options])


def test_the_command_writes_the_split_beside_the_manifest_and_says_what_came_of_it(corpus, capsys):
    before = manifest.read(corpus)
    assert split(corpus) == 0
    said = capsys.readouterr().out
    rows = manifest.read(corpus.with_name("corpus.split.parquet"))
    assert [row["path"] for row in rows] == [row["path"] for row in before]
    assert "images (patients)" in said
    for label in "ab":
        counts = [sum(row["label"] == label and row["split"] == part for row in rows) for part in PARTS]
        patients = [len({r["patient"] for r in rows if r["label"] == label and r["split"] == part}) for part in PARTS]
        line = next(line for line in said.splitlines() if line.startswith(f"{label} "))
        assert line.split()[1:] == [x for c, p in zip(counts, patients, strict=True) for x in (f"{c}", f"({p})")]


def test_hashes_that_lack_are_made_so_that_copies_stay_together(corpus):
    assert split(corpus, "--seed", "3") == 0
    rows = manifest.read(corpus.with_name("corpus.split.parquet"))
    assert rows[30]["split"] == rows[0]["split"]
    assert all(row["hash"] and row["digest"] and row["width"] for row in rows)


def test_a_split_that_is_there_is_kept_unless_overwritten(corpus, capsys):
    rows = manifest.read(corpus)
    rows[4]["split"] = "test"
    manifest.write(rows, corpus)
    before = corpus.read_bytes()
    assert split(corpus) == 2
    assert "1 of 31 pictures have a split already" in capsys.readouterr().err
    assert not corpus.with_name("corpus.split.parquet").exists()
    assert split(corpus, "--overwrite") == 0
    assert all(row["split"] for row in manifest.read(corpus.with_name("corpus.split.parquet")))
    assert corpus.read_bytes() == before


def test_the_same_command_writes_the_same_file(corpus):
    out = corpus.with_name("out.csv")
    assert split(corpus, "--ratio", "0.7:0.15:0.15", "-o", str(out)) == 0
    first = out.read_bytes()
    assert split(corpus, "--ratio", "0.7:0.15:0.15", "-o", str(out)) == 0
    assert out.read_bytes() == first
    assert not list(corpus.parent.glob(".*"))


def test_a_folder_with_a_manifest_is_one(corpus):
    assert split(corpus.parent) == 0


def test_none_is_no_column(corpus, capsys):
    assert split(corpus, "--stratify", "none", "--group", "none") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["images", "train", "val", "test"]
    assert said[1].startswith("all ")
    rows = manifest.read(corpus.with_name("corpus.split.parquet"))
    assert any(len(parts) > 1 for parts in sides(rows, [row["split"] for row in rows], "patient").values())


def test_what_stands_in_for_labels_and_patients_is_said(corpus, capsys):
    rows = [{"path": row["path"], "organ": "liver"} for row in manifest.read(corpus)]
    manifest.write(rows, corpus)
    assert split(corpus) == 0
    said = capsys.readouterr().out
    assert "no picture has a label: the classes are those of the column organ" in said
    assert "31 pictures have no patient" in said


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--ratio", "3:one"], "--ratio 3:one: write two or three numbers"),
        (["--ratio", "3:0:1"], "--ratio 3:0:1"),
        (["--ratio", "1"], "--ratio 1"),
        (["--stratify", "grade"], "--stratify grade: no row has such a column"),
        (["--group", "exam"], "--group exam: no row has such a column"),
        (["--out", "x.txt"], "--out x.txt: write a name with .parquet or .csv"),
        (["--workers", "0"], "--workers 0"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_line(corpus, capsys, options, told):
    assert main(["data", "split", str(corpus), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert error.count("\n") == 0
    assert not corpus.with_name("corpus.split.parquet").exists()


def test_a_picture_that_cannot_be_read_is_named(corpus, capsys):
    (corpus.parent / "7.png").write_bytes(b"no picture")
    assert split(corpus) == 2
    error = capsys.readouterr().err
    assert "7.png" in error
    assert "audit" in error
    assert not corpus.with_name("corpus.split.parquet").exists()
