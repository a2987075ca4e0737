"""Probes in a run: when they are measured, of which weights, beside which baselines."""

import pytest

from ussl.cli import main
from ussl.probing import table
from ussl.report.probes import RAW, TRAINED, UNTRAINED, read

RECIPE = """
# pictures and labels of their own for the probe
source: {name: phantom, images: 16, size: 32, seed: 0, cache: false}
augmentation: {name: crop, size: 16}
encoder: {name: vit, width: 16, depth: 1, heads: 2, patch: 8, image_size: 16}
masking: {name: random, ratio: 0.5}
target: {name: timm, model: resnet10t, pretrained: false, stride: 8}
objective: {name: masked_prediction, width: 16, depth: 1, heads: 2}
loader: {workers: 0}
train: {epochs: 4, batch_size: 8, threads: 1, save_every: 2}
probes:
  organ:
    name: knn
    label: organ
    every: 2
    folds: 2
    k: 3
    source: {name: phantom, images: 16, size: 32, seed: 1, cache: false, organs: [breast, liver]}
  spread: {source: {name: phantom, images: 8, size: 32, seed: 1, cache: false}, every: 100}
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "probed.yaml").write_text(RECIPE)

    def run(*more):
        assert main(["fit", "--recipe", str(tmp_path / "probed.yaml"), "--out", str(tmp_path / "run"), *more]) == 0
        return tmp_path / "run"

    return run


def test_probes_run_when_due_beside_raw_pixels_the_untrained_encoder_and_the_teacher(run, capsys):
    out = run()
    rows = read(out)
    assert {(r.step, r.encoder) for r in rows if r.probe == "organ"} == {
        *((0, encoder) for encoder in (RAW, UNTRAINED, "teacher")),
        *((step, TRAINED) for step in (4, 8)),
    }
    assert {(r.step, r.encoder) for r in rows if r.probe == "spread" and r.step} == {(8, TRAINED)}
    said = capsys.readouterr().out
    assert [line.split("  ")[1] for line in table(out)[1:]] == ["raw pixels", "untrained", "trained", "teacher"]
    assert all(line.strip() in said for line in table(out))
    assert "organ" in (out / "report.html").read_text()


def test_the_trained_encoder_that_is_probed_is_the_one_that_is_exported(run):
    import ussl
    from ussl.evaluate.classify import knn
    from ussl.evaluate.pictures import LabelledPictures
    from ussl_plugins.sources.phantom import PhantomSource

    out = run("--ema", "0.5")
    loaded = ussl.load(out)
    source = PhantomSource(images=16, size=32, seed=1, cache=False, organs=["breast", "liver"])
    pictures = LabelledPictures(source, label="organ", group="patient", size=16)
    expected = knn(pictures.features(loaded.encoder, loaded.device), pictures.labels, pictures.groups, k=3, folds=2)
    measured = {r.measure: r.value for r in read(out) if r.probe == "organ" and r.step == 8}
    assert measured["auc"] == pytest.approx(expected["auc"])


def test_a_probe_does_not_change_the_training(run, tmp_path):
    with_probes = (run() / "encoder" / "model.safetensors").read_bytes()
    without = run("--overwrite", "--probes.organ", "null", "--probes.spread", "null")
    assert (without / "encoder" / "model.safetensors").read_bytes() == with_probes
    assert not (without / "probes.csv").exists()


def test_a_resumed_run_keeps_its_baselines(run):
    first = [r for r in read(run()) if r.step <= 4]
    out = run("--overwrite")
    for path in sorted((out / "checkpoints").iterdir())[-1:]:
        path.unlink()
    (out / "encoder" / "model.safetensors").unlink()
    run("--resume")
    assert [r for r in read(out) if r.step <= 4] == first


def test_epochs_between_probes_are_passes_over_the_data_however_long_the_schedule(run):
    out = run("--train.steps", "3", "--train.epochs", "400")  # 1.5 passes
    assert {r.step for r in read(out) if r.probe == "organ"} == {0, 3}
