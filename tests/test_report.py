"""report.html: what it says, when it says it, and that it needs nothing but itself."""

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ussl import report
from ussl.draws import Draws
from ussl.errors import RunFailed
from ussl.parts import Batch, Encoder, Mask, Student, Tokens, View
from ussl.report import charts, folder, health, page, snapshot, words
from ussl.report.probes import Probes, read

VOID = {"meta", "br", "img", "link", "hr", "input", "source"}
RECIPE = """
seed: 3
train: {epochs: 4.0, steps: null, batch_size: 8}
loader: {canvas: 256, workers: 2}
source: {name: images, path: /data/liver}
encoder: {name: vit, patch: 8, init: null}
head: null
masking: {name: random, ratio: 0.75}
target: {name: pixels, norm: true}
objective: {name: masked_prediction, loss: mse}
"""
SPREAD = {"effective_rank": 9.0, "first_component": 0.4, "mean_cosine": 0.8, "images": 256.0, "width": 96.0}
HEALTHY = SPREAD | {"relative_std": 0.4, "effective_rank_centred": 31.0}


class Page(HTMLParser):
    """A page taken apart: tags, attributes, text, sections; fails on a tag that is not closed in its place."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.sections, self.text, self.open = [], [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [
            value for name, value in attributes if name in ("src", "href", "srcset", "poster", "action")
        ]
        self.sections += [value for name, value in attributes if tag == "section" and name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


def make(
    path, steps=40, finished=True, loss=None, wait=0.02, recipe=RECIPE, probes=None, refused=(), scalars=None, **told
):
    """A run folder as the engine leaves it."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    environment = {
        "recipe": "urfm_tiny",
        "command": "ussl fit --recipe urfm_tiny",
        "devices": [""],
        "threads": 2,
        "packages": {"torch": "2.9.0"},
        "data": {"images": 80, "sha256": "0123abcd"},
        "weights": [],
    }
    (path / "environment.json").write_text(json.dumps(environment | told))
    loss = [2 - i / steps for i in range(steps)] if loss is None else loss
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "epoch", "learning_rate", "loss", *(scalars or {}), "gradient_norm", *RATES])
        for i in range(steps):
            more = [values[i] for values in (scalars or {}).values()]
            writer.writerow([i + 1, i / 40 * 4, 1e-3, loss[i], *more, 0.5, 100.0, wait])
    if finished:
        (path / "encoder").mkdir()
        (path / "encoder" / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    if refused:
        with (path / "refused.csv").open("w", newline="") as file:
            csv.writer(file).writerows((step, "a.png") for step in refused)
    if probes:
        measured = Probes(path, 0)
        for encoder, values in probes.items():
            measured.write(0 if encoder != "trained" else steps, 0.0, "p", encoder, values)
    return path


RATES = ["images_per_second", "data_wait"]


def add_snapshot(path, name="a.png", label="liver · benign"):
    inside = path / "snapshot"
    inside.mkdir()
    for file in ("input-0-0.png", "input-0-1.png", "neighbour-0.png", "neighbour-1.png"):
        Image.fromarray(np.full((8, 8), 90, np.uint8)).save(inside / file)
    other = {"name": name, "label": label, "file": "neighbour-1.png", "similarity": 0.91234, "same_patient": True}
    found = {
        "inputs": [{"name": name, "label": label, "files": [["picture", "input-0-0.png"], ["seen", "input-0-1.png"]]}],
        "neighbours": {
            "pictures": 2,
            "unreadable": 0,
            "typical": 0.3,
            "rows": [{"query": {"name": name, "label": label, "file": "neighbour-0.png"}, "nearest": [other]}],
        },
    }
    (inside / "snapshot.json").write_text(json.dumps(found))
    return path


def full(path, **more):
    scores = {name: {"macro_f1": x, "macro_f1_sd": 0.03} for name, x in (("raw pixels", 0.5), ("untrained", 0.4))}
    probes = scores | {"teacher": {"macro_f1": 0.8}, "trained": {"macro_f1": 0.7, **HEALTHY}}
    weights = [{"name": "Lite0", "licence": "Apache-2.0", "source": "https://pypi.org/project/x", "sha256": "ffee"}]
    return add_snapshot(make(path, **{"probes": probes, "weights": weights, **more}))


def written(path):
    return Page(report.write(path).read_text(encoding="utf-8"))


def said(path):
    """Level and text of every verdict."""
    return [
        (verdict.level, f"{verdict.text} {verdict.advice}".strip()) for verdict in health.verdicts(folder.read(path))
    ]


def test_a_run_of_three_steps_has_the_sections_it_has_data_for(tmp_path):
    parsed = written(make(tmp_path / "run", steps=3))
    assert parsed.sections == ["health", "training", "recipe", "commands", "environment"]
    assert "Too short" not in parsed.text
    assert "The loss cannot be judged by 3 steps; 20 would do." in parsed.text


def test_a_full_run_has_every_section(tmp_path):
    parsed = written(full(tmp_path / "run"))
    assert parsed.sections == [
        *("health", "probes", "training", "inputs", "neighbours", "recipe", "commands", "weights", "environment")
    ]
    for text in (
        "urfm_tiny",
        "macro F1",
        "±0.03",
        "licence: Apache-2.0",
        "0123abcd",
        "liver · benign",
        "same patient",
    ):
        assert text in parsed.text
    assert parsed.tags.count("img") == 4


def test_an_empty_folder_has_a_page(tmp_path):
    (tmp_path / "a run").mkdir()
    parsed = written(tmp_path / "a run")
    assert parsed.sections == []
    assert "a run" in parsed.text
    assert "not begun" in parsed.text


def test_metrics_alone_have_a_page_and_a_long_run_a_small_one(tmp_path):
    run = make(tmp_path / "run", steps=20_000)
    (run / "recipe.yaml").unlink()
    (run / "environment.json").unlink()
    assert written(run).sections == ["health", "training", "commands"]
    assert (run / "report.html").stat().st_size < 150_000


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none is not a run folder"):
        report.write(tmp_path / "none")


@pytest.mark.parametrize("name", ["environment.json", "recipe.yaml"])
def test_a_damaged_file_is_named(tmp_path, name):
    run = make(tmp_path / "run")
    (run / name).write_text('{"a": ')
    with pytest.raises(ValueError, match=name):
        report.write(run)


def test_the_page_refers_to_nothing_outside_itself(tmp_path):
    text = report.write(full(tmp_path / "run")).read_text(encoding="utf-8")
    parsed = Page(text)
    assert all(reference.startswith(("data:image/png;base64,", "#")) for reference in parsed.references)
    assert not {"script", "link", "iframe", "object", "embed", "a", "base", "form"} & set(parsed.tags)
    assert not re.search(r"@import|@font-face|url\(|image-set|\son\w+=", text)
    assert "default-src 'none'" in text
    assert "https://pypi.org/project/x" in parsed.text  # a source is named, not linked


def test_whatever_a_user_wrote_is_text(tmp_path):
    nasty = "<script>alert(1)</script> & \"'</title></style> é 肝"
    recipe = RECIPE + f"sampler: {{name: {json.dumps(nasty)}}}\n"
    run = make(
        tmp_path / "a & b <i>",
        recipe=recipe.replace("/data/liver", "/data/<b>&"),
        scalars={nasty: range(40)},
        probes={nasty: {nasty: 0.5}, "trained": {nasty: 0.6}},
        weights=[{"name": nasty, "licence": nasty}],
        command=nasty,
    )
    environment = json.loads((run / "environment.json").read_text()) | {"recipe": nasty}
    (run / "environment.json").write_text(json.dumps(environment))
    parsed = written(add_snapshot(run, name=nasty, label=nasty))
    assert not {"script", "i", "a"} & set(parsed.tags)
    assert parsed.tags.count("style") == 1
    assert parsed.text.count(nasty) >= 8
    assert "/data/<b>&" in parsed.text


def test_an_unfinished_run_says_where_it_stopped_and_how_to_go_on(tmp_path):
    parsed = written(make(tmp_path / "run", steps=30, finished=False))
    assert "not finished" in parsed.text
    assert "step 30 of 40" in " ".join(parsed.text.split())  # from the epoch its last step began at
    assert f"--out {tmp_path / 'run'} --resume" in parsed.text
    assert "ussl.load" not in parsed.text


def test_a_finished_run_says_how_to_load_its_encoder(tmp_path):
    parsed = written(make(tmp_path / "my run"))
    assert "step 40 of 40" in " ".join(parsed.text.split())
    assert f"ussl fit --recipe '{tmp_path}/my run/recipe.yaml' --out '{tmp_path}/my run-again'" in parsed.text
    assert f"ussl.load('{tmp_path}/my run')" in parsed.text
    assert f"timm.create_model('local-dir:{tmp_path}/my run/encoder', pretrained=True)" in parsed.text
    assert "--resume" not in parsed.text


def test_images_seen_and_time_are_those_of_the_metrics(tmp_path):
    told = dict(page.facts(folder.read(make(tmp_path / "run"))))
    assert told["images seen"] == "320"  # 40 steps of 8
    assert told["passes over data"] == "4"
    assert told["training time"] == "3 s"  # 320 at 100 a second
    assert told["images a second"] == "100"


def test_writing_replaces_the_page_whole_or_not_at_all(tmp_path, monkeypatch):
    run = make(tmp_path / "run")
    report.write(run)
    before = (run / "report.html").read_bytes()
    (run / "environment.json").write_text('{"recipe": "other"}')

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page.os, "replace", full_disk)
    with pytest.raises(RunFailed, match=r"report.html could not be written: No space left"):
        report.write(run)
    assert (run / "report.html").read_bytes() == before
    assert not (run / ".report.html").exists()


def test_writing_imports_nothing_heavy(tmp_path):
    run = add_snapshot(make(tmp_path / "run", probes={"untrained": {"auc": 0.5}, "trained": {"auc": 0.6}}))
    code = f"""
import sys
from pathlib import Path
import ussl.report
ussl.report.write(Path({str(run)!r}))
print(*(name for name in ("torch", "pandas", "matplotlib", "scipy", "sklearn", "timm") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# The verdict


def noise(mean, steps=60):
    return list(mean + np.random.default_rng(0).normal(0, 0.01, steps))


@pytest.mark.parametrize(
    ("loss", "level", "text"),
    [
        ([2 - i / 60 for i in range(60)], "good", "The loss fell from 1.96 to 1.06, by 46 %."),
        ([1 + i / 60 for i in range(60)], "bad", "The loss rose from 1.04 to 1.94."),
        (noise(1.0), "warn", "The loss hardly moved: from 1 to "),
        ([*np.linspace(2, 1, 30), *np.linspace(1, 1.8, 30)], "warn", "but rose again to 1.73."),
        ([*np.linspace(2, 1, 30), *np.linspace(1, 2.4, 30)], "bad", "but rose again to 2.28."),
    ],
)
def test_the_loss_is_judged_by_its_ends(tmp_path, loss, level, text):
    found = said(make(tmp_path / "run", steps=60, loss=loss))
    assert found[1][0] == level
    assert text in found[1][1]


@pytest.mark.parametrize(
    ("signs", "level", "text"),
    [
        (
            {"feature_spread": 0.3, "feature_rank": 4.0, "chance": 5.0},
            "good",
            "features differ (spread 0.3 of 1, rank 4)",
        ),
        (
            {"feature_spread": 0.001, "feature_rank": 4.0},
            "bad",
            "collapsed: every image gets almost the same features",
        ),
        ({"feature_spread": 0.3, "feature_rank": 4.0, "chance": 0.5}, "bad", "stuck: the loss 1"),
    ],
)
def test_the_signs_of_the_last_steps_are_said_in_words(tmp_path, signs, level, text):
    columns = {name: [value] * 60 for name, value in signs.items()}
    found = said(make(tmp_path / "run", steps=60, loss=[1.0] * 60, scalars=columns))
    assert any(one == level and text in words for one, words in found)


def test_a_rising_loss_with_a_moving_teacher_is_left_to_the_probes(tmp_path):
    recipe = RECIPE.replace("name: pixels, norm: true", "name: ema_teacher")
    found = said(make(tmp_path / "run", steps=60, loss=[1 + i / 60 for i in range(60)], recipe=recipe))
    assert found[1][0] == "open"
    assert "Go by the probes." in found[1][1]


def test_losses_that_are_not_finite_are_counted_and_explained(tmp_path):
    loss = [2 - i / 60 for i in range(60)]
    loss[11], loss[30] = float("nan"), float("inf")
    run = make(tmp_path / "run", steps=60, loss=loss, refused=(12, 31, 31))
    assert said(run)[0] == (
        "warn",
        "2 of 60 steps had a loss or gradient that was not finite and changed nothing, the first of them step 12. "
        "refused.csv names their images. Lower optimizer.base_learning_rate, or train with --train.precision 32-true.",
    )
    assert health.headline(health.verdicts(folder.read(run))).text == "Worth a look"


def test_a_run_that_ended_in_losses_that_are_not_finite_is_wrong(tmp_path):
    run = make(tmp_path / "run", steps=30, finished=False, loss=[1.0] * 27 + [float("nan")] * 3)
    assert said(run)[0][0] == "bad"
    assert health.headline(health.verdicts(folder.read(run))).text == "Something is wrong"


def test_a_loss_that_was_never_finite_still_has_a_page(tmp_path):
    run = make(tmp_path / "run", steps=5, loss=[float("nan")] * 5, refused=(1, 2, 3, 4, 5))
    assert said(run)[0][0] == "bad"
    assert "Gradient norm" in written(run).text


def test_waiting_for_data_is_a_share_of_the_time_and_brings_advice(tmp_path):
    assert said(make(tmp_path / "fed", wait=0.02))[2] == ("good", "2 % of the time was spent waiting for data.")
    level, text = said(make(tmp_path / "starved", wait=0.43))[2]
    assert level == "warn"
    assert text.startswith(
        "43 % of the time was spent waiting for data. Read with more processes (--loader.workers, now 2)"
    )


def test_a_slow_step_weighs_more_than_a_fast_one_and_the_first_is_left_out():
    rate = np.array([1.0, *[100.0] * 20, 50.0])
    metrics = {"step": np.arange(1.0, 23), "images_per_second": rate, "data_wait": np.array([1.0, *[0.0] * 20, 0.5])}
    run = SimpleNamespace(metrics=metrics, step_seconds=10 / rate)
    assert health.waiting(run) == pytest.approx(0.1 / 2.2)  # half of 0.2 s, of 20 x 0.1 s + 0.2 s


@pytest.mark.parametrize(
    ("raw", "untrained", "trained", "level", "text"),
    [
        (
            0.6,
            0.5,
            0.7,
            "good",
            "better by 0.200 than the untrained encoder (0.500) and better by 0.100 than raw pixels",
        ),
        (0.7, 0.5, 0.6, "warn", "worse by 0.100 than raw pixels (0.700). It has learned something"),
        (0.6, 0.5, 0.51, "bad", "no different from the untrained encoder (0.500)"),
        (0.6, 0.5, 0.4, "bad", "worse by 0.100 than the untrained encoder (0.500)"),
        (0.6, 0.5, float("nan"), "bad", "taught the encoder nothing"),
    ],
)
def test_a_probe_is_read_against_the_untrained_encoder_and_raw_pixels(tmp_path, raw, untrained, trained, level, text):
    values = {"raw pixels": raw, "untrained": untrained, "trained": trained}
    probes = {name: {"accuracy": 0.9, "macro_f1": x, "macro_f1_sd": 0.1, "images": 99.0} for name, x in values.items()}
    found = [
        verdict for verdict in said(make(tmp_path / "run", probes=probes)) if verdict[1].startswith("P, macro F1: ")
    ]
    assert len(found) == 1
    assert found[0][0] == level
    assert text in found[0][1]


def test_an_encoder_that_has_hardly_begun_is_not_called_wrong(tmp_path):
    probes = {"untrained": {"macro_f1": 0.5}, "trained": {"macro_f1": 0.4}}
    run = make(tmp_path / "run", steps=10, probes=probes)
    assert said(run)[-1][0] == "open"
    assert health.headline(health.verdicts(folder.read(run))).level != "bad"


def test_a_collapse_is_said_in_plain_words(tmp_path):
    collapsed = HEALTHY | {"relative_std": 0.001, "mean_cosine": 0.99999}
    found = said(make(tmp_path / "run", probes={"untrained": HEALTHY, "trained": collapsed}))
    assert found[-1][0] == "bad"
    assert "The encoder has collapsed: every image gets almost the same features" in found[-1][1]
    found = said(make(tmp_path / "other", probes={"untrained": HEALTHY, "trained": HEALTHY}))
    assert found[-1] == (
        "good",
        "The encoder has not collapsed: its features differ in about 31 directions (untrained 31).",
    )


def test_the_last_measurement_counts(tmp_path):
    run = make(tmp_path / "run", probes={"untrained": {"auc": 0.5}, "trained": {"auc": 0.6}})
    Probes(run, 40).write(44, 4.4, "p", "trained", {"auc": 0.9})
    assert page.scores(folder.read(run))["rows"] == {("p", "auc"): [("0.500", ""), ("0.900", "")]}
    assert "better by 0.400" in said(run)[-1][1]


# probes.csv


def test_probes_csv_holds_one_number_a_row_and_drops_what_lies_beyond_a_checkpoint(tmp_path):
    probes = Probes(tmp_path, 0)
    probes.write(0, 0.0, "linear", "raw pixels", {"auc": 0.5, "macro_f1": 1 / 3})
    probes.write(10, 0.5, "linear", "trained", {"auc": float("nan")})
    probes.write(20, 1.0, "linear", "trained", {"auc": 0.75})
    assert (tmp_path / "probes.csv").read_text().splitlines() == [
        "step,epoch,probe,encoder,measure,value",
        "0,0,linear,raw pixels,auc,0.5",
        "0,0,linear,raw pixels,macro_f1,0.333333333",
        "10,0.5,linear,trained,auc,nan",
        "20,1,linear,trained,auc,0.75",
    ]
    with (tmp_path / "probes.csv").open("a") as file:
        file.write("20,1,linear,tra")  # a kill
    assert len(read(tmp_path)) == 4
    Probes(tmp_path, 10)
    assert [row.step for row in read(tmp_path)] == [0, 0, 10]
    Probes(tmp_path, 0)  # a run that starts over
    assert read(tmp_path) == []


# Charts and numbers


def line_points(svg, style="line"):
    """Pixels of a curve."""
    path = re.search(rf'<path class="{style}" d="([^"]*)"', svg)[1]
    return [(kind, float(x), float(y)) for kind, x, y in re.findall(r"([ML])([\d.-]+) ([\d.-]+)", path)]


def test_a_curve_lies_where_its_axes_say(tmp_path):
    svg = str(charts.chart("Loss", [charts.Line(np.array([0.0, 50, 100]), np.array([0.0, 1, 2]))]))
    heights = {text: float(y) for y, text in re.findall(r'class="up" x="[\d.]+" y="([\d.]+)">([^<]*)<', svg)}
    places = {text: float(x) for x, text in re.findall(r'class="across" x="([\d.]+)" y="[\d.]+">([^<]*)<', svg)}
    (_, x0, y0), (_, x1, y1), (_, x2, y2) = line_points(svg)
    assert (x0, x2) == (places["0"], places["100"])
    assert x1 == pytest.approx((x0 + x2) / 2)
    for y, label in ((y0, "0.0"), (y1, "1.0"), (y2, "2.0")):
        assert y == pytest.approx(heights[label] - 3.5, abs=0.11)  # text stands a little below its line


def test_a_gap_in_the_values_is_a_gap_in_the_curve():
    y = np.array([1.0, 2, np.nan, 4, 5, np.inf, 7])
    svg = str(charts.chart("Loss", [charts.Line(np.arange(7.0), y)]))
    assert [kind for kind, *_ in line_points(svg)] == ["M", "L", "M", "L", "M"]
    assert svg.count("<circle") == 1  # the point that stands alone


def test_nothing_finite_gives_no_chart_and_one_value_gives_one():
    assert not charts.chart("Loss", [charts.Line(np.arange(3.0), np.full(3, np.nan))])
    for value in (0.0, 5.0, -3.0, 1e-12, 1e12):
        assert "<circle" in charts.chart("Loss", [charts.Line(np.array([1.0]), np.array([value]))])


def test_a_chart_says_its_content_to_those_who_cannot_see_it():
    lines = [charts.Line(np.array([1.0, 2, 3]), np.array([2.0, 0.5, 1]))]
    svg = str(charts.chart("AUC", lines, {"untrained": 0.25, "broken": float("nan")}))
    assert 'role="img"' in svg
    assert "AUC: 2 at step 1, 1 at step 3, between 0.5 and 2; untrained 0.25" in svg
    assert "broken" not in svg


def test_values_over_decades_are_drawn_on_a_logarithmic_axis():
    svg = str(charts.chart("Loss", [charts.Line(np.arange(3.0), np.array([1000.0, 10.0, 0.1]))]))
    (_, _, top), (_, _, middle), (_, _, bottom) = line_points(svg)
    assert middle - top == pytest.approx(bottom - middle, abs=0.2)


def test_a_spike_in_a_long_run_is_not_lost_and_the_page_stays_small():
    y = np.ones(100_000)
    y[77_777] = 50.0
    faint, smooth = charts.history(np.arange(1, 100_001), y)
    assert faint.y.max() == 50.0
    assert len(faint.x) <= 2 * charts.POINTS
    assert len(smooth.x) <= 2 * charts.POINTS
    assert (np.diff(faint.x) > 0).all()


def test_the_running_mean_is_that_of_a_plain_loop():
    y = np.random.default_rng(0).normal(size=50)
    y[[3, 20, 21, 22, 23, 24, 25, 26]] = np.nan
    expected = []
    for i in range(50):
        near = [v for v in y[max(0, i - 2) : i + 3] if np.isfinite(v)]
        expected.append(np.mean(near) if near else np.nan)
    np.testing.assert_allclose(charts.running_mean(y, 2), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.012345, "0.0123"), (-0.5, "−0.5"), (12.345, "12.3"), (999.7, "1,000"), (12800, "12,800")),
        *((1.5e-4, "1.5×10⁻⁴"), (1e-4, "1×10⁻⁴"), (2e9, "2×10⁹"), (float("nan"), "–"), (float("inf"), "∞")),
    ],
)
def test_numbers_are_written_for_people(value, text):
    assert words.number(value) == text


def test_ticks_are_round_and_few():
    for low, high in ((0, 1), (0.313, 0.4), (1, 3), (1, 123_456), (-2e-5, 3e-5), (9e-4, 1.1e-3), (0, 7e7)):
        values = [value for value, _ in words.ticks(low, high)]
        labels = [label for _, label in words.ticks(low, high)]
        assert 2 <= len(values) <= 6
        assert len(set(labels)) == len(labels)
        assert low <= min(values) + 1e-12 * abs(high)
        assert max(values) <= high * (1 + 1e-12)
    assert [label for _, label in words.ticks(0, 250_000)] == ["0", "50k", "100k", "150k", "200k", "250k"]


def test_similarities_are_written_with_the_decimals_that_tell_them_apart():
    assert words.as_fine([{"nearest": [{"similarity": 0.5}]}])(0.5) == "0.50"
    assert words.as_fine([{"nearest": [{"similarity": 0.9987}]}])(0.9987) == "0.9987"


# The pictures


class Mean(Encoder):
    """Features (mean, 1 - mean) of an image, with dropout that would show, and a patch of 4."""

    accepts = frozenset({"drop"})

    def __init__(self):
        super().__init__()
        self.width, self.patch, self.mean, self.std = 2, 4, (0.5,) * 3, (0.5,) * 3
        self.dropout = torch.nn.Dropout(0.5)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.passes = 0

    def grid(self, height, width):
        return height // self.patch, width // self.patch

    def forward(self, image, mask=None):
        self.passes += 1
        mean = image.mean((1, 2, 3))
        return Tokens(self.dropout(torch.stack([mean, 1 - mean], 1) * self.scale)[:, None], None, None, (2, 2))


class Corner:
    """Hides every patch but the first."""

    def __call__(self, view, grid, draws):
        hidden = torch.ones(len(view.image), 1, grid[0] * grid[1], dtype=torch.bool)
        hidden[..., 0] = False
        torch.rand(3)  # a plugin that draws from torch's generator
        return Mask(hidden, hidden[:, :, None], 1, grid[0] * grid[1] - 1)


def training(levels, masking=None, views=1, unreadable=()):
    """What snapshots need of a Training, on flat pictures of the given grey levels."""
    from ussl.method import Method

    encoder = Mean()
    pictures = [np.full((8, 8), level, np.uint8) for level in levels]
    rows = [
        {"path": f"/d/{i}.png", "organ": "liver", "label": "ab"[i % 2], "patient": i // 2} for i in range(len(levels))
    ]

    def augment(batch, draws):
        image = batch.pixels.float() / 255
        return [View(image, image) for _ in range(views)]

    def sample(count):
        pixels = torch.tensor(np.stack(pictures[:count]))[:, None]
        n = len(pixels)
        box = torch.tensor([[0, 0, 8, 8]] * n)
        return Batch(pixels, box, torch.ones(n), torch.arange(n), torch.zeros(n, dtype=torch.int64))

    class Source:
        def read(self, row):
            if rows.index(row) in unreadable:
                raise ValueError("damaged")
            return pictures[rows.index(row)]

    method = Method.__new__(Method)
    torch.nn.Module.__init__(method)
    method.augmentation, method.student, method.masking = augment, Student(encoder), masking
    return SimpleNamespace(
        fabric=SimpleNamespace(is_global_zero=True, device=torch.device("cpu")),
        recipe=SimpleNamespace(source=Source, loader=SimpleNamespace(canvas=512)),
        loader=SimpleNamespace(sample=sample),
        draws=lambda step, batch: Draws(0, 0, step, batch.index, batch.turn),
        rows=rows,
        method=method.train(),
        exported=lambda: encoder,
    )


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def saved(folder):
    return json.loads((folder / "snapshot.json").read_text())


def test_hidden_patches_are_grey_and_seen_ones_as_they_are(tmp_path):
    snapshot.save(training([200, 100], Corner()), tmp_path)
    first = saved(tmp_path)["inputs"][0]
    assert [what for what, _ in first["files"]] == ["picture", "crop", "seen"]
    seen = pixels(tmp_path / first["files"][2][1])
    grey = round(255 * snapshot.GREY)
    assert (seen[:4, :4] == 200).all()
    assert set(np.unique(seen[4:])) | set(np.unique(seen[:4, 4:])) == {grey}
    assert (pixels(tmp_path / first["files"][1][1]) == 200).all()


def test_without_masking_the_views_are_shown(tmp_path):
    snapshot.save(training([200, 100], views=2), tmp_path)
    assert [what for what, _ in saved(tmp_path)["inputs"][0]["files"]] == ["picture", "seen 1", "seen 2"]


def test_a_masking_that_changes_pixels_is_shown_by_them(tmp_path):
    def fill(view, grid, draws):
        hidden = torch.zeros(len(view.image), 1, 4, dtype=torch.bool)
        return Mask(hidden, hidden[:, :, None], 4, 0, "fill", image=(view.image * 0.5)[:, None])

    snapshot.save(training([200, 100], fill), tmp_path)
    assert (pixels(tmp_path / "input-0-2.png") == 100).all()


def test_a_snapshot_changes_nothing(tmp_path):
    made = training([10, 60, 120, 240], Corner())
    encoder = made.exported()
    random, weights = torch.get_rng_state(), {k: v.clone() for k, v in encoder.state_dict().items()}
    snapshot.save(made, tmp_path)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(weights[k], v) for k, v in encoder.state_dict().items())
    assert all(module.training for module in made.method.modules())
    assert encoder.scale.grad is None


def test_nearest_pictures_are_those_of_the_highest_cosine_and_never_the_picture_itself(tmp_path):
    levels = [20, 25, 200, 210, 120, 90, 22]
    snapshot.save(training(levels), tmp_path, count=7)
    found = saved(tmp_path)["neighbours"]
    features = np.array([[x / 255, 1 - x / 255] for x in levels])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    cosine = features @ features.T
    assert found["pictures"] == 7
    assert found["typical"] == pytest.approx(cosine[~np.eye(7, dtype=bool)].mean(), abs=1e-5)
    assert len(found["rows"]) == 7
    for row in found["rows"]:
        i = int(row["query"]["name"][0])
        order = sorted((j for j in range(7) if j != i), key=lambda j: -cosine[i, j])[: snapshot.NEAREST]
        assert [int(other["name"][0]) for other in row["nearest"]] == order
        assert [other["similarity"] for other in row["nearest"]] == pytest.approx(cosine[i, order], abs=1e-5)
        assert [other["same_patient"] for other in row["nearest"]] == [j // 2 == i // 2 for j in order]
        assert (pixels(tmp_path / row["query"]["file"]) == levels[i]).all()
        assert row["query"]["label"] == f"liver · {'ab'[i % 2]}"


def test_queries_are_spread_over_the_labels(tmp_path):
    snapshot.save(training(list(range(10, 50))), tmp_path, count=2)
    assert {row["query"]["label"] for row in saved(tmp_path)["neighbours"]["rows"]} == {"liver · a", "liver · b"}


def test_one_picture_has_no_neighbours(tmp_path):
    snapshot.save(training([50]), tmp_path / "snapshot")
    assert saved(tmp_path / "snapshot")["neighbours"]["rows"] == []
    assert written(tmp_path).sections == ["inputs"]


def test_an_encoder_that_has_diverged_has_no_neighbours(tmp_path):
    made = training([50, 60, 70])
    with torch.no_grad():
        made.exported().scale.fill_(float("nan"))
    snapshot.save(made, tmp_path)
    assert saved(tmp_path)["neighbours"]["rows"] == []


def test_pictures_that_cannot_be_read_are_counted(tmp_path):
    snapshot.save(training([50, 60, 70], unreadable=[1]), tmp_path)
    found = saved(tmp_path)["neighbours"]
    assert (found["pictures"], found["unreadable"]) == (2, 1)


def test_embedding_stops_when_its_time_is_over(tmp_path, monkeypatch):
    ticking = iter(range(0, 10_000, 1))
    monkeypatch.setattr(snapshot.time, "monotonic", lambda: next(ticking))  # a second a look
    made = training(list(range(1, 101)))
    snapshot.save(made, tmp_path)
    assert made.exported().passes == 3
    assert saved(tmp_path)["neighbours"]["pictures"] == 3 * snapshot.AT_ONCE


def test_only_the_first_rank_writes(tmp_path):
    made = training([50, 60])
    made.fabric.is_global_zero = False
    snapshot.save(made, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_second_snapshot_replaces_the_first(tmp_path):
    snapshot.save(training([50, 60, 70, 80]), tmp_path)
    snapshot.save(training([50, 60]), tmp_path)
    assert len(saved(tmp_path)["inputs"]) == 2
    named = set(re.findall(r"[\w-]+\.png", (tmp_path / "snapshot.json").read_text())) - {"0.png", "1.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == named


def test_a_snapshot_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RunFailed, match="pictures could not be written to"):
        snapshot.save(training([50, 60]), tmp_path / "taken")


def test_the_engine_has_what_a_snapshot_needs(tmp_path):
    from ussl.launch import launch
    from ussl.plugins import Host
    from ussl.recipe import load
    from ussl.training import build

    (tmp_path / "data").mkdir()
    for i in range(6):
        speckle = np.random.default_rng(i).rayleigh(60, (40 + i, 56)).clip(0, 255).astype(np.uint8)
        Image.fromarray(speckle).save(tmp_path / "data" / f"{i}.png")
    (tmp_path / "tiny.yaml").write_text(
        "{augmentation: {name: crop, size: 16}, masking: random, target: pixels, loader: {workers: 0},"
        "encoder: {name: vit, width: 16, depth: 1, heads: 2, patch: 8, image_size: 16},"
        "objective: {name: masked_prediction, width: 16, depth: 1, heads: 2}, train: {steps: 1, batch_size: 4}}"
    )
    recipe = load([tmp_path / "tiny.yaml"], [], Host(), data=str(tmp_path / "data"))
    snapshot.save(build(launch(recipe.train), recipe, state=None), tmp_path / "run" / "snapshot")
    parsed = written(tmp_path / "run")
    assert parsed.sections == ["inputs", "neighbours"]
    assert parsed.tags.count("img") == 4 * 3 + 6 * (1 + snapshot.NEAREST)


# In a browser

MEASURE = """<script>addEventListener("load", () => {
const page = document.documentElement, loaded = performance.getEntriesByType("resource").length
const broken = [...document.images].filter(image => !image.naturalWidth).length
parent.postMessage([page.scrollWidth, innerWidth, loaded, broken].join(" "), "*")
})</script></body>"""
# a window is at least 500 pixels wide, a frame is not
FRAME = """<script>addEventListener("message", message => document.title = message.data)</script>
<iframe src="copy.html" style="border: 0; width: {}px; height: 800px"></iframe>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [380, 1280])
def test_a_browser_shows_it_without_scrolling_sideways_or_loading_anything(tmp_path, width):
    long = "x" * 300
    encoders = {f"encoder {i}": {"macro_f1": 0.5, f"a_measure_{long}": 0.1} for i in range(6)}
    recipe = RECIPE.replace("/data/liver", f"/data/{long}")
    run = full(
        tmp_path / "run", recipe=recipe, probes={**encoders, "trained": {"macro_f1": 0.7}}, command=long, git=long
    )
    text = report.write(run).read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # which forbids what measures
    (tmp_path / "copy.html").write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width))
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    command = ["chromium", "--headless", "--no-sandbox", *quiet.split(), "--disable-sync", "--window-size=1400,900"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run([*command, f"file://{tmp_path}/frame.html"], capture_output=True, text=True, timeout=120)
    measured = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", done.stdout)
    assert measured, done.stderr
    scrolled, inner, loaded, broken = map(int, measured.groups())
    assert inner == width
    assert scrolled <= inner
    assert loaded == 0
    assert broken == 0
