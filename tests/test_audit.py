"""What `ussl data audit` finds, drops and keeps."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from ussl.cli import main
from ussl.data import findings, manifest
from ussl.data.audit import DROPPED, audit
from ussl.data.findings import MEANING


def speckle(seed, size=64):
    """A picture that resembles no other."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(20, 255, (8, 8), dtype=np.uint8)).resize((size, size), Image.BICUBIC)
    return np.clip(np.asarray(coarse, dtype=float) + rng.normal(0, 6, (size, size)), 0, 255).astype(np.uint8)


def nearly(picture):
    """A copy, a little brighter."""
    return np.clip(picture.astype(float) * 1.05 + 2, 0, 255).astype(np.uint8)


@pytest.fixture
def corpus(tmp_path):
    """corpus(name, [(picture, columns)]): a manifest of those pictures."""

    def corpus(name, pictures):
        rows = []
        for i, (picture, columns) in enumerate(pictures):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            if picture is not None:
                Image.fromarray(picture).save(path)
            rows.append({"path": str(path), "source": "s", "patient": f"p{i}", **columns})
        manifest.write(rows, tmp_path / f"{name}.parquet")
        return tmp_path / f"{name}.parquet"

    return corpus


def found(result, word):
    """Positions of the pictures with a finding."""
    return [one.position for one in result.found if one.finding == word]


def test_of_exact_copies_the_labelled_one_stays(corpus):
    a, b = speckle(1), speckle(2)
    result = audit(corpus("c", [(a, {}), (b, {}), (a, {"label": "benign"})]), workers=1)
    assert found(result, "duplicate") == [0]
    assert result.dropped == {0: "duplicate"}
    assert [row["patient"] for row in result.kept] == ["p1", "p2"]


def test_of_copies_in_two_splits_the_one_in_test_stays(corpus):
    a, b = speckle(1), speckle(2)
    rows = [(a, {"split": "train", "label": "x"}), (a, {"split": "test"}), (b, {"split": "val"})]
    result = audit(corpus("c", rows), workers=1)
    assert found(result, "duplicate_across") == [0]
    assert list(result.dropped) == [0]


def test_copies_with_contradictory_labels_all_go(corpus):
    a = speckle(1)
    rows = [(a, {"label": "benign"}), (a, {"label": "malignant"}), (a, {}), (speckle(2), {"label": "benign"})]
    result = audit(corpus("c", rows), workers=1)
    assert found(result, "contradictory") == [0, 1, 2]
    assert list(result.dropped) == [0, 1, 2]
    assert next(one for one in result.found if one.finding == "contradictory").detail == "labels benign, malignant"


def test_near_copies_stay_within_a_split_and_give_way_to_test_across_splits(corpus):
    a = speckle(1)
    alone = audit(corpus("a", [(a, {}), (nearly(a), {}), (speckle(2), {})]), workers=1)
    assert found(alone, "near_duplicate") == [1]
    assert alone.dropped == {}
    rows = [(nearly(a), {"split": "train"}), (a, {"split": "test"}), (speckle(2), {"split": "train"})]
    split = audit(corpus("b", rows), workers=1)
    assert found(split, "near_across") == [0]
    assert split.dropped == {0: "near_across"}


def test_near_copies_with_other_labels_are_told_and_kept(corpus):
    a = speckle(1)
    result = audit(corpus("c", [(a, {"label": "x"}), (nearly(a), {"label": "y"}), (speckle(3), {})]), workers=1)
    assert found(result, "contradictory_near") == [0, 1]
    assert result.dropped == {}


def test_a_patient_on_two_sides_leaves_train(corpus):
    rows = [
        (speckle(1), {"split": "train", "patient": "7"}),
        (speckle(2), {"split": "test", "patient": "7"}),
        (speckle(3), {"split": "train", "patient": "7", "source": "other"}),
        (speckle(4), {"split": "val", "patient": "8"}),
    ]
    result = audit(corpus("c", rows), workers=1)
    assert found(result, "patient_across") == [0]
    assert result.dropped == {0: "patient_across"}


def test_what_a_task_tests_on_leaves_the_corpus(corpus):
    a, b, c = speckle(1), speckle(2), speckle(3)
    task = corpus(
        "task",
        [(a, {"split": "test"}), (b, {"split": "val", "patient": "v"}), (c, {"split": "train", "patient": "t"})],
    )
    rows = [
        (a, {"patient": "x0"}),
        (nearly(a), {"patient": "x1"}),
        (speckle(9), {"patient": "p0"}),  # the patient of the test picture
        (b, {"patient": "x3"}),
        (c, {"patient": "x4"}),
        (speckle(8), {"patient": "p0", "source": "other"}),
    ]
    result = audit(corpus("c", rows), [task], workers=1)
    assert [found(result, f"task_test{how}") for how in ("", "_near", "_patient")] == [[0], [1], [2]]
    assert found(result, "task_val") == [3]
    assert list(result.dropped) == [0, 1, 2]


def test_a_task_without_splits_is_held_out_as_a_whole(corpus):
    task = corpus("task", [(speckle(1), {"patient": "t"})])
    result = audit(corpus("c", [(speckle(1), {}), (speckle(2), {})]), [task], workers=1)
    assert found(result, "task_test") == [0]
    assert "since it has no column split" in result.tasks[str(task)]


def test_unreadable_blank_and_tiny_pictures_go_and_stained_ones_stay(corpus):
    rows = [
        (None, {}),
        (np.zeros((64, 64), np.uint8), {}),
        (speckle(1, 16), {}),
        (speckle(2), {"flag": "burned_in;region_outside", "digest": "ab", "hash": "0" * 64}),
    ]
    result = audit(corpus("c", rows), workers=1)
    assert [found(result, word) for word in ("unreadable", "blank", "tiny")] == [[0], [1], [2]]
    assert found(result, "burned_in") == found(result, "region_outside") == [3]
    assert list(result.dropped) == [0, 1, 2]


def test_black_pictures_are_no_ones_copies(corpus):
    black = np.zeros((64, 64), np.uint8)
    result = audit(corpus("c", [(black, {}), (black, {}), (speckle(1), {})]), workers=1)
    assert found(result, "duplicate") == found(result, "near_duplicate") == []


def test_the_command_writes_all_findings_and_the_rest_adds_up(corpus, capsys):
    a = speckle(1)
    path = corpus("c", [(a, {"label": "x", "split": "train"}), (a, {"split": "test"}), (speckle(2), {"patient": ""})])
    assert main(["data", "audit", str(path), "--drop", "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert "3 pictures = 2 that --drop keeps + 1 that it drops" in text
    assert "1 (1)" in text  # classes by split
    rows = manifest.read(path.with_name("c.clean.parquet"))
    assert [row["split"] for row in rows] == ["test", None]
    with path.with_name("c.audit.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert [(line["finding"], line["dropped"]) for line in listed] == [
        ("duplicate", "yes"),
        ("duplicate_across", ""),
        ("no_patient", ""),
    ]
    assert listed[0]["with"].endswith("1.png")


def test_programs_are_given_every_count(corpus, capsys):
    path = corpus("c", [(speckle(1), {}), (speckle(1), {})])
    assert main(["data", "audit", str(path), "--json", "--workers", "1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["findings"]["duplicate"] == said["dropped"]["duplicate"] == 1
    assert said["kept"] == 1
    assert list(said["findings"]) == list(MEANING)
    assert list(said["dropped"]) == list(DROPPED)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--out", "x.parquet"], "write --drop too"),
        (["--drop", "--out", "x.txt"], ".csv or .parquet"),
        (["--report", "x.parquet"], ".csv"),
        (["--drop", "--out", "c.parquet"], "the manifest that is audited"),
        (["--task", "none.parquet"], "no such file"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_line(corpus, tmp_path, monkeypatch, capsys, options, told):
    path = corpus("c", [(speckle(1), {})])
    monkeypatch.chdir(tmp_path)
    assert main(["data", "audit", str(path), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert error.count("\n") == 0


def test_a_corpus_of_nothing_sound_is_not_written(corpus, capsys):
    path = corpus("c", [(np.zeros((64, 64), np.uint8), {})])
    assert main(["data", "audit", str(path), "--drop", "--workers", "1"]) == 2
    assert "no picture is left" in capsys.readouterr().err
    assert not path.with_name("c.clean.parquet").exists()


def test_patients_of_two_sources_are_two():
    assert findings.patient({"source": "a", "patient": "1"}) != findings.patient({"source": "b", "patient": "1"})
    assert findings.patient({"source": "a"}) is None
