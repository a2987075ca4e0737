"""Packs: the pictures of a manifest decoded once, whole or not at all whatever happens, and read as from files."""

from __future__ import annotations

import csv
import errno
import multiprocessing
import os
import pickle
import resource
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ussl.cli import main
from ussl.data import manifest, pack, scan, shards, writing
from ussl.data.loader import Loader
from ussl.data.packing import GOES_ON
from ussl.parts import Draws
from ussl_plugins.augmentations.crop import Crop
from ussl_plugins.samplers.natural import Natural
from ussl_plugins.sources.images import Images
from ussl_plugins.sources.pack import Pack
from ussl_plugins.sources.phantom import PhantomSource

READER = """
import os, time
from ussl.hookspecs import hookimpl
from ussl_plugins.sources.images import Images

class Special(Images):
    '''Does as the name of a picture says.'''
    def read(self, row):
        name = os.path.basename(row["path"])
        if name.startswith("kills"):
            os.kill(os.getpid(), 9)
        if name.startswith("odd"):
            raise KeyError("no such key")
        if name.startswith("slow"):
            time.sleep(0.05)
        return super().read({**row, "reader": "images"})

@hookimpl
def ussl_sources():
    return {"special": Special}
"""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of a few hundred bytes, so that a few pictures make several."""
    monkeypatch.setattr(writing, "SMALL", 600)


@pytest.fixture
def reader(write):
    """The file of a plugin whose source is `special`."""
    return str(write("special.py", READER))


def save(path, *shape, seed=0):
    picture = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return picture


def corpus(folder, names=tuple("abcdefgh"), shape=(12, 20), **columns):
    """A manifest of PNG pictures, and the pictures by path."""
    pictures = {
        str(folder / f"{name}.png"): save(folder / f"{name}.png", *shape, seed=i) for i, name in enumerate(names)
    }
    rows = [{"path": path, "organ": "liver", "patient": f"0{i}", **columns} for i, path in enumerate(pictures)]
    sizes = {"height": shape[0], "width": shape[1], "channels": (*shape, 1)[2]}
    manifest.write([row | sizes for row in rows], folder / "corpus.parquet")
    return folder / "corpus.parquet", pictures


def packed(table, *words, code=0):
    """Pack a manifest beside it; its folder."""
    assert main(["data", "pack", str(table), "--workers", "1", *words]) == code
    return table.with_suffix(".pack")


def content(folder):
    """Every file of a pack, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def moved(folder):
    """Its content, after which the folder is gone."""
    found = content(folder)
    folder.rename(folder.with_name("before"))
    return found


def seen(row):
    return Pack().read(row)


def test_a_pack_gives_the_decoded_pictures_and_all_that_the_manifest_says(tmp_path):
    grey, colour = save(tmp_path / "ä b.png", 9, 7), save(tmp_path / "c.png", 6, 8, 3)
    equal = np.repeat(grey[..., None], 3, 2)
    Image.fromarray(equal).save(tmp_path / "equal.png")
    names = ("ä b.png", "c.png", "equal.png")
    rows = [{"path": str(tmp_path / name), "organ": "liver", "patient": "007", "gain": 0.5} for name in names]
    rows[1] |= {"organ": None, "mask_lesion": str(tmp_path / "m.png")}
    manifest.write(rows, tmp_path / "corpus.csv")
    found = pack.rows(packed(tmp_path / "corpus.csv"))
    for row, wanted in zip(found, manifest.read(tmp_path / "corpus.csv"), strict=True):
        assert {name: row[name] for name in wanted} == wanted | {"gain": wanted["gain"]}
        assert row["reader"] == "pack"
        assert os.path.isabs(row["shard"])
        assert row["bytes"] == os.path.getsize(row["path"])
        assert row["modified"] == os.stat(row["path"]).st_mtime_ns
    for row, wanted in zip(found, (grey, colour, grey), strict=True):
        picture = seen(row)
        assert picture.dtype == np.uint8
        assert not picture.flags.writeable
        np.testing.assert_array_equal(picture, wanted)
        assert row["packed_scale"] == 1
    assert [row["packed_channels"] for row in found] == [1, 3, 1]
    assert sum(row["packed_height"] * row["packed_width"] * row["packed_channels"] for row in found) == sum(
        os.path.getsize(shard) for shard in {row["shard"] for row in found}
    )


def test_a_picture_is_shrunk_to_its_short_side_antialiased_and_never_enlarged(tmp_path):
    wide, small = save(tmp_path / "a.png", 40, 90), save(tmp_path / "b.png", 15, 90)
    manifest.write([{"path": str(tmp_path / name)} for name in ("a.png", "b.png")], tmp_path / "corpus.csv")
    first, second = pack.rows(packed(tmp_path / "corpus.csv", "--short-side", "16"))
    assert (first["packed_height"], first["packed_width"], first["packed_scale"]) == (16, 36, 0.4)
    theirs = Image.fromarray(wide).resize((36, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(seen(first), np.asarray(theirs))
    assert second["packed_scale"] == 1
    np.testing.assert_array_equal(seen(second), small)


def batches(rows, workers=0, **options):
    readers = {"images": Images(), "pack": Pack()}
    options = {"seed": 0, "batch_size": 4, "micro_batch": 4, "workers": workers} | options
    return [batch for _, batch in Loader(rows, readers, Natural(), **options).batches(0, 3)]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_sees_the_same_from_files_and_from_a_pack_that_did_not_shrink(tmp_path, workers):
    table, _ = corpus(tmp_path, shape=(40, 60), label="benign")
    folder = packed(table)
    theirs, ours = batches(manifest.read(table)), batches(pack.rows(folder), workers)
    assert len(ours) == 3
    for one, other in zip(theirs, ours, strict=True):
        for name in ("pixels", "box", "scale", "index", "turn"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert one.labels.keys() == other.labels.keys() == {"organ", "label", "patient"}
        assert all(torch.equal(one.labels[name], other.labels[name]) for name in one.labels)
        views = [Crop(size=16)(batch, Draws(0, 0, 0, batch.index, batch.turn))[0].image for batch in (one, other)]
        assert torch.equal(*views)


def test_the_scale_of_a_batch_is_that_of_the_pack_times_that_of_the_canvas(tmp_path):
    table, _ = corpus(tmp_path, shape=(40, 60))
    rows = pack.rows(packed(table, "--short-side", "20"))
    assert batches(rows)[0].scale.tolist() == [0.5] * 4
    (batch, *_) = batches(rows, canvas=15)
    assert batch.pixels.shape == (4, 1, 10, 15)
    assert batch.scale.tolist() == [0.25] * 4


@pytest.mark.parametrize("source", [[], ["--source", "pack"]])
def test_a_run_trains_from_a_pack(tmp_path, source):
    table, _ = corpus(tmp_path, shape=(40, 60))
    words = ["--recipe", "small/mae", "--source", "images", *source, "--data", str(packed(table)), "--probes", "null"]
    less = ["--train.steps", "2", "--train.batch_size", "4", "--loader.workers", "1"]
    assert main(["fit", *words, *less, "--out", str(tmp_path / "run")]) == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_pack_that_is_moved_is_found_in_its_new_place(tmp_path):
    table, pictures = corpus(tmp_path)
    packed(table).rename(tmp_path / "elsewhere")
    for row, picture in zip(pack.rows(tmp_path / "elsewhere"), pictures.values(), strict=True):
        np.testing.assert_array_equal(seen(row), picture)


def test_any_number_of_workers_writes_the_same_bytes(tmp_path):
    table, _ = corpus(tmp_path, shape=(17, 23, 3))
    first = moved(packed(table, "--short-side", "11"))
    assert content(packed(table, "--short-side", "11", "--workers", "3")) == first
    assert sum(name.endswith(".bin") for name in first) > 3


def test_a_pack_killed_at_any_time_goes_on_to_the_same_bytes(tmp_path, reader, capsys):
    table, _ = corpus(tmp_path, [f"slow{i}" for i in range(9)], reader="special")
    words = ["data", "pack", str(table), "--plugin", reader, "--workers", "1"]
    folder = table.with_suffix(".pack")
    run = multiprocessing.get_context("fork").Process(target=main, args=(words,))
    run.start()
    while not (folder / "shard-00001.json").exists():
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    kept = (folder / "shard-00000.bin").stat()
    with pytest.raises(ValueError, match=r"this pack is not finished: run `ussl data pack` again"):
        pack.rows(folder)
    capsys.readouterr()
    packed(table, "--plugin", reader)
    assert "shards whose pictures and rows have not changed" in capsys.readouterr().out
    assert (folder / "shard-00000.bin").stat().st_ino == kept.st_ino
    resumed = moved(folder)
    assert content(packed(table, "--plugin", reader)) == resumed
    assert not [name for name in resumed if name.endswith(".part")]


def test_a_second_pack_on_one_folder_is_refused(tmp_path, reader, capsys):
    table, _ = corpus(tmp_path, [f"slow{i}" for i in range(9)], reader="special")
    words = ["data", "pack", str(table), "--plugin", reader, "--workers", "1"]
    run = multiprocessing.get_context("fork").Process(target=main, args=(words,))
    run.start()
    while not (table.with_suffix(".pack") / "pack.json").exists():
        time.sleep(0.01)
    assert main([*words, "--overwrite"]) == 2
    assert "another `ussl data pack` is writing it" in capsys.readouterr().err
    run.join()
    assert run.exitcode == 0
    assert len(pack.rows(table.with_suffix(".pack"))) == 9


def test_a_file_too_large_for_the_disk_leaves_the_finished_shards(tmp_path, capsys):
    table, _ = corpus(tmp_path)
    big = save(tmp_path / "big.png", 200, 300)
    rows = [*manifest.read(table), {"path": str(tmp_path / "big.png"), "height": 200, "width": 300, "channels": 1}]
    manifest.write(rows, table)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        folder = packed(table, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (error,) = capsys.readouterr().err.splitlines()
    assert error == f"error: {folder}: file too large; {GOES_ON}"
    finished = [path for path in folder.iterdir() if path.suffix == ".bin"]
    assert finished
    assert not list(folder.glob(".*.part"))
    inodes = {path: path.stat().st_ino for path in finished}
    packed(table)
    assert {path: path.stat().st_ino for path in finished} == inodes
    np.testing.assert_array_equal(seen(pack.rows(folder)[-1]), big)


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    table, _ = corpus(tmp_path)
    monkeypatch.setattr(writing.Shard, "_write", full)
    folder = packed(table, code=1)
    said = capsys.readouterr()
    assert said.err == f"error: {folder}: no space left on device; {GOES_ON}\n"
    assert "space     about 1.9 kB to write, " in said.out
    assert " free" in said.out


def test_only_the_shards_of_changed_pictures_are_made_again(tmp_path, capsys):
    table, pictures = corpus(tmp_path)
    folder = packed(table)
    last = list(pictures)[-1]
    inode = (folder / "shard-00000.bin").stat().st_ino
    save(tmp_path / "h.png", 12, 20, seed=99)
    os.utime(last, ns=(1, 2))
    packed(table)
    assert (folder / "shard-00000.bin").stat().st_ino == inode
    again = moved(folder)
    assert content(packed(table)) == again
    capsys.readouterr()
    packed(table)
    assert capsys.readouterr().out == f"nothing to do: {folder} holds these 8 rows already\n"


@pytest.mark.parametrize("change", ["add", "remove", "reorder"])
def test_rows_that_come_go_or_change_places_are_packed_as_if_from_the_start(tmp_path, change):
    table, _ = corpus(tmp_path)
    folder = packed(table)
    rows = manifest.read(table)
    extra = {**rows[0], "path": str(tmp_path / "new.png")}
    save(tmp_path / "new.png", 12, 20, seed=50)
    rows = {"add": [*rows, extra], "remove": rows[1:6], "reorder": rows[::-1]}[change]
    manifest.write(rows, table)
    packed(table)
    updated = moved(folder)
    assert content(packed(table)) == updated
    assert [row["path"] for row in pack.rows(folder)] == [row["path"] for row in rows]


def test_a_new_split_costs_no_decoding(tmp_path, capsys):
    table, _ = corpus(tmp_path)
    folder = packed(table)
    before = {path: path.stat().st_ino for path in folder.glob("*.bin")}
    manifest.write([row | {"split": "test"} for row in manifest.read(table)], table)
    packed(table)
    assert {path: path.stat().st_ino for path in folder.glob("*.bin")} == before
    assert {row["split"] for row in pack.rows(folder)} == {"test"}


def test_other_options_are_refused_unless_the_pack_is_to_be_overwritten(tmp_path, capsys):
    table, _ = corpus(tmp_path)
    folder = packed(table, "--short-side", "10")
    packed(table, "--short-side", "11", code=2)
    expected = f"error: {folder}: packed with --short-side 10 --scan keep: write these, another -o, or --overwrite\n"
    assert capsys.readouterr().err == expected
    packed(table, "--short-side", "11", "--overwrite")
    assert {row["packed_height"] for row in pack.rows(folder)} == {11}


def test_pictures_that_are_gone_do_not_empty_a_finished_pack(tmp_path, capsys):
    table, pictures = corpus(tmp_path)
    folder = packed(table)
    before = content(folder)
    for path in pictures:
        os.rename(path, path + ".away")
    packed(table, code=2)
    assert "a.png and 7 more: packed in" in capsys.readouterr().err
    assert content(folder) == before
    assert len(pack.rows(folder)) == 8


def test_pictures_that_cannot_be_read_are_listed_with_reasons_and_the_others_packed(tmp_path, reader, capsys):
    table, pictures = corpus(tmp_path, ["a", "odd", "broken", "c"], reader="special")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = manifest.read(table)
    manifest.write([*rows, {**rows[0], "path": str(tmp_path / "gone.png")}], table)
    folder = packed(table, "--plugin", reader)
    assert f"rejected  3 that cannot be read: {folder}/rejected.csv says why" in capsys.readouterr().out
    with (folder / "rejected.csv").open() as file:
        reasons = {os.path.basename(row["path"]): row["reason"] for row in csv.DictReader(file)}
    assert reasons == {
        "odd.png": "KeyError: 'no such key'",
        "broken.png": "not a PNG, JPEG, TIFF or BMP picture, whatever its name says",
        "gone.png": "no such file or directory",
    }
    assert [os.path.basename(row["path"]) for row in pack.rows(folder)] == ["a.png", "c.png"]
    np.testing.assert_array_equal(seen(pack.rows(folder)[1]), pictures[str(tmp_path / "c.png")])
    save(tmp_path / "broken.png", 12, 20)  # repaired
    packed(table, "--plugin", reader)
    assert len(pack.rows(folder)) == 3


def test_a_manifest_of_which_nothing_can_be_read_fails(tmp_path, capsys):
    table, pictures = corpus(tmp_path)
    for path in pictures:
        os.truncate(path, 0)
    folder = packed(table, code=1)
    assert "none of 8 pictures could be read" in capsys.readouterr().err
    assert "the file is empty" in (folder / "rejected.csv").read_text()


@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_decoder_that_kills_its_process_costs_one_picture(tmp_path, reader, workers):
    table, pictures = corpus(tmp_path, ["a", "b", "kills", "c", "d"], reader="special")
    folder = packed(table, "--plugin", reader, "--workers", workers)
    assert "the decoder crashed (signal 9" in (folder / "rejected.csv").read_text()
    found = {row["path"]: seen(row) for row in pack.rows(folder)}
    del pictures[str(tmp_path / "kills.png")]
    assert found.keys() == pictures.keys()
    assert all(np.array_equal(found[path], pictures[path]) for path in found)


def test_verify_names_every_picture_whose_pixels_changed(tmp_path, capsys):
    table, _ = corpus(tmp_path)
    folder = packed(table)
    capsys.readouterr()
    for words in ([str(folder)], [str(table)], [str(table), "-o", str(folder)]):
        assert main(["data", "pack", *words, "--verify"]) == 0
        assert capsys.readouterr().out == f"verified  8 pictures of {folder}: all are as packed\n"
    row, *_, other = pack.rows(folder)
    with open(row["shard"], "r+b") as file:
        file.seek(row["offset"] + 5)
        byte = file.read(1)[0]
        file.seek(row["offset"] + 5)
        file.write(bytes([byte ^ 1]))
    os.truncate(other["shard"], other["offset"] + 3)
    assert main(["data", "pack", str(folder), "--verify"]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("bad")]
    assert bad[0] == f"bad       {row['path']}: its pixels in {row['shard']} are not those packed"
    assert bad[-1].startswith(f"bad       {other['path']}: {other['shard']}: cut short")
    assert main(["data", "pack", str(tmp_path), "--verify"]) == 2
    assert "not a pack" in capsys.readouterr().err


def test_a_shard_cut_short_is_one_line_and_mended_by_the_same_command(tmp_path):
    table, _ = corpus(tmp_path)
    folder = packed(table)
    whole, rows = content(folder), pack.rows(folder)
    shard = rows[0]["shard"]
    os.truncate(shard, 10)
    with pytest.raises(ValueError, match=rf"^{shard}: cut short: 10 of \d+ bytes; run `ussl data pack` again$"):
        pack.rows(folder)
    with pytest.raises(ValueError, match=rf"^{shard}: cut short: 10 bytes; run `ussl data pack` again\. Repair"):
        batches(rows, workers=1, batch_size=8, micro_batch=8)
    os.unlink(shard)
    with pytest.raises(ValueError, match=rf"^{shard}: no such file; run `ussl data pack` again$"):
        pack.rows(folder)
    packed(table)
    assert content(folder) == whole


def test_a_source_of_packs_opens_a_shard_once_and_survives_pickling(tmp_path, monkeypatch):
    opened = []
    mapped = shards._mapped
    monkeypatch.setattr(shards, "_mapped", lambda shard: opened.append(shard) or mapped(shard))
    table, _ = corpus(tmp_path)
    rows, source = pack.rows(packed(table)), Pack()
    first = [source.read(row) for row in rows + rows]
    assert sorted(opened) == sorted({row["shard"] for row in rows})
    copy = pickle.loads(pickle.dumps(source))
    assert all(np.array_equal(copy.read(row), picture) for row, picture in zip(rows, first, strict=False))
    assert len(pickle.dumps(source)) < 1000  # not the pictures


def test_rows_that_are_not_of_a_pack_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"a\.png: not a row of a pack, for want of shard, offset, packed_height"):
        Pack().read({"path": "a.png"})
    with pytest.raises(ValueError, match="write --data PACK"):
        Pack().rows()


def test_pictures_without_files_are_packed_too(tmp_path):
    source = PhantomSource(images=4, patients=2, size=32, cache=False)
    manifest.write(source.rows(), tmp_path / "phantoms.parquet")
    rows = pack.rows(packed(tmp_path / "phantoms.parquet"))
    wanted = [source.read(row) for row in source.rows()]
    assert all(np.array_equal(seen(row), picture) for row, picture in zip(rows, wanted, strict=True))


def test_cropping_to_the_scan_records_where_the_picture_begins(tmp_path, monkeypatch):
    def cleaned(picture, scan="keep", grey=False):
        return picture[2:9, 3:] if scan == "crop" else picture

    monkeypatch.setattr(scan, "scan_box", lambda picture: (2, 3, 7, 17), raising=False)
    monkeypatch.setattr(scan, "cleaned", cleaned, raising=False)
    table, pictures = corpus(tmp_path)
    row = pack.rows(packed(table, "--scan", "crop"))[1]
    assert (row["packed_y"], row["packed_x"], row["packed_height"], row["packed_width"]) == (2, 3, 7, 17)
    np.testing.assert_array_equal(seen(row), pictures[row["path"]][2:9, 3:])


def test_grey_and_scan_are_asked_of_every_picture(tmp_path, monkeypatch):
    def asked(picture, scan, grey):
        return np.full((2, 2), 10 * ["keep", "mask", "crop"].index(scan) + grey, np.uint8)

    monkeypatch.setattr(scan, "cleaned", asked, raising=False)
    table, _ = corpus(tmp_path)
    for words, value in (["--grey"], 1), (["--scan", "mask"], 10), (["--scan", "mask", "--grey"], 11):
        row = pack.rows(packed(table, *words, "--overwrite"))[0]
        assert seen(row).tolist() == [[value] * 2] * 2
        assert "packed_y" not in row


def test_the_ranges_of_shards_follow_the_expected_bytes(monkeypatch):
    monkeypatch.setattr(writing, "SMALL", 8 * 2**20)
    assert writing.ranges([100] * 50) == [range(50)]
    assert writing.ranges([5 * 2**20] * 4) == [range(i, i + 1) for i in range(4)]
    sizes = [200_000] * 20_000  # 4 GB
    found = writing.ranges(sizes)
    assert [i for part in found for i in part] == list(range(20_000))
    assert all(len(part) * 200_000 <= 256 * 2**20 for part in found)
    assert len(found) in (16, 17)
    assert len(writing.ranges([200_000_000] * 4_000)) <= 667  # 800 GB: larger shards, not more than can be open


def test_what_is_no_pack_is_left_alone(tmp_path, capsys):
    table, _ = corpus(tmp_path)
    (tmp_path / "corpus.pack").mkdir()
    (tmp_path / "corpus.pack" / "thesis.txt").write_text("precious")
    for words in ([], ["--overwrite"]):
        packed(table, *words, code=2)
        assert "holds other things than a pack (thesis.txt): write another -o" in capsys.readouterr().err
    assert os.listdir(tmp_path / "corpus.pack") == ["thesis.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--short-side", "0"], "--short-side 0: write 1 or more pixels"),
        (["--workers", "0"], "--workers 0: write 1 or more"),
        (["--verify", "--overwrite", "--grey"], "--grey, --overwrite: without effect beside --verify"),
        (["-o", "{table}"], "a file; write the name of a folder"),
    ],
)
def test_words_without_sense_are_refused(tmp_path, capsys, words, message):
    table, _ = corpus(tmp_path)
    packed(table, *(word.format(table=table) for word in words), code=2)
    assert message in capsys.readouterr().err


def test_inputs_that_cannot_be_packed_are_refused_in_one_line(tmp_path, capsys):
    table, _ = corpus(tmp_path, reader="nobody")
    packed(table, code=2)
    assert 'source "nobody": unknown' in capsys.readouterr().err
    folder = packed(corpus(tmp_path)[0])
    for given, message in (
        (folder, "a pack already: write the manifest that it was made of, or --verify"),
        (tmp_path, "no manifest at its top"),
        (tmp_path / "none.parquet", "no such file"),
    ):
        capsys.readouterr()
        assert main(["data", "pack", str(given), "-o", str(tmp_path / "other")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    for broken, message in (('{"format": 99}', "a pack of format 99, not 1"), ("{", "damaged")):
        (folder / "pack.json").write_text(broken)
        with pytest.raises(ValueError, match=message):
            pack.rows(folder)
    with pytest.raises(ValueError, match=r"not a pack: pack\.json: no such file"):
        pack.rows(tmp_path)
