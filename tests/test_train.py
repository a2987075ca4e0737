"""The engine from the command line: what a run leaves, refuses, and survives."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ussl
from ussl.cli import main
from ussl_plugins.encoders.vit import VisionTransformer

RECIPE = """
# a network small enough for tests
seed: 3
augmentation: {name: crop, size: 32}
encoder: {name: vit, width: 32, depth: 2, heads: 2, patch: 8, image_size: 32}
masking: {name: random, ratio: 0.75}
target: pixels
objective: {name: masked_prediction, width: 32, depth: 1, heads: 2}
optimizer: {name: adamw, base_learning_rate: 0.02}
loader: {workers: 0}
train: {epochs: 2, batch_size: 8, micro_batch: 4, threads: 1, save_every: 2}
"""

# parts that misbehave on purpose, at a step given by the environment
PLUGIN = '''
"""Objectives that misbehave."""
import os, signal
import torch
from ussl.hookspecs import hookimpl
from ussl_plugins.objectives.masked_prediction import MaskedPrediction


class Misbehaving(MaskedPrediction):
    """Masked prediction that stops, dies or diverges at step USSL_AT."""

    additive = True

    def before_step(self, at):
        super().before_step(at)
        self.now = at.step

    def after_step(self, at):
        super().after_step(at)
        self.updated = getattr(self, "updated", 0) + 1

    def forward(self, outputs, targets, masks):
        losses = super().forward(outputs, targets, masks)
        if getattr(self, "now", -1) in map(int, os.environ.get("USSL_AT", "").split(",")):
            what = os.environ["USSL_WHAT"]
            if what in ("SIGTERM", "SIGINT", "SIGKILL"):
                os.kill(os.getpid(), getattr(signal, what))
            else:
                losses["loss"] = losses["loss"] * float(what)
        return losses


class Contrastive(MaskedPrediction):
    """An objective whose loss is not a mean over images."""

    additive = False


@hookimpl
def ussl_objectives():
    return {"misbehaving": Misbehaving, "contrastive": Contrastive}
'''


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(24):
        speckle = generator.rayleigh(60, (40 + i, 56)).clip(0, 255).astype(np.uint8)
        Image.fromarray(speckle).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def command(tmp_path, pictures):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "misbehaving.py").write_text(PLUGIN)

    def compose(out, *more):
        return ["fit", "--recipe", str(tmp_path / "tiny.yaml"), "--data", str(pictures), "--out", str(out), *more]

    return compose


def misbehaving(monkeypatch, tmp_path, what, at):
    monkeypatch.setenv("USSL_WHAT", what)
    monkeypatch.setenv("USSL_AT", at)
    return with_objective(tmp_path, "misbehaving")


def with_objective(tmp_path, name):
    overlay = tmp_path / f"{name}.yaml"
    overlay.write_text(f"objective: {{name: {name}, width: 32, depth: 1, heads: 2}}")
    return ["--plugin", str(tmp_path / "misbehaving.py"), "--recipe", str(overlay)]


def metrics(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def column(out, name):
    return [row[name] for row in metrics(out)]


def files(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def weights(out):
    return (out / "encoder" / "model.safetensors").read_bytes()


def separately(arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "ussl.cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_run_leaves_what_the_contract_names(command, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(out)) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"out       {out}")
    assert "8 images = 4 x 2 accumulated x 1 device" in said
    assert "48 seen in 6 steps = 2 times each of 24" in said
    assert "waiting for data" in said
    for name in ("recipe.yaml", "metrics.csv", "environment.json", "encoder/config.json", "encoder/model.safetensors"):
        assert (out / name).is_file(), name
    assert [p.name.split("-")[1] for p in sorted((out / "checkpoints").iterdir())] == [
        "00000002",
        "00000004",
        "00000006",
    ]
    assert any((out / "tensorboard").iterdir())
    rows = metrics(out)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(float(row["loss"]) > 0 and 0 <= float(row["data_wait"]) <= 1 for row in rows)
    environment = json.loads((out / "environment.json").read_text())
    assert environment["data"]["images"] == 24
    assert environment["seed"] == 3


def test_timm_and_ussl_load_the_same_tokens_from_a_run(command, tmp_path):
    import timm

    out = tmp_path / "run"
    assert main(command(out, "--train.steps", "2")) == 0
    images = torch.rand(2, 1, 32, 32)
    loaded = ussl.load(out)
    network = timm.create_model(f"local-dir:{out / 'encoder'}", pretrained=True).eval()
    mean, std = torch.tensor(loaded.mean), torch.tensor(loaded.std)
    normalised = (images.expand(-1, 3, -1, -1) - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = network.forward_features(normalised)
    torch.testing.assert_close(loaded.tokens(images), expected[:, 1:])
    torch.testing.assert_close(loaded.embed(images), expected[:, 0])


def test_the_resolved_recipe_reruns_to_the_same_bytes(command, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(command(first)) == 0
    assert main(["fit", "--recipe", str(first / "recipe.yaml"), "--out", str(second)]) == 0
    assert weights(first) == weights(second)
    assert column(first, "loss") == column(second, "loss")
    assert (first / "recipe.yaml").read_text() == (second / "recipe.yaml").read_text()


@pytest.mark.parametrize("at", ["2", "3"])
def test_an_interrupted_run_resumes_to_the_same_weights(command, tmp_path, monkeypatch, capsys, at):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(command(whole, *misbehaving(monkeypatch, tmp_path, "1", "99"))) == 0
    assert main(command(parts, *misbehaving(monkeypatch, tmp_path, "SIGTERM", at))) == 130
    assert "--resume continues" in capsys.readouterr().out
    assert len(metrics(parts)) == int(at)
    assert main(command(parts, "--resume", *misbehaving(monkeypatch, tmp_path, "1", "99"))) == 0
    assert weights(parts) == weights(whole)
    assert column(parts, "loss") == column(whole, "loss")
    assert column(parts, "step") == column(whole, "step")


def test_a_killed_run_resumes_to_the_same_weights_with_workers(command, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--train.save_every", "2", "--ema", "0.99", "--loader.workers", "1"]
    killing = misbehaving(monkeypatch, tmp_path, "SIGKILL", "3")
    assert separately(command(parts, *options, *killing)).returncode == -signal.SIGKILL
    going_on = misbehaving(monkeypatch, tmp_path, "1", "99")
    done = separately(command(parts, *options, *going_on, "--resume"))
    assert done.returncode == 0, done.stderr
    assert "after step 2 of 6" in done.stdout
    assert main(command(whole, *options, *going_on)) == 0
    assert weights(parts) == weights(whole)
    assert column(parts, "loss") == column(whole, "loss")


def test_a_finished_run_resumes_to_nothing_and_changes_nothing(command, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(out)) == 0
    before = files(out)
    assert main(command(out, "--resume")) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert files(out) == before


def test_resuming_without_a_usable_checkpoint_starts_over_and_says_so(command, tmp_path, capsys):
    out, other = tmp_path / "run", tmp_path / "other"
    assert main(command(out, "--resume")) == 0
    assert "no usable checkpoint" in capsys.readouterr().out
    assert main(command(other)) == 0
    assert weights(out) == weights(other)


def test_resuming_from_the_checkpoint_before_a_damaged_one_gives_the_same_weights(command, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(out)) == 0
    expected = weights(out)
    newest = max((out / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-500])
    (out / "encoder" / "model.safetensors").unlink()
    assert main(command(out, "--resume")) == 0
    said = capsys.readouterr().out
    assert "is damaged" in said
    assert "after step 4 of 6" in said
    assert weights(out) == expected


def test_resuming_another_recipe_is_refused_with_the_difference(command, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(out, "--train.steps", "2")) == 0
    assert main(command(out, "--resume", "--train.steps", "2", "--optimizer.weight_decay", "0.3")) == 2
    assert "optimizer.weight_decay was 0.05, now 0.3" in capsys.readouterr().err


def test_a_folder_that_is_not_empty_is_refused_unless_overwritten(command, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert main(command(out)) == 2
    assert "not empty: --resume" in capsys.readouterr().err
    assert main(command(out, "--overwrite", "--train.steps", "1")) == 0
    assert (out / "thesis.txt").read_text() == "mine"  # only a run's own files are replaced


def test_a_step_that_is_not_finite_changes_nothing_and_names_its_images(command, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    options = misbehaving(monkeypatch, tmp_path, "nan", "1")
    assert main(command(out, *options, "--train.save_every", "1", "--train.keep", "9", "--ema", "0.9")) == 0
    said = capsys.readouterr().out
    assert "step 2 refused: loss nan" in said
    assert ".png and 4 more" in said
    with (out / "refused.csv").open() as file:
        refused = list(csv.reader(file))
    assert len(refused) == 8
    assert {step for step, _ in refused} == {"2"}
    states = [torch.load(p, weights_only=True) for p in sorted((out / "checkpoints").glob("step*"))]
    first, second, third = states[:3]
    for kind in ("method", "ema"):
        assert all(torch.equal(first[kind][k], second[kind][k]) for k in first[kind])
        assert not all(torch.equal(second[kind][k], third[kind][k]) for k in first[kind])
    assert first["optimizer"]["state"][0]["step"] == second["optimizer"]["state"][0]["step"]


def test_too_many_steps_that_are_not_finite_end_the_run(command, tmp_path, monkeypatch, capsys):
    options = misbehaving(monkeypatch, tmp_path, "inf", "1,2,3,4,5")
    assert main(command(tmp_path / "run", *options, "--train.max_refused", "3")) == 1
    error = capsys.readouterr().err.strip()
    assert "3 steps in a row were not finite, the last one step 4" in error
    assert "\n" not in error.split("error: ")[-1]


def test_accumulation_changes_nothing_for_a_mean_over_images(command, tmp_path):
    one, several = tmp_path / "one", tmp_path / "several"
    assert main(command(one, "--train.micro_batch", "8")) == 0
    assert main(command(several, "--train.micro_batch", "2")) == 0
    np.testing.assert_allclose(
        [float(x) for x in column(one, "loss")], [float(x) for x in column(several, "loss")], rtol=1e-5
    )


def test_accumulation_that_would_change_the_method_is_refused(command, tmp_path, capsys):
    options = with_objective(tmp_path, "contrastive")
    assert main(command(tmp_path / "a", *options)) == 2
    assert "so many batches of 4, which is another method" in capsys.readouterr().err
    assert main(command(tmp_path / "b", *options, "--train.accumulate", "anyway", "--train.steps", "1")) == 0


def test_two_processes_train_as_one(command, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    done = separately(command(two, "--train.devices", "2", "--train.accelerator", "cpu"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("out       ") == 1
    assert main(command(one)) == 0
    np.testing.assert_allclose(
        [float(x) for x in column(one, "loss")], [float(x) for x in column(two, "loss")], rtol=1e-5
    )
    np.testing.assert_allclose(
        [float(x) for x in column(one, "gradient_norm")], [float(x) for x in column(two, "gradient_norm")], rtol=1e-4
    )
    a, b = (load_file(out / "encoder" / "model.safetensors") for out in (one, two))
    assert a.keys() == b.keys()
    for name in a:  # AdamW divides by the gradient's size: where that is near 0, rounding shows
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=5e-5)


def test_workers_change_nothing(command, tmp_path):
    none, some = tmp_path / "none", tmp_path / "some"
    assert main(command(none)) == 0
    assert main(command(some, "--loader.workers", "2")) == 0
    assert weights(none) == weights(some)


def test_recomputing_activations_changes_nothing(command, tmp_path):
    plain, recomputed = tmp_path / "plain", tmp_path / "recomputed"
    assert main(command(plain, "--train.steps", "2")) == 0
    assert main(command(recomputed, "--train.steps", "2", "--train.activation_checkpointing", "true")) == 0
    assert weights(plain) == weights(recomputed)


def test_the_average_of_the_weights_follows_its_formula(command, tmp_path):
    out = tmp_path / "run"
    options = ["--train.save_every", "1", "--train.keep", "9", "--train.steps", "4", "--ema", "0.3"]
    assert main(command(out, *options)) == 0
    states = [torch.load(p, weights_only=True) for p in sorted((out / "checkpoints").glob("step*"))]
    name = next(k for k in states[0]["ema"] if k.endswith("blocks.0.mlp.fc1.weight"))
    for step in (1, 2, 3):
        decay = min(0.3, (1 + step) / (10 + step))
        student = states[step]["method"]["student." + name]
        expected = decay * states[step - 1]["ema"][name] + (1 - decay) * student
        torch.testing.assert_close(states[step]["ema"][name], expected)
    exported = load_file(out / "encoder" / "model.safetensors")
    torch.testing.assert_close(exported["blocks.0.mlp.fc1.weight"], states[-1]["ema"][name])


def test_steps_replace_epochs_and_the_warm_up_keeps_its_share(command, tmp_path):
    out = tmp_path / "run"
    assert main(command(out, "--train.steps", "20", "--optimizer.warmup", "0.5", "--train.batch_size", "8")) == 0
    rates = [float(x) for x in column(out, "learning_rate")]
    peak = 0.02 * 8 / 256
    assert rates[0] == 0
    assert rates[5] == pytest.approx(peak / 2)
    assert max(rates) == rates[10] == pytest.approx(peak)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--train.batch_size", "64"], "24 images, fewer than train.batch_size 64"),
        (["--train.epochs", "0.1"], "less than one step"),
        (["--export", "ema"], "ema needs a decay"),
        (["--export", "teacher"], "EMA teacher"),
        (["--train.accelerator", "cuda"], "no CUDA device"),
        (["--resume", "--overwrite"], "--resume"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, tmp_path, capsys, more, said):
    if "cuda" in more and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert main(command(tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert said in error[-1]
    assert sum(line.startswith("error:") for line in error) == 1


def test_data_is_asked_for_in_one_line(command, tmp_path, capsys, monkeypatch, pictures):
    monkeypatch.delenv("USSL_DATA", raising=False)
    recipe = ["fit", "--recipe", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run"), "--train.steps", "1"]
    assert main(recipe) == 2
    assert "--data" in capsys.readouterr().err
    monkeypatch.setenv("USSL_DATA", str(pictures))
    assert main(recipe) == 0


def test_no_space_left_ends_the_run_in_one_line(command, tmp_path, capsys, monkeypatch):
    import errno

    from ussl import checkpoint

    real, calls = checkpoint.sync, []

    def full(file):
        calls.append(1)
        if Path(file.name).name.startswith(".writing") and len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    monkeypatch.setattr(checkpoint, "sync", full)
    assert main(command(tmp_path / "run")) == 1
    error = capsys.readouterr().err.strip()
    assert "No space left on device" in error
    assert "is intact" in error


def test_a_mistake_leaves_the_earlier_run_as_it_was(command, tmp_path):
    out = tmp_path / "run"
    assert main(command(out, "--train.steps", "1")) == 0
    before = files(out)
    for mistake in (["--train.batch_size", "100"], ["--masking.ratio", "3"], ["--data", str(tmp_path / "nowhere")]):
        assert main(command(out, "--overwrite", *mistake)) == 2
        assert files(out) == before
    new = tmp_path / "new"
    assert main(command(new, "--train.batch_size", "100")) == 2
    assert not new.exists()


def test_overwrite_does_not_touch_a_folder_that_is_no_run(command, tmp_path, capsys):
    out = tmp_path / "project"
    (out / "encoder").mkdir(parents=True)
    (out / "encoder" / "mine.txt").write_text("mine")
    assert main(command(out, "--overwrite")) == 2
    assert "not a run of ussl" in capsys.readouterr().err
    assert (out / "encoder" / "mine.txt").exists()


def test_overwrite_removes_only_checkpoints_of_ours(command, tmp_path):
    out = tmp_path / "run"
    assert main(command(out)) == 0
    (out / "checkpoints" / "best-of-mine.pt").write_bytes(b"mine")
    assert main(command(out, "--overwrite", "--train.steps", "1")) == 0
    assert sorted(p.name[:13] for p in (out / "checkpoints").iterdir()) == ["best-of-mine.", "step-00000001"]


def test_a_scheduler_that_signals_twice_still_gets_its_checkpoint():
    from ussl.launch import Interruption

    with Interruption() as interruption:
        interruption.training = True
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # at once: a shell's, not a second thought
        assert interruption.asked
        interruption.asked -= 60
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with Interruption(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_refused_step_leaves_batch_norm_statistics_as_they_were(command, tmp_path, monkeypatch):
    (tmp_path / "normed.py").write_text(
        "from torch import nn\n"
        "from ussl.hookspecs import hookimpl\n"
        "from ussl.parts import Head, Tokens\n"
        "class Normed(Head):\n"
        "    def __init__(self, encoder):\n"
        "        super().__init__()\n"
        "        self.width, self.norm = encoder.width, nn.BatchNorm1d(encoder.width)\n"
        "    def forward(self, tokens):\n"
        "        patches = self.norm(tokens.patches.flatten(0, -2)).view_as(tokens.patches)\n"
        "        return Tokens(tokens.pooled, patches, tokens.where, tokens.grid)\n"
        "@hookimpl\n"
        "def ussl_heads():\n"
        "    return {'normed': Normed}\n"
    )
    options = ["--plugin", str(tmp_path / "normed.py"), "--head", "normed", "--train.save_every", "1"]
    options += ["--train.keep", "9", *misbehaving(monkeypatch, tmp_path, "nan", "1"), "--train.accumulate", "anyway"]
    assert main(command(tmp_path / "run", *options)) == 0
    states = [torch.load(p, weights_only=True) for p in sorted((tmp_path / "run" / "checkpoints").glob("step*"))]
    means = [state["method"]["student.head.norm.running_mean"] for state in states[:3]]
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[1], means[2])


def test_a_picture_that_cannot_be_read_ends_the_run_with_what_was_learned(command, tmp_path, pictures, capsys):
    import shutil

    folder = tmp_path / "some"
    shutil.copytree(pictures, folder)
    options = ["--data", str(folder), "--train.save_every", "99", "--train.epochs", "1"]
    assert main(command(tmp_path / "order", *options)) == 0
    late = torch.load(next((tmp_path / "order" / "checkpoints").iterdir()), weights_only=True)
    assert late["step"] == 3
    (folder / "7.png").write_bytes(b"no picture")
    code = main(command(tmp_path / "run", *options, "--seed", "1"))
    said = capsys.readouterr().err
    assert code == 2
    assert "7.png" in said
    assert "Repair or replace" in said
    saved = list((tmp_path / "run" / "checkpoints").iterdir())
    assert len(saved) == 1


def test_a_bad_picture_of_any_process_is_named_and_ends_them_all(command, tmp_path, pictures):
    import shutil

    for seed in ("5", "6"):
        folder = tmp_path / f"some{seed}"
        shutil.copytree(pictures, folder)
        (folder / "7.png").write_bytes(b"no picture")
        out = tmp_path / f"run{seed}"
        options = ["--data", str(folder), "--train.devices", "2", "--train.accelerator", "cpu", "--seed", seed]
        done = separately(command(out, *options))
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("7.png") == 1
        assert "Traceback" not in done.stderr
        assert any((out / "checkpoints").iterdir())


def test_a_checkpoint_that_is_whole_is_never_given_up(tmp_path, monkeypatch):
    from ussl import checkpoint
    from ussl.errors import RunFailed

    path = checkpoint.save(tmp_path, 1, {"step": 1}, keep=1)

    def refuse(*_, **__):
        raise MemoryError("no memory")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(RunFailed, match="whole but cannot be read"):
        checkpoint.load(tmp_path)
    assert path.exists()


def test_the_encoder_of_a_run_is_exported_from_the_command_line(command, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(out, "--train.steps", "1")) == 0
    assert main(["export", str(out), "--to", "timm", "--out", str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == weights(out)
    assert main(["export", str(tmp_path), "--to", "timm"]) == 2
    assert "neither a run folder" in capsys.readouterr().err
    assert (out / "encoder" / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o22))


def test_a_moved_data_folder_and_another_probe_do_not_hinder_a_resume(command, tmp_path, pictures, monkeypatch):
    import shutil

    shutil.copytree(pictures, tmp_path / "before")
    out = tmp_path / "run"
    stopped = misbehaving(monkeypatch, tmp_path, "SIGTERM", "3")
    assert main(command(out, "--data", str(tmp_path / "before"), *stopped)) == 130
    (tmp_path / "before").rename(tmp_path / "after")
    going_on = misbehaving(monkeypatch, tmp_path, "1", "99")
    assert main(command(out, "--data", str(tmp_path / "after"), "--resume", *going_on)) == 0


def test_an_empty_data_argument_is_refused(command, tmp_path, capsys):
    assert main(command(tmp_path / "run", "--data", "")) == 2
    assert "an empty path" in capsys.readouterr().err


def test_two_runs_of_one_program_get_folders_of_their_own(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_out = [word for word in command("OUT", "--train.steps", "1") if word not in ("--out", "OUT")]
    assert main(without_out) == 0
    assert "USSL_OUT" not in os.environ
    assert len(list((tmp_path / "runs").iterdir())) == 1


def weights_file(path, seed):
    """A vision transformer of the recipe's shape in MAE's form, decoder and all."""
    torch.manual_seed(seed)
    state = VisionTransformer(width=32, depth=2, heads=2, patch=8, image_size=32).network.state_dict()
    torch.save({"model": state | {"mask_token": torch.zeros(1, 1, 4), "decoder_embed.weight": torch.zeros(1)}}, path)


def test_a_resumed_run_keeps_the_lineage_it_began_with_wherever_the_file_is_now(command, tmp_path, capsys):
    weights_file(tmp_path / "mae.pth", seed=0)
    words = ["--encoder.init", str(tmp_path / "mae.pth"), "--encoder.init_matched", "0.9"]
    assert main(command(tmp_path / "run", *words)) == 0
    begun = json.loads((tmp_path / "run" / "environment.json").read_text())["weights"]
    assert begun[0]["licence"] == "CC-BY-NC 4.0"
    newest = max((tmp_path / "run" / "checkpoints").glob("*.pt"), key=lambda p: int(p.name.split("-")[1]))
    newest.unlink()  # so that there is something left to train
    (tmp_path / "mae.pth").unlink()
    (tmp_path / "run" / "encoder" / "config.json").unlink()
    assert main(command(tmp_path / "run", *words, "--resume")) == 0
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["weights"] == begun
    assert json.loads((tmp_path / "run" / "encoder" / "config.json").read_text())["ussl"]["weights"] == begun


def test_batch_norm_keeps_the_images_of_a_step_together(command, tmp_path, capsys):
    words = ["--encoder", "{name: timm, model: test_resnet, image_size: 32}", "--masking", "null", "--target", "null"]
    words += ["--objective", "{name: mean}", "--plugin", str(tmp_path / "mean.py"), "--train.batch_size", "8"]
    (tmp_path / "mean.py").write_text(ADDITIVE)
    assert main(command(tmp_path / "a", *words)) == 2
    assert "batch norm takes its statistics over the images of one pass" in capsys.readouterr().err
    assert main(command(tmp_path / "b", *words, "--train.micro_batch", "auto")) == 0
    assert "8 images = 8 x 1 accumulated" in capsys.readouterr().out


ADDITIVE = '''
"""An objective that is a mean over images."""
from ussl.hookspecs import hookimpl
from ussl.parts import Objective


class Mean(Objective):
    """The mean feature."""

    additive = True

    def __init__(self, student, target):
        super().__init__()

    def forward(self, outputs, targets, masks):
        return {"loss": outputs[0].pooled.square().mean()}


@hookimpl
def ussl_objectives():
    return {"mean": Mean}
'''


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--joined false", "joined: false has no effect"),
        ("--recipe small/dino --head.patches true", "head.patches has no effect"),
        ("--masking null --encoder.mask_token true --objective mean", "encoder.mask_token has no effect"),
    ],
)
def test_a_setting_that_no_part_has_a_use_for_is_refused(command, tmp_path, capsys, words, said):
    (tmp_path / "mean.py").write_text(ADDITIVE)
    words = ["--plugin", str(tmp_path / "mean.py"), *words.split()]
    assert main(command(tmp_path / "run", *words)) == 2
    assert said in capsys.readouterr().err


def test_a_network_made_for_another_size_than_it_trains_on_is_told(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ussl.notice._said", set())
    assert main(command(tmp_path / "run", "--augmentation.size", "16", "--train.steps", "1")) == 0
    assert (
        "made for images of 32 pixels, at which it is probed and exported, and trains on 16" in capsys.readouterr().err
    )
