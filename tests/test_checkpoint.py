"""Checkpoints survive a kill, a full disk and a flipped byte."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ussl import checkpoint
from ussl.errors import RunFailed


def state(value):
    return {"step": value, "weights": torch.full((64,), float(value))}


def test_the_last_k_checkpoints_are_kept(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, state(step), keep=2)
    assert [checkpoint.step_of(p) for p in checkpoint.saved(tmp_path)] == [5, 4]


def test_a_flipped_byte_is_noticed_and_the_checkpoint_before_is_used(tmp_path):
    checkpoint.save(tmp_path, 1, state(1), keep=3)
    newest = checkpoint.save(tmp_path, 2, state(2), keep=3)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    loaded, lines = checkpoint.load(tmp_path)
    assert loaded["step"] == 1
    assert len(lines) == 1
    assert newest.name in lines[0]
    assert newest.with_suffix(".damaged").exists()  # set aside, not lost


def test_a_truncated_checkpoint_is_not_used(tmp_path):
    only = checkpoint.save(tmp_path, 1, state(1), keep=3)
    only.write_bytes(only.read_bytes()[:100])
    assert checkpoint.load(tmp_path)[0] is None


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1), keep=1)

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "sync", full)
    with pytest.raises(RunFailed, match=r"step 2 could not be written .*No space left.*step 1 is intact"):
        checkpoint.save(tmp_path, 2, state(2), keep=1)
    assert checkpoint.load(tmp_path)[0]["step"] == 1
    assert not list(tmp_path.glob(".writing*"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_an_error_while_the_tensors_are_written_is_one_line(tmp_path, monkeypatch):
    real = torch.save

    def save(content, file):
        with open("/dev/full", "wb", buffering=0) as full:
            real(content, full)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RunFailed) as refusal:
        checkpoint.save(tmp_path, 1, state(1), keep=1)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


SAVING = """
import sys, torch
from pathlib import Path
from ussl import checkpoint
step = 0
while True:
    step += 1
    checkpoint.save(Path(sys.argv[1]), step, {"step": step, "weights": torch.full((500_000,), float(step))}, keep=2)
    print(step, flush=True)
"""


def test_a_kill_during_a_save_loses_nothing(tmp_path):
    for round_ in range(4):
        process = subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        reached = [int(process.stdout.readline()) for _ in range(3)][-1]
        time.sleep(0.013 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        checkpoint.clear_unfinished(tmp_path)
        loaded, lines = checkpoint.load(tmp_path)
        assert lines == []
        assert loaded["step"] >= reached
        assert bool((loaded["weights"] == loaded["step"]).all())
        for path in tmp_path.iterdir():
            path.unlink()
