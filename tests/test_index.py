"""`ussl data index`: every file accounted for, whatever decoders, disks and impatient people do to it."""

import csv
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ussl.cli import main
from ussl.data import index, manifest, walking
from ussl.data.journal import Journal

PLUGIN = '''
"""Pictures that end the process, hang, and worse, by their names; every read is noted in the file `log`."""

import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from ussl.data import pictures
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Source


class Odd(Source):
    """Pictures of a folder."""

    def __init__(self, *, path: Path, log: Path | None = None, organ: str = "liver", pause: float = 0.0) -> None:
        self.path, self.log, self.organ, self.pause, self.aside = path, log, organ, pause, Counter()

    def rows(self):
        for file in sorted(self.path.rglob("*")):
            if file.suffix in (".png", ".many"):
                yield {"path": str(file), "source": "odd", "organ": self.organ, "lot": 7, "share": 0.1}
            elif file.is_file():
                self.aside["tables"] += 1

    def expand(self, item):
        if not item["path"].endswith(".many"):
            return [item]
        rows = [item | {"frame": frame} for frame in range(len(Path(item["path"]).read_bytes()))]
        return rows + [item | {"frame": 9, "rejected": "empty"}] if rows else []

    def read(self, row):
        name = os.path.basename(row["path"])
        if self.log:
            with open(self.log, "a") as file:
                file.write(name + "\\n")
        time.sleep(self.pause)
        print("secret of", name, file=sys.stderr)
        if "kill" in name:
            os.kill(os.getpid(), 9)
        if "exit" in name:
            os._exit(3)
        if "hang" in name:
            time.sleep(60)
        if "fault" in name:
            raise KeyError("no such tag")
        if "deep" in name:
            return np.zeros((4, 4), np.uint16)
        if "note" in name:
            once("a note from afar")
        if "gone" in name:
            os.rename(self.path, str(self.path) + " elsewhere")
        if row["path"].endswith(".many"):
            byte = Path(row["path"]).read_bytes()[row["frame"]]
            if byte > 200:
                raise ValueError(f"{row['path']}: frame too bright")
            return np.full((40, 40), byte, np.uint8)
        return pictures.read(row["path"])


class Other(Odd):
    """Pictures of a folder, as another source."""

    def rows(self):
        return (row | {"source": "other", "reader": "odd"} for row in super().rows())


@hookimpl
def ussl_sources():
    """Offer both."""
    return {"odd": Odd, "other": Other}
'''


@pytest.fixture
def plugin(write):
    return write("odd plugin.py", PLUGIN)


@pytest.fixture
def tree(tmp_path):
    """Six pictures of noise in a folder whose name has a space and an umlaut."""
    return pictures(tmp_path / "Bilder für alle", 6)


@pytest.fixture
def run(plugin, tmp_path, capsys):
    """run(words): exit code, what was printed, and what was said on stderr, of `ussl data index odd`."""

    def run(*words, source="odd", out="corpus.csv", workers=1):
        options = ["-o", str(tmp_path / out), "--plugin", str(plugin), "--workers", str(workers)]
        code = main(["data", "index", source, *map(str, words), *options])
        said = capsys.readouterr()
        print(said.err)
        return code, *said

    return run


def pictures(folder, count, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise(folder / f"{seed} {number}.png", 100 * seed + number)
    return folder


def noise(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 48), dtype=np.uint8)).save(path)
    return path


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def names(rows):
    return [Path(row["path"]).name for row in rows]


def reads(log):
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


def test_every_file_is_indexed_rejected_or_set_aside(run, tree, tmp_path):
    (tree / "list.txt").write_text("a table")
    (tree / "damaged.png").write_bytes((tree / "0 1.png").read_bytes()[:60])
    (tree / "fault.png").write_bytes(b"")
    (tree / "deep.png").write_bytes(b"")
    code, said, _ = run(tree)
    assert code == 0
    assert "files     9 listed = 6 indexed + 3 rejected" in said
    assert "pictures  6 in them, by organ: liver 6" in said
    assert "set aside 1 other files: tables 1" in said
    assert f"rejected  {tmp_path / 'rejected.csv'}, 3 rows" in said
    rows = manifest.read(tmp_path / "corpus.csv")
    first = Path(rows[0]["path"])
    assert first == tree / "0 0.png"
    assert (rows[0]["width"], rows[0]["height"], rows[0]["channels"], rows[0]["source"]) == (48, 40, 1, "odd")
    assert (rows[0]["bytes"], rows[0]["modified"]) == (first.stat().st_size, first.stat().st_mtime_ns)
    lost = {Path(row["path"]).name: row["reason"] for row in table(tmp_path / "rejected.csv")}
    assert lost["fault.png"] == "KeyError: 'no such tag'"
    assert lost["deep.png"] == "reader odd gave uint16 (4, 4), not uint8 (H, W) or (H, W, 3)"
    assert lost["damaged.png"].startswith("damaged or cut short")
    assert not list(tmp_path.glob(".*"))


def test_a_rejected_table_without_rows_is_written_too(run, tree, tmp_path):
    run(tree)
    assert (tmp_path / "rejected.csv").read_text().split() == ["path,frame,source,reason,manifest"]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_decoder_that_ends_its_process_costs_one_file(run, tree, tmp_path, workers):
    for name in ("0 0 kill.png", "0 3 exit.png", "0 9 kill.png"):
        noise(tree / name, 50)
    code, said, _ = run(tree, workers=workers)
    assert code == 0
    assert "9 listed = 6 indexed + 3 rejected" in said
    assert names(manifest.read(tmp_path / "corpus.csv")) == [f"0 {i}.png" for i in range(6)]
    assert [row["reason"] for row in table(tmp_path / "rejected.csv")] == [
        "the decoder crashed (signal 9, perhaps for want of memory)",
        "the decoder ended its process (exit code 3)",
        "the decoder crashed (signal 9, perhaps for want of memory)",
    ]


def test_a_decoder_that_hangs_costs_one_file(run, tree, tmp_path, monkeypatch):
    monkeypatch.setattr(walking, "LIMIT", 0.5)
    monkeypatch.setattr(walking, "_POLL", 0.1)
    noise(tree / "0 2 hang.png", 50)
    code, said, _ = run(tree, workers=2)
    assert code == 0
    assert "7 listed = 6 indexed + 1 rejected" in said
    assert table(tmp_path / "rejected.csv")[0]["reason"] == "took longer than 0.5 s"


def test_a_long_file_that_goes_on_is_no_file_that_hangs(run, tree, tmp_path, monkeypatch):
    monkeypatch.setattr(walking, "LIMIT", 0.6)
    monkeypatch.setattr(walking, "_POLL", 0.1)
    (tree / "cine.many").write_bytes(bytes(range(10)))
    run(tree, "--pause", 0.15)
    assert len(manifest.read(tmp_path / "corpus.csv")) == 16


@pytest.mark.parametrize("out", ["corpus.csv", "corpus.parquet"])
def test_the_manifest_does_not_depend_on_the_number_of_workers(run, tree, tmp_path, out):
    pictures(tree, 40, seed=1)
    noise(tree / "a kill.png", 9)
    (tree / "cine.many").write_bytes(bytes(range(10)))
    run(tree, out=f"one/{out}")
    run(tree, out=f"three/{out}", workers=3)
    assert (tmp_path / "one" / out).read_bytes() == (tmp_path / "three" / out).read_bytes()
    assert (tmp_path / "one/rejected.csv").read_bytes() == (tmp_path / "three/rejected.csv").read_bytes()


def test_a_frame_that_cannot_be_read_costs_that_frame(run, tree, tmp_path):
    (tree / "cine.many").write_bytes(bytes([10, 250, 30]))
    (tree / "nothing.many").write_bytes(b"")
    _, said, _ = run(tree)
    assert "files     8 listed = 7 indexed + 1 rejected" in said
    assert "pictures  8 in them" in said
    assert "frames    2 rejected, of files that are indexed" in said
    rows = [row for row in manifest.read(tmp_path / "corpus.csv") if row["path"].endswith("cine.many")]
    assert [row["frame"] for row in rows] == [0, 2]
    assert [(row["frame"], row["reason"]) for row in table(tmp_path / "rejected.csv")] == [
        ("1", "frame too bright"),
        ("9", "empty"),
        ("", "holds no picture"),
    ]


def start(plugin, tree, out, *words):
    command = [sys.executable, "-m", "ussl.cli", "data", "index", "odd", tree, "-o", out, "--plugin", plugin, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    known = {"env": environment, "cwd": out.parent, "start_new_session": True, "text": True}
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **known)


def wait_for(log, count, process):
    while sum(reads(log).values()) < count:
        if process.poll() is not None:
            pytest.fail(process.communicate()[1])
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_to_the_same_manifest(run, plugin, tree, tmp_path, number):
    pictures(tree, 20, seed=1)
    noise(tree / "0 3 kill.png", 9)
    run(tree, "--log", tmp_path / "other.txt", "--pause", 0.02, out="whole/corpus.csv")
    log, out = tmp_path / "log.txt", tmp_path / "corpus.csv"
    process = start(plugin, tree, out, "--log", log, "--pause", "0.02", "--workers", "2")
    wait_for(log, 10, process)
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=30)
    assert not out.exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert error == "interrupted; what was read is kept, and the same command goes on from there\n"
    before = reads(log)
    code, said, _ = run(tree, "--log", log, "--pause", 0.02, workers=2)
    assert code == 0
    read = sum(count for name, count in (reads(log) - before).items() if "kill" not in name)
    unchanged = int(said.split("unchanged ")[1].split()[0])
    assert unchanged > 0
    assert unchanged + read == 26
    assert out.read_bytes().replace(b"../", b"") == (tmp_path / "whole/corpus.csv").read_bytes().replace(
        str(tree).encode(), tree.name.encode()
    )


def test_workers_do_not_outlive_a_killed_run(plugin, tree, tmp_path):
    log = tmp_path / "log.txt"
    process = start(plugin, tree, tmp_path / "corpus.csv", "--log", log, "--pause", "0.3", "--workers", "2")
    wait_for(log, 2, process)
    process.kill()
    process.communicate(timeout=30)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a worker is still there")


def interrupted(run, tree, tmp_path, monkeypatch, after, *words):
    """A run that Ctrl-C ends after some files."""
    left = iter([False] * after + [True])
    add = Journal.add

    def add_some(self, item, measured):
        if next(left):
            raise KeyboardInterrupt
        add(self, item, measured)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add_some)
        assert run(tree, *words)[0] == 130
    assert (tmp_path / ".corpus.csv.journal").exists()


def test_a_torn_journal_loses_its_last_record_only(run, tree, tmp_path, monkeypatch):
    log = tmp_path / "log.txt"
    interrupted(run, tree, tmp_path, monkeypatch, 4, "--log", log)
    journal = tmp_path / ".corpus.csv.journal"
    journal.write_bytes(journal.read_bytes()[:-30])
    log.unlink()
    _, said, _ = run(tree, "--log", log)
    assert "unchanged 3 files" in said
    assert sorted(reads(log)) == ["0 3.png", "0 4.png", "0 5.png"]
    assert names(manifest.read(tmp_path / "corpus.csv")) == [f"0 {i}.png" for i in range(6)]
    assert not journal.exists()


def test_a_garbled_record_of_a_journal_is_read_again(run, tree, tmp_path, monkeypatch):
    interrupted(run, tree, tmp_path, monkeypatch, 4)
    journal = tmp_path / ".corpus.csv.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"width":48', b'"width":49')
    journal.write_bytes(b"".join(lines))
    _, said, _ = run(tree)
    assert "unchanged 3 files" in said
    assert {row["width"] for row in manifest.read(tmp_path / "corpus.csv")} == {48}


def test_what_changed_between_the_runs_is_read_again(run, tree, tmp_path, monkeypatch):
    log = tmp_path / "log.txt"
    interrupted(run, tree, tmp_path, monkeypatch, 5, "--log", log)
    noise(tree / "0 1.png", 77)
    os.utime(tree / "0 1.png", ns=(1, 1))
    (tree / "0 2.png").unlink()
    noise(tree / "0 21.png", 78)
    log.unlink()
    code, _, _ = run(tree, "--log", log)
    assert code == 0
    assert sorted(reads(log)) == ["0 1.png", "0 21.png", "0 5.png"]
    run(tree, out="fresh/corpus.csv")
    digests = [[row["digest"] for row in manifest.read(tmp_path / out)] for out in ("corpus.csv", "fresh/corpus.csv")]
    assert digests[0] == digests[1]


def test_a_journal_of_other_options_is_not_used(run, tree, tmp_path, monkeypatch):
    interrupted(run, tree, tmp_path, monkeypatch, 4)
    _, said, noted = run(tree, "--organ", "heart")
    assert "unchanged" not in said
    assert "of another source, option, root or program" in noted
    assert {row["organ"] for row in manifest.read(tmp_path / "corpus.csv")} == {"heart"}


def test_two_runs_do_not_write_one_manifest(run, tree, tmp_path, capsys):
    def hold(ready, done):
        journal = Journal(tmp_path / "corpus.csv", {})
        ready.set()
        done.wait(30)
        journal.close()

    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(ready, done))
    process.start()
    ready.wait(30)
    code, _, error = run(tree)
    done.set()
    process.join()
    assert code == 2
    assert "another `ussl data index` is writing it" in error


@pytest.mark.parametrize("out", ["corpus.csv", "corpus.parquet"])
def test_adding_keeps_other_rows_and_reads_no_unchanged_file(run, tree, tmp_path, out):
    more, log = pictures(tmp_path / "more", 3, seed=2), tmp_path / "log.txt"
    (more / "damaged.png").write_bytes(b"nothing")
    run(tree, "--log", log, out=out)
    code, said, _ = run(more, "--add", "--log", log, out=out)
    assert code == 0
    assert "kept      6 pictures of other sources or roots" in said
    assert "9 pictures" in said.splitlines()[-1]
    log.unlink()
    whole = (tmp_path / out).read_bytes()
    noise(tree / "0 9.png", 90)
    _, said, _ = run(tree, "--add", "--log", log, out=out)
    assert list(reads(log)) == ["0 9.png"]
    assert "unchanged 6 files, which were read before" in said
    assert names(table(tmp_path / "rejected.csv")) == ["damaged.png"]
    (tree / "0 9.png").unlink()
    run(tree, "--add", out=out)
    assert (tmp_path / out).read_bytes() == whole


def test_adding_again_takes_what_the_source_says_now(run, tree, tmp_path):
    log = tmp_path / "log.txt"
    run(tree)
    (tree / "0 0.png").unlink()
    _, said, _ = run(tree, "--add", "--organ", "heart", "--log", log)
    assert [row["organ"] for row in manifest.read(tmp_path / "corpus.csv")] == ["heart"] * 5
    assert len(reads(log)) == 5  # a reader may read otherwise what its row says otherwise
    assert "5 listed = 5 indexed" in said


def test_adding_keeps_another_source_of_the_same_folder(run, tree, tmp_path):
    run(tree)
    pictures(tree / "new", 2, seed=3)
    (tree / "0 0.png").rename(tree / "0 0.txt")
    run(tree / "new", "--add", source="other")
    rows = manifest.read(tmp_path / "corpus.csv")
    assert Counter(row["source"] for row in rows) == {"odd": 6, "other": 2}


def test_copies_are_flagged_wherever_they_are_and_stay(run, tree, tmp_path):
    more = pictures(tmp_path / "more", 2, seed=2)
    (more / "copy.png").write_bytes((tree / "0 4.png").read_bytes())
    (more / "copy of a copy.png").write_bytes((tree / "0 4.png").read_bytes())
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(more / "tiny.png")
    (more / "tiny again.png").write_bytes((more / "tiny.png").read_bytes())
    run(tree)
    _, said, _ = run(more, "--add")
    flags = {Path(row["path"]).name: row["flag"] for row in manifest.read(tmp_path / "corpus.csv")}
    assert {name: flag for name, flag in flags.items() if flag} == {
        "copy.png": "duplicate",
        "copy of a copy.png": "duplicate",
        "tiny again.png": "blank;tiny",
        "tiny.png": "blank;tiny;duplicate",
    }
    assert "flags     duplicate 3, blank 2, tiny 2" in said
    (tree / "0 4.png").unlink()
    run(tree, "--add")
    flags = {Path(row["path"]).name: row["flag"] for row in manifest.read(tmp_path / "corpus.csv")}
    assert flags["copy of a copy.png"] is None
    assert flags["copy.png"] == "duplicate"


def test_roots_that_overlap_give_each_picture_once(run, tree, tmp_path):
    pictures(tree / "inner", 2, seed=2)
    code, said, _ = run(tree, tree / "inner")
    assert code == 0
    assert "files     8 listed = 8 indexed + 0 rejected" in said
    assert "twice     2 listed again, under two roots or names: each taken once" in said
    assert len(manifest.read(tmp_path / "corpus.csv")) == 8


def test_a_manifest_that_is_there_is_not_replaced_unasked(run, tree, tmp_path):
    run(tree)
    before = (tmp_path / "corpus.csv").read_bytes()
    code, _, error = run(tree)
    assert (code, error.count("\n")) == (2, 1)
    assert "write --add to keep its other rows, or --overwrite" in error
    assert (tmp_path / "corpus.csv").read_bytes() == before
    noise(tree / "0 7.png", 7)
    assert run(tree, "--overwrite")[0] == 0
    assert len(manifest.read(tmp_path / "corpus.csv")) == 7


def test_a_root_that_goes_away_ends_the_run_and_blames_no_file(run, tree, tmp_path):
    noise(tree / "0 3 gone.png", 9)
    code, _, error = run(tree)
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith(f"error: {tree}: is no longer there; what was read is kept")
    Path(f"{tree} elsewhere").rename(tree)
    (tree / "0 3 gone.png").rename(tree / "0 3.png")
    _, said, _ = run(tree)
    assert "6 listed = 6 indexed + 0 rejected" in said
    assert "unchanged" in said


def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(run, tree, tmp_path):
    pictures(tree, 20, seed=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        code, _, error = run(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, error.count("\n")) == (1, 1)
    assert error == (
        f"error: {tmp_path / '.corpus.csv.journal'}: file too large; "
        "what was read is kept, and the same command goes on from there\n"
    )
    _, said, _ = run(tree)
    assert "26 listed = 26 indexed + 0 rejected" in said
    assert int(said.split("unchanged ")[1].split()[0]) > 3


def test_a_manifest_without_rows_is_not_written(run, tmp_path):
    folder = pictures(tmp_path / "bad", 0)
    (folder / "a.png").write_bytes(b"nothing")
    code, _, error = run(folder)
    assert (code, error.count("\n")) == (2, 1)
    assert "none of the 1 files can be used (rejected.csv says why), first" in error
    assert not (tmp_path / "corpus.csv").exists()
    assert names(table(tmp_path / "rejected.csv")) == ["a.png"]


def test_a_name_that_is_not_text_is_rejected(run, tree, tmp_path):
    os.rename(tree / "0 0.png", os.fsencode(tree) + b"/0 \xe4.png")
    _, said, _ = run(tree)
    assert "6 listed = 5 indexed + 1 rejected" in said
    assert table(tmp_path / "rejected.csv")[0]["reason"] == "its path is not in UTF-8; rename the file"


def test_notes_of_workers_are_heard_once_and_what_decoders_print_is_not(run, tree, tmp_path):
    for number in range(6):
        noise(tree / f"note {number}.png", number)
    done = run(tree, workers=2)
    assert done[2] == "note      a note from afar\n"
    written = (tmp_path / "corpus.csv").read_text() + (tmp_path / "rejected.csv").read_text()
    assert "secret" not in written + done[1]


def test_a_row_is_read_by_the_reader_it_names(run, tree, tmp_path):
    noise(tree / "fault.png", 5)
    run(tree, source="other")
    rows = manifest.read(tmp_path / "corpus.csv")
    assert {(row["source"], row["reader"]) for row in rows} == {("other", "odd")}
    assert len(rows) == 6


def test_a_source_of_its_own_pictures_needs_no_root(run, tmp_path):
    options = ("--images", 3, "--size", 32, "--cache", "false")
    code, said, _ = run(*options, source="phantom")
    assert code == 0
    assert "3 listed = 3 indexed" in said
    code, _, error = run(tmp_path, *options, source="phantom", out="again.csv")
    assert code == 2
    assert error == f"error: {tmp_path}: phantom makes its own pictures and takes no ROOT; leave it out\n"


@pytest.mark.parametrize(
    ("words", "out", "expected"),
    [
        ((), "corpus.csv", "where are the pictures? Write ussl data index odd ROOT"),
        (("TREE", "--pause", "long"), "corpus.csv", 'source (odd): pause: expected a float, not "long"'),
        (("TREE", "--pauze", "1"), "corpus.csv", 'source (odd): no option "pauze"; did you mean "pause"?'),
        (("TREE", "--organ"), "corpus.csv", "--organ: has no value"),
        (("TREE", "--path", "x"), "corpus.csv", "--path: not an option here"),
        (("TREE/none",), "corpus.csv", "none: no such file or folder"),
        ((" ",), "corpus.csv", "an empty path among the roots"),
        (("TREE/empty",), "corpus.csv", "empty: odd finds no pictures there; found tables 1"),
        (("TREE",), "corpus.txt", "write a manifest's name with .csv or .parquet"),
        (("TREE",), "rejected.csv", "write another name"),
        (("TREE", "--add", "--overwrite"), "corpus.csv", "write one of them"),
        (("TREE", "--workers", "0"), "corpus.csv", "workers is 0: write 1 or more"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(plugin, tree, tmp_path, capsys, words, out, expected):
    (tree / "empty").mkdir()
    (tree / "empty" / "notes.txt").write_text("")
    words = [word.replace("TREE", str(tree)) for word in words]
    code = main(["data", "index", "odd", *words, "-o", str(tmp_path / "made" / out), "--plugin", str(plugin)])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert expected in error
    assert not list(tmp_path.glob("made/*")) + list(tmp_path.glob("made/.*"))


def test_roots_may_stand_before_and_after_options(plugin, tree, tmp_path, capsys):
    more, out = pictures(tmp_path / "more", 2, seed=2), tmp_path / "corpus.csv"
    words = ["-o", str(out), str(tree), "--organ", "heart", str(more), "--plugin", str(plugin)]
    assert main(["data", "index", "odd", *words]) == 0
    assert len(manifest.read(out)) == 8


@pytest.mark.parametrize("text", ["{organ}", "[a] b", "2024", "true"])
def test_an_option_that_is_text_is_taken_as_it_is_written(run, tree, tmp_path, text):
    assert run(tree, "--organ", text)[0] == 0
    assert {row["organ"] for row in manifest.read(tmp_path / "corpus.csv")} == {text}


def test_values_that_tables_cannot_hold_become_text():
    row = index.plain({"path": "a", "box": [1, 2], "n": np.int64(3), "none": float("nan"), "big": 2**70, "no": ""})
    assert row == {"path": "a", "box": "[1, 2]", "n": 3, "big": str(2**70)}
    assert json.loads(json.dumps(row)) == row


def test_manifests_of_one_folder_share_a_rejected_table_without_mixing(run, tree, tmp_path):
    (tree / "broken.png").write_bytes(b"no picture")
    run(tree)
    first = table(tmp_path / "rejected.csv")
    assert len(first) == 1
    other = tmp_path / "sound"
    other.mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(other / "a.png")
    assert main(["data", "index", "images", str(other), "-o", str(tmp_path / "other.csv"), "--workers", "1"]) == 0
    assert table(tmp_path / "rejected.csv") == first


def test_masks_that_cannot_be_used_are_flagged(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48), dtype=np.uint8))
    for folder in ("images", "masks"):
        (tmp_path / "t" / folder).mkdir(parents=True)
    for name in ("good", "small", "broken"):
        picture.save(tmp_path / "t" / "images" / f"{name}.png")
    Image.new("L", (48, 40), 255).save(tmp_path / "t" / "masks" / "good.png")
    Image.new("L", (20, 20), 255).save(tmp_path / "t" / "masks" / "small.png")
    (tmp_path / "t" / "masks" / "broken.png").write_bytes(b"no")
    out = tmp_path / "m.csv"
    assert main(["data", "index", "images", str(tmp_path / "t"), "-o", str(out), "--workers", "1"]) == 0
    flags = {Path(row["path"]).stem: str(row.get("flag")) for row in manifest.read(out)}
    assert {name: "mask_unusable" in flag for name, flag in flags.items()} == {
        "good": False,
        "small": True,
        "broken": True,
    }


def test_patients_met_in_two_roots_are_told(tmp_path, capsys):
    for i, root in enumerate(("a/images", "b/images")):
        (tmp_path / root).mkdir(parents=True)
        pixels = np.random.default_rng(i).integers(0, 255, (40, 48), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / root / "p1_0.png")
    roots = [str(tmp_path / root / "images") for root in ("a", "b")]
    args = ["data", "index", "images", *roots, "-o", str(tmp_path / "m.csv"), "--pattern", "{patient}_{view}.png"]
    assert main(args) == 0
    assert "1 patients or videos, such as p1, are in several roots" in capsys.readouterr().err
