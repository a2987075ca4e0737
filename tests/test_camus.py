"""CAMUS in both of its layouts, in trees made here."""

from __future__ import annotations

import gzip
import sys
import zlib

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel")

from ussl.data import volumes  # noqa: E402
from ussl_plugins.sources.camus import Camus  # noqa: E402

HEIGHT, WIDTH, FRAMES = 9, 7, 5
SEQUENCE = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH)).astype(np.uint8)
TRUTH = np.random.default_rng(1).integers(0, 4, (FRAMES, HEIGHT, WIDTH)).astype(np.uint8)


def nifti(path, frames):
    """Frames (T, H, W), or one (H, W), in the axes of NIfTI: right, down, time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(frames.transpose(), np.eye(4)), path)
    return path


def meta(path, frames, how="raw", kind="MET_UCHAR", more=""):
    """The same as MetaImage; `how`: raw, zraw or local."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = zlib.compress(frames.tobytes()) if how == "zraw" else frames.tobytes()
    name = "LOCAL" if how == "local" else f"{path.stem}.{how}"
    size = " ".join(map(str, frames.shape[::-1]))
    head = f"ObjectType = Image\nNDims = {frames.ndim}\nDimSize = {size}\nCompressedData = {how == 'zraw'}\n{more}"
    head += f"ElementType = {kind}\nElementDataFile = {name}\n"
    path.write_bytes(head.encode() + (data if how == "local" else b""))
    if how != "local":
        path.with_name(name).write_bytes(data)
    return path


def config(folder, view, **values):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"Info_{view}.cfg").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))


def current(root, patient="patient0001", views=("2CH", "4CH")):
    """A patient as the current download has it."""
    folder = root / "database_nifti" / patient
    for view in views:
        stem = f"{patient}_{view}"
        for name, frames in (("half_sequence", SEQUENCE), ("ED", SEQUENCE[0]), ("ES", SEQUENCE[-1])):
            nifti(folder / f"{stem}_{name}.nii.gz", frames)
        for name, frames in (("half_sequence", TRUTH), ("ED", TRUTH[0]), ("ES", TRUTH[-1])):
            nifti(folder / f"{stem}_{name}_gt.nii.gz", frames)
        config(folder, view, ED=1, ES=FRAMES, NbFrame=FRAMES, Sex="F", Age=61, ImageQuality="Good", EF=53.5)
    (folder / "MANDATORY_CITATION.md").write_text("cite")
    return root


def older(root, part="training", patient="patient0007", how="raw"):
    """A patient as the download of 2019 has it; there the end of systole may come first."""
    folder = root / part / patient
    stem = f"{patient}_4CH"
    meta(folder / f"{stem}_sequence.mhd", SEQUENCE, how)
    for name, frame in (("ED", 3), ("ES", 1)):
        meta(folder / f"{stem}_{name}.mhd", SEQUENCE[frame][None], how)
        if part == "training":
            meta(folder / f"{stem}_{name}_gt.mhd", TRUTH[frame][None], how)
    config(
        folder, "4CH", ED=4, ES=2, NbFrame=FRAMES, Sex="M", Age=50, ImageQuality="Poor", LVedv=90.1, LVesv=40, LVef=55
    )
    return root


def splits(root, **patients):
    folder = root / "database_split"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("training", "validation", "testing"):
        (folder / f"subgroup_{name}.txt").write_text("\n".join(patients.get(name, [])) + "\n")


def rows(path, **options):
    source = Camus(path=path, **options)
    return [row for item in source.listing() for row in source.expand(item)]


def test_every_frame_of_a_sequence_is_a_row_with_depth_running_down(tmp_path):
    found = rows(current(tmp_path))
    assert [(row["view"], row["frame"]) for row in found] == [(v, f) for v in ("2CH", "4CH") for f in range(FRAMES)]
    for row in found:
        np.testing.assert_array_equal(Camus().read(row), SEQUENCE[row["frame"]])
        np.testing.assert_array_equal(Camus().mask(row), TRUTH[row["frame"]])
        assert row["path"].endswith(f"patient0001_{row['view']}_half_sequence.nii.gz")
        assert row["mask_gt"].endswith(f"patient0001_{row['view']}_half_sequence_gt.nii.gz")


def test_a_row_says_what_is_known_of_its_patient_and_view(tmp_path):
    row = rows(current(tmp_path))[0]
    known = {"source": "camus", "reader": "camus", "organ": "heart", "patient": "patient0001", "group_kind": "patient"}
    known |= {"video": "patient0001_2CH", "view": "2CH", "phase": "ED", "ef": 53.5, "quality": "Good", "sex": "F"}
    assert {**row, **known, "age": 61, "ed": 1, "es": FRAMES} == row
    phases = [row.get("phase") for row in rows(tmp_path)[:FRAMES]]
    assert phases == ["ED", None, None, None, "ES"]


@pytest.mark.parametrize("how", ["raw", "zraw"])
def test_the_older_layout_gives_the_same_rows_with_truth_at_its_two_phases(tmp_path, how):
    found = rows(older(tmp_path, how=how))
    assert [row["frame"] for row in found] == list(range(FRAMES))
    assert [row.get("phase") for row in found] == [None, "ES", None, "ED", None]
    assert [bool(row.get("mask_gt")) for row in found] == [False, True, False, True, False]
    assert (found[0]["ef"], found[0]["quality"], found[0]["edv"], found[0]["split"]) == (55, "Poor", 90.1, "train")
    for row in found:
        np.testing.assert_array_equal(Camus().read(row), SEQUENCE[row["frame"]])
    np.testing.assert_array_equal(Camus().mask(found[3]), TRUTH[3])
    with pytest.raises(ValueError, match=r"frame 0 has no truth$"):
        Camus().mask(found[0])
    (row, *_) = rows(older(tmp_path / "b", "testing"))
    assert row["split"] == "test"
    assert not any("mask_gt" in row for row in rows(tmp_path / "b"))


def test_the_pictures_of_the_phases_are_rows_where_they_are_asked_for_or_alone(tmp_path):
    found = rows(current(tmp_path), pictures="phases")
    assert [(row["view"], row["phase"]) for row in found] == [(v, p) for v in ("2CH", "4CH") for p in ("ED", "ES")]
    np.testing.assert_array_equal(Camus().read(found[1]), SEQUENCE[-1])
    np.testing.assert_array_equal(Camus().mask(found[1]), TRUTH[-1])
    folder = tmp_path / "database_nifti" / "patient0001"
    (folder / "patient0001_2CH_half_sequence.nii.gz").unlink()
    found = rows(tmp_path)
    assert [(row["view"], row["frame"]) for row in found][:3] == [("2CH", 0), ("2CH", 0), ("4CH", 0)]
    assert [row["phase"] for row in found[:2]] == ["ED", "ES"]
    with pytest.raises(ValueError, match="write sequence"):
        Camus(pictures="both")


def test_every_file_is_a_row_or_counted_aside(tmp_path):
    source = Camus(path=older(current(tmp_path)))
    listed = list(source.listing())
    assert len(listed) == 3
    assert source.aside == {
        "masks": 6 + 2,
        "pictures of phases, which are frames of sequences": 4 + 2,
        "tables": 3,
        "values of .mhd files": 5,
        ".md files": 1,
    }
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == len(listed) + source.aside.total()


def test_splits_are_those_of_the_lists(tmp_path, capsys):
    for number, patient in enumerate(("patient0001", "patient0002", "patient0003"), 1):
        current(tmp_path / "CAMUS_public", patient, ("2CH",))
        assert len(rows(tmp_path)) == FRAMES * number
    splits(tmp_path / "CAMUS_public", training=["patient0002", "patient0499"], testing=["patient0001"])
    found = {row["patient"]: row.get("split") for row in rows(tmp_path)}
    assert found == {"patient0001": "test", "patient0002": "train", "patient0003": None}
    assert "1 patients of its split lists are not there" in capsys.readouterr().err
    splits(tmp_path / "CAMUS_public", training=["patient0002"], testing=["patient0002"])
    with pytest.raises(ValueError, match=r"subgroup_testing.txt: patient0002 is also in the list of train"):
        rows(tmp_path)


def test_other_letter_case_and_top_folders_are_understood(tmp_path):
    folder = tmp_path / "my data" / "CAMUS" / "Patient0010"
    nifti(folder / "PATIENT0010_4ch_HALF_SEQUENCE.NII.GZ", SEQUENCE)
    nifti(folder / "patient0010_4CH_half_sequence_GT.nii.gz", TRUTH)
    (folder / "info_4ch.CFG").write_text("\ufeffED : 1\nES: 5\n\nEF: 40\n", encoding="utf-8")
    found = rows(tmp_path)
    assert len(found) == FRAMES
    assert {row["patient"] for row in found} == {"patient0010"}
    assert found[4]["phase"] == "ES"
    np.testing.assert_array_equal(Camus().mask(found[2]), TRUTH[2])


def test_both_layouts_at_once_give_a_sequence_once(tmp_path):
    source = Camus(path=older(current(tmp_path, "patient0007"), patient="patient0007"))
    assert [item["view"] for item in source.listing()] == ["2CH", "4CH"]
    assert source.aside["second copies, in another layout"] == 1


def test_a_truth_of_other_length_is_not_used_and_flagged(tmp_path):
    current(tmp_path, views=("2CH",))
    nifti(tmp_path / "database_nifti/patient0001/patient0001_2CH_half_sequence_gt.nii.gz", TRUTH[:3])
    found = rows(tmp_path)
    assert {row["flag"] for row in found} == {"mask_of_other_length"}
    assert not any("mask_gt" in row for row in found)


def test_a_damaged_sequence_is_refused_in_one_line(tmp_path):
    folder = current(tmp_path, views=("2CH",)) / "database_nifti" / "patient0001"
    path = folder / "patient0001_2CH_half_sequence.nii.gz"
    body = path.read_bytes()
    for broken in (body[:100], body[:-20], b"", b"no volume", gzip.compress(b"no volume")):
        path.write_bytes(broken)
        source = Camus(path=tmp_path)
        (item,) = source.listing()
        with pytest.raises(ValueError, match=r"half_sequence\.nii\.gz: (damaged or cut short|the file is empty)$"):
            source.expand(item)


def test_another_folder_says_what_was_expected(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match="not camus as it is published: expected database_nifti/patient0001/"):
        rows(tmp_path)
    with pytest.raises(ValueError, match="where is camus"):
        rows(None)


# Volumes.


@pytest.mark.parametrize(
    "kind", [("MET_SHORT", "<i2"), ("MET_USHORT", ">u2"), ("MET_FLOAT", "<f4"), ("MET_DOUBLE", "<f8")]
)
def test_whole_numbers_to_255_stay_and_others_are_scaled_by_the_range_of_the_file(tmp_path, kind):
    more = "BinaryDataByteOrderMSB = True\n" if kind[1][0] == ">" else ""
    frames = volumes.load(meta(tmp_path / "a.mha", SEQUENCE.astype(kind[1]), "local", kind[0], more))
    np.testing.assert_array_equal(volumes.eight_bits(frames, 2), SEQUENCE[2])
    wide = (SEQUENCE.astype(int) * 50).astype(kind[1])
    frames = volumes.load(meta(tmp_path / "b.mhd", wide, "raw", kind[0], more))
    low, high = int(wide.min()), int(wide.max())
    expected = np.rint((wide[2].astype(float) - low) * 255 / (high - low)).astype(np.uint8)
    np.testing.assert_array_equal(volumes.eight_bits(frames, 2), expected)


def test_axes_of_one_do_not_matter(tmp_path):
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(SEQUENCE.transpose()[:, :, None, :], np.eye(4)), path)
    np.testing.assert_array_equal(volumes.load(path), SEQUENCE)
    nibabel.save(nibabel.Nifti1Image(SEQUENCE[0].transpose(), np.eye(4)), path)
    np.testing.assert_array_equal(volumes.load(path), SEQUENCE[:1])


def refusal(path):
    with pytest.raises(ValueError) as caught:
        volumes.load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


def test_a_header_that_announces_too_much_is_refused_before_values_are_read(tmp_path):
    (tmp_path / "a.mhd").write_text("DimSize = 60000 60000 9\nElementType = MET_UCHAR\nElementDataFile = a.raw\n")
    assert "more than can be read" in refusal(tmp_path / "a.mhd")
    header = nibabel.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_data_dtype(np.uint8)
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(100))
    assert "more than can be read" in refusal(tmp_path / "a.nii")


def test_values_elsewhere_missing_or_too_few_are_named(tmp_path):
    path = meta(tmp_path / "a.mhd", SEQUENCE)
    (tmp_path / "a.raw").write_bytes(bytes(10))
    assert refusal(path) == "cut short: it holds fewer values than its header announces"
    (tmp_path / "a.raw").unlink()
    path.write_text(path.read_text() + "\n")
    assert refusal(path) == "its values should lie in a.raw, which is not there"
    path.write_text(path.read_text().replace("a.raw", "../a.raw"))
    assert refusal(path) == "its values lie in another folder; put them beside it"
    path.write_text("NDims = 3\n")
    assert "its header has no ElementDataFile" in refusal(path)
    path.write_text("DimSize = 3 x\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n")
    assert "its header lacks DimSize" in refusal(path)


def test_a_header_before_the_values_is_skipped(tmp_path):
    path = meta(tmp_path / "a.mhd", SEQUENCE, more="HeaderSize = 12\n")
    (tmp_path / "a.raw").write_bytes(bytes(12) + SEQUENCE.tobytes())
    np.testing.assert_array_equal(volumes.load(path), SEQUENCE)
    path.write_text(path.read_text().replace("= 12", "= -1"))  # however long it is
    np.testing.assert_array_equal(volumes.load(path), SEQUENCE)


def test_values_that_inflate_beyond_their_size_are_not_inflated_further(tmp_path):
    path = meta(tmp_path / "a.mhd", SEQUENCE, "zraw")
    (tmp_path / "a.zraw").write_bytes(zlib.compress(SEQUENCE.tobytes() + bytes(50_000_000)))
    np.testing.assert_array_equal(volumes.load(path), SEQUENCE)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = nifti(tmp_path / "a.nii", SEQUENCE)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert refusal(path) == "reading NIfTI needs a package: pip install 'ultrasound-ssl[nifti]'"


def test_the_older_layouts_testing_patients_are_others(tmp_path):
    source = Camus(path=tmp_path)
    for part in ("training", "testing"):
        (tmp_path / part / "patient0001").mkdir(parents=True)
        (tmp_path / part / "patient0001" / "patient0001_4CH_sequence.mhd").write_text("")
    found = [(item["patient"], item.get("split")) for item in source.listing()]
    assert sorted(found) == [("patient0001", "train"), ("testing_patient0001", "test")]
    assert not source.aside["second copies, in another layout"]
