"""Which pictures each step sees, and that they arrive: in order, whole, and however a run was cut up."""

import multiprocessing
import pickle
import subprocess
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ussl.data import loader as module
from ussl.data.loader import Loader, default_workers
from ussl.data.schedule import Schedule
from ussl.parts import Sampler, Source
from ussl_plugins.samplers.natural import Natural
from ussl_plugins.sources.images import Images


class Numbers(Source):
    """A third party's source: picture i is i everywhere, of a size that depends on i."""

    def rows(self):
        return iter(ROWS)

    def read(self, row):
        i = int(row["path"])
        if row.get("slow"):
            time.sleep(0.3)
        return np.full((4 + i % 3, 5 + i % 2), i, dtype=np.uint8)


class Broken(Source):
    """Fails as a row says."""

    def rows(self):
        return iter(())

    def read(self, row):
        if row["fault"] == "bug":
            return row["no such key"]
        return {"float": np.zeros((2, 2)), "empty": np.zeros((0, 2), dtype=np.uint8), "alpha": RGBA}[row["fault"]]


class Repeating(Sampler):
    """Visits row 1 three times."""

    def order(self, rows, seed, epoch):
        return np.array([1, 0, 1, 3, 1, 2, 0, 4][: len(rows)])


RGBA = np.zeros((2, 2, 4), dtype=np.uint8)
ROWS = [{"path": str(i), "reader": "numbers"} for i in range(11)]


def load(rows=ROWS, sampler=None, batch_size=4, micro_batch=2, **options):
    readers = {"numbers": Numbers(), "images": Images(), "broken": Broken()}
    options = {"seed": 3, "batch_size": batch_size, "micro_batch": micro_batch, **options}
    return Loader(rows, readers, sampler or Natural(), **options)


def started(batches):
    """The first of `batches`, and the worker processes that this started."""
    before = set(multiprocessing.active_children())
    first = next(batches)
    return first, list(set(multiprocessing.active_children()) - before)


def content(batches):
    """Everything a run would see of `batches`."""
    return [(step, b.pixels.tolist(), b.box.tolist(), b.index.tolist(), b.turn.tolist()) for step, b in batches]


def test_natural_visits_every_row_once_in_an_order_of_each_seed_and_epoch():
    orders = [
        Natural().order(range(100), seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (-1, 0), (2**32, 0)]
    ]
    for order in orders:
        assert order.dtype == np.int64
        assert sorted(order) == list(range(100))
    assert len({tuple(order) for order in orders}) == len(orders)


def test_the_order_of_natural_never_changes_between_versions():
    assert Natural().order(range(8), seed=3, epoch=2).tolist() == [0, 6, 5, 3, 2, 7, 4, 1]


def test_an_epoch_sees_every_row_at_most_once_and_drops_the_last_incomplete_batch():
    loader = load()
    assert loader.steps_per_epoch == 2
    seen = [int(i) for _, batch in loader.batches(0, 2) for i in batch.index]
    assert len(seen) == len(set(seen)) == 8
    assert [loader.epoch_of(step) for step in range(5)] == [0, 0, 1, 1, 2]
    assert [loader.rows_of(step)[0] for step in range(5)] == [0, 0, 1, 1, 2]
    epochs = [np.concatenate([loader.rows_of(step)[1] for step in pair]) for pair in [(0, 1), (2, 3)]]
    assert epochs[0].tolist() == seen
    assert epochs[1].tolist() != seen


def test_rows_of_a_step_do_not_depend_on_what_was_asked_before():
    forward, backward = load(), load()
    there = [forward.rows_of(step)[1].tolist() for step in range(8)]
    back = [backward.rows_of(step)[1].tolist() for step in reversed(range(8))]
    assert there == back[::-1]


def test_an_order_is_computed_once_though_workers_read_ahead_into_the_next_epoch():
    class Counted(Natural):
        calls = 0

        def order(self, rows, seed, epoch):
            self.calls += 1
            return super().order(rows, seed, epoch)

    sampler = Counted()
    schedule = Schedule(ROWS, sampler, 0, 4)
    for step in (0, 1, 2, 1, 3, 1, 2):
        schedule.rows_of(step)
    assert sampler.calls == 2


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (1, 1), (2, 2), (2, 1), (4, 1)])
def test_ranks_and_micro_batches_cut_the_global_batch_in_stretches(world, micro):
    for step in (0, 3):
        whole = load().rows_of(step)[1].tolist()
        loaders = [load(rank=rank, world=world, micro_batch=micro) for rank in range(world)]
        pieces = [batch.index.tolist() for loader in loaders for _, batch in loader.batches(step, step + 1)]
        assert [len(piece) for piece in pieces] == [micro] * (4 // micro)
        assert [i for piece in pieces for i in piece] == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_started_in_the_middle_of_an_epoch_sees_what_the_whole_run_saw(workers):
    whole = content(load().batches(0, 5))
    assert [step for step, *_ in whole] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert content(load(workers=workers).batches(1, 4)) == whole[2:8]
    assert content(load(workers=workers).batches(3, 3)) == []


def test_batches_arrive_in_order_though_a_worker_is_slow():
    _, index, _ = load().rows_of(0)
    rows = [{**row, "slow": i == index[0]} for i, row in enumerate(ROWS)]
    assert content(load(rows, workers=2).batches(0, 2)) == content(load().batches(0, 2))


def test_a_row_that_comes_again_in_an_epoch_has_another_turn():
    loader = load(ROWS[:8], Repeating(), batch_size=8, micro_batch=8)
    _, index, turn = loader.rows_of(0)
    assert index.tolist() == [1, 0, 1, 3, 1, 2, 0, 4]
    assert turn.tolist() == [0, 0, 1, 0, 2, 0, 1, 0]
    ((_, batch),) = loader.batches(0, 1)
    assert batch.turn.tolist() == turn.tolist()
    loader = load(ROWS[:8], Repeating(), batch_size=4, micro_batch=4)
    assert loader.rows_of(1)[2].tolist() == [2, 0, 1, 0]  # counted over the epoch, not the batch
    assert loader.rows_of(2)[2].tolist() == [0, 0, 1, 0]  # the next epoch counts anew


def test_a_sampler_that_leaves_rows_out_of_range_is_refused():
    class Wrong(Sampler):
        def order(self, rows, seed, epoch):
            return np.arange(len(rows)) + epoch

    loader = load(sampler=Wrong())
    loader.rows_of(0)
    with pytest.raises(ValueError, match="the sampler Wrong must return row numbers from 0 to 10"):
        loader.rows_of(2)


def save(path, *shape):
    picture = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    Image.fromarray(picture).save(path)
    return picture


def test_pictures_share_the_smallest_canvas_that_holds_them(tmp_path):
    grey, wide = save(tmp_path / "a.png", 6, 4), save(tmp_path / "b.png", 3, 9)
    rows = [{"path": str(tmp_path / name)} for name in ("a.png", "b.png")]
    batch = load(rows, batch_size=2).sample(2)
    order = batch.index.tolist()
    assert batch.pixels.shape == (2, 1, 6, 9)
    assert batch.pixels.dtype == torch.uint8
    for i, picture in zip(order, batch.pixels, strict=True):
        expected = np.zeros((6, 9), dtype=np.uint8)
        x = (grey, wide)[i]
        expected[: x.shape[0], : x.shape[1]] = x
        np.testing.assert_array_equal(picture[0], expected)
    assert batch.box.tolist() == [[[0, 0, 6, 4], [0, 0, 3, 9]][i] for i in order]
    assert (batch.box.dtype, batch.index.dtype, batch.turn.dtype) == (torch.int64,) * 3
    assert batch.scale.tolist() == [1, 1]
    assert batch.scale.dtype == torch.float32


def test_grey_joins_colour_as_three_equal_channels(tmp_path):
    grey, colour = save(tmp_path / "a.png", 4, 4), save(tmp_path / "b.png", 4, 4, 3)
    rows = [{"path": str(tmp_path / name)} for name in ("a.png", "b.png")]
    batch = load(rows, batch_size=2).sample(2)
    pixels = batch.pixels[batch.index.argsort()]
    np.testing.assert_array_equal(pixels[0], np.stack([grey] * 3))
    np.testing.assert_array_equal(pixels[1], colour.transpose(2, 0, 1))


def test_a_picture_larger_than_the_canvas_is_scaled_down(tmp_path):
    save(tmp_path / "a.png", 40, 80)
    batch = load([{"path": str(tmp_path / "a.png")}], batch_size=1, micro_batch=1, canvas=20).sample(1)
    assert batch.pixels.shape == (1, 1, 10, 20)
    assert batch.scale.tolist() == [0.25]


def test_labels_travel_as_codes():
    names = ["liver", None, "breast", "liver"]
    rows = [{**row, "organ": name, "patient": i} for i, (row, name) in enumerate(zip(ROWS, names, strict=False))]
    loader = load(rows)
    assert loader.codes == {"organ": ["breast", "liver"], "patient": ["0", "1", "2", "3"]}
    batch = loader.sample(4)
    assert batch.labels["organ"][batch.index.argsort()].tolist() == [1, -1, 0, 1]
    assert torch.equal(batch.labels["patient"], batch.index)
    assert load().codes == {}


def test_fewer_images_than_a_batch_say_what_to_write():
    with pytest.raises(ValueError) as caught:
        load(batch_size=16)
    assert str(caught.value) == "11 images, fewer than train.batch_size 16: write --train.batch_size 11"
    with pytest.raises(ValueError, match="0 images"):
        load([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batch": 3}, "train.micro_batch 3 does not divide 4, the batch of one device"),
        ({"world": 3}, "train.batch_size 4 does not divide over 3 devices"),
        ({"world": 2, "micro_batch": 4}, "train.micro_batch 4 does not divide 2"),
        ({"canvas": 0}, "canvas is 0"),
        ({"micro_batch": 0}, "micro_batch is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load(**options)


def test_a_reader_that_is_not_there_is_named_at_once():
    with pytest.raises(ValueError, match="rows ask for the reader 'dicom'; there are: broken, images, numbers"):
        load([*ROWS, {"path": "a.dcm", "reader": "dicom"}])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanished_or_broke_stops_with_one_line_that_names_it(tmp_path, workers):
    for name in ("a.png", "b.png"):
        save(tmp_path / name, 4, 4)
    rows = [{"path": str(tmp_path / name)} for name in ("a.png", "b.png")]
    loader = load(rows, batch_size=2, micro_batch=1, workers=workers)
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError) as caught:
        list(loader.batches(0, 4))
    assert str(caught.value) == (
        f"{tmp_path}/b.png: no such file or directory. "
        "Repair or replace the file and go on with --resume, or take it out of the data"
    )
    with pytest.raises(ValueError, match=r"b\.png: no such file"):
        loader.sample(2)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("float", r"^x: reader broken gave float64 \(2, 2\), not uint8 \(H, W\) or \(H, W, 3\)"),
        ("alpha", r"^x: reader broken gave uint8 \(2, 2, 4\)"),
        ("empty", r"^x: reader broken gave uint8 \(0, 2\)"),
    ],
)
def test_a_source_that_returns_no_picture_is_named(fault, message):
    with pytest.raises(ValueError, match=message):
        load([{"path": "x", "reader": "broken", "fault": fault}], batch_size=1, micro_batch=1).sample(1)


def test_a_bug_in_a_source_keeps_its_traceback():
    rows = [{"path": "x", "reader": "broken", "fault": "bug"}]
    with pytest.raises(KeyError, match="in read"):
        list(load(rows, batch_size=1, micro_batch=1, workers=1).batches(0, 1))


def test_signals_that_stop_a_run_do_not_end_its_workers():
    """A scheduler signals every process of a job; the main one still needs its batches to finish the step."""
    batches = load(workers=1).batches(0, 12)
    first, (worker,) = started(batches)
    for name in ("-TERM", "-INT", "-TERM"):
        subprocess.run(["kill", name, str(worker.pid)], check=True)
    time.sleep(0.2)
    assert worker.is_alive()
    assert content([first, *batches]) == content(load().batches(0, 12))


def test_a_worker_ends_when_its_parent_says_so():
    batches = load(workers=1).batches(0, 12)
    _, (worker,) = started(batches)
    worker.terminate()
    worker.join(timeout=5)
    assert worker.exitcode == 0
    batches.close()


def test_workers_end_with_the_batches():
    batches = load(workers=2).batches(0, 100)
    _, workers = started(batches)
    assert len(workers) == 2
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


def test_loading_draws_nothing_from_the_global_random_state():
    before = torch.random.get_rng_state()
    list(load().batches(0, 2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_a_worker_needs_can_be_pickled():
    """Where processes are spawned instead of forked, everything travels by pickle."""
    loader = load()
    copy = pickle.loads(pickle.dumps(loader._reader))
    request = next(loader.schedule.micro_batches(0, 0, 1, 2))
    assert torch.equal(copy[request][1].pixels, loader._reader[request][1].pixels)


@pytest.mark.parametrize(
    ("cores", "devices", "expected"), [(1, 1, 0), (2, 1, 1), (2, 2, 1), (16, 1, 8), (16, 4, 3), (64, 8, 7)]
)
def test_workers_leave_a_core_to_each_device(monkeypatch, cores, devices, expected):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    assert default_workers(devices) == expected


def test_a_sample_is_the_first_pictures_of_the_run():
    loader = load()
    assert loader.sample(3).index.tolist() == loader.rows_of(0)[1][:3].tolist()


def test_a_resized_loader_sees_the_same_pictures_in_other_micro_batches():
    loader = load(micro_batch=1)
    other = loader.resized(4)
    assert [len(batch.index) for _, batch in other.batches(0, 2)] == [4, 4]
    assert [len(batch.index) for _, batch in loader.batches(0, 1)] == [1] * 4
    assert content(other.batches(0, 2)) == content(load(micro_batch=4).batches(0, 2))
    assert other._reader is loader._reader
    with pytest.raises(ValueError, match=r"train\.micro_batch 3 does not divide 4"):
        loader.resized(3)


@pytest.mark.parametrize("workers", [0, 1])
def test_around_a_picture_the_canvas_is_black(workers):
    """Its memory is not cleared before: pictures and surround are written."""
    for _ in range(3):
        for _, batch in load(workers=workers).batches(0, 2):
            for picture, box, i in zip(batch.pixels, batch.box.tolist(), batch.index.tolist(), strict=True):
                assert int(picture.sum()) == i * box[2] * box[3]
