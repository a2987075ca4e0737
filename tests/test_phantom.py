"""The phantoms obey physics, are the same everywhere, and show what their labels say."""

import csv
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from ussl.phantom.acoustics import Scanner, compress, echoes
from ussl.phantom.cache import PictureCache
from ussl.phantom.render import ORGANS, render, settings
from ussl.phantom.scan import Frame
from ussl.phantom.scene import LIVER, Scene, Tissue, ellipse, place, tube
from ussl_plugins.sources import phantom as plugin
from ussl_plugins.sources.phantom import PhantomSource

LINEAR = Frame(radius=0.0, half=20.0, depth=40.0, size=128)
QUIET = Scanner(frequency=7.5, focus=20.0, snr=200.0, sidelobe=-200.0)


def even(frame: Frame = LINEAR, echo: float = 0.0, attenuation: float = 0.0) -> Scene:
    scene = Scene(*frame.points, frame.depths, np.random.default_rng(0), bent=0.0)
    scene.fill(scene.depth >= 0, Tissue(echo, attenuation))
    return scene


def receive(scene: Scene, scanner: Scanner = QUIET, frame: Frame = LINEAR, seed: int = 0) -> np.ndarray:
    return echoes(scene, frame, scanner, np.random.default_rng(seed))


def power(received: np.ndarray) -> np.ndarray:
    """(A,) mean power in dB at every depth."""
    return 10 * np.log10(np.mean(np.abs(received) ** 2, axis=1))


# --- physics


def test_the_envelope_of_even_tissue_is_rayleigh():
    envelope = np.concatenate([np.abs(receive(even(), seed=seed)[8:-8]).ravel() for seed in range(4)])
    assert envelope.mean() / envelope.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.02)  # 1.913
    assert np.mean(envelope**2) == pytest.approx(1, rel=0.03)


def correlation(field: np.ndarray, shift: int, axis: int) -> float:
    a, b = np.split(np.moveaxis(field, axis, 0), [shift])[1], np.moveaxis(field, axis, 0)[:-shift]
    return float(np.abs(np.mean(a * b.conj())) / np.mean(np.abs(field) ** 2))


def test_speckle_is_as_wide_as_the_beam_at_its_focus_and_wider_beyond():
    field = np.concatenate([receive(even(), seed=seed) for seed in range(4)], axis=1)
    middle, last = slice(122, 134), slice(236, 252)
    waist = QUIET.f_number * 1.54 / 7.5 / 2.355  # deviation of a Gaussian of full width F * wavelength
    pitch = 40 / 127
    assert correlation(field[middle], 2, 1) == pytest.approx(np.exp(-((2 * pitch / waist) ** 2) / 4), abs=0.05)
    assert correlation(field[last], 2, 1) > correlation(field[middle], 2, 1) + 0.05


def test_speckle_is_as_long_as_the_pulse_and_shorter_than_it_is_wide():
    frame = Frame(0.0, 20.0, 12.0, 128)
    field = receive(even(frame), frame=frame)
    pulse = 2.5 * (1.54 / 7.5) / 2 / 2.355  # cycles, there and back
    step = 12 / 256
    assert correlation(field, 2, 0) == pytest.approx(np.exp(-((2 * step / pulse) ** 2) / 4), abs=0.05)
    assert pulse < QUIET.beam(np.array([20.0]))[0]


@pytest.mark.parametrize(("frequency", "attenuation"), [(5.0, 0.5), (10.0, 0.5), (5.0, 1.0)])
def test_echoes_fade_by_attenuation_times_frequency_there_and_back(frequency, attenuation):
    scanner = Scanner(frequency=frequency, focus=20.0, snr=200.0)
    level = power(receive(even(attenuation=attenuation), scanner))
    slope = np.polyfit(LINEAR.depths / 10, level, 1)[0]  # dB / cm
    assert slope == pytest.approx(-2 * attenuation * frequency, rel=0.05)


def test_time_gain_compensation_makes_liver_even_in_depth():
    scanner = Scanner(frequency=5.0, focus=20.0, snr=200.0)
    grey = compress(receive(even(attenuation=LIVER.attenuation), scanner), LINEAR, scanner)
    thirds = [part.mean() for part in np.array_split(grey[4:-4], 3)]
    assert max(thirds) - min(thirds) < 0.02


def test_the_snr_dial_is_the_level_of_the_receivers_noise():
    silent = even(echo=-200)
    for snr in (20.0, 40.0):
        scanner = Scanner(frequency=7.5, focus=20.0, snr=snr)
        assert power(receive(silent, scanner)).mean() == pytest.approx(-snr, abs=0.2)


@pytest.mark.parametrize(("tissue", "change"), [(Tissue(-60, 9.0), -2 * 9.0 * 7.5), (Tissue(-60, 0.0), 0.0)])
def test_what_absorbs_casts_a_shadow_and_what_does_not_enhances(tissue, change):
    scene = even(attenuation=0.5)
    inside = (np.abs(scene.x) < 6) & (scene.depth > 12) & (scene.depth < 17)
    scene.fill(inside, tissue)
    received = receive(scene)
    behind = (scene.depth > 19) & (scene.depth < 23)
    middle, side = behind & (np.abs(scene.x) < 3), behind & (np.abs(scene.x) > 12) & (np.abs(scene.x) < 18)
    level = [10 * np.log10(np.mean(np.abs(received[where]) ** 2)) for where in (middle, side)]
    expected = change * 0.5 + 2 * 0.5 * 7.5 * 0.5  # over 5 mm, against soft tissue
    assert level[0] - level[1] == pytest.approx(expected, abs=1.5)


def test_an_interface_is_bright_across_the_beam_and_faint_along_it():
    def level(angle: float) -> float:
        scene = even(echo=-200)
        distance = (scene.z - 20) * np.cos(angle) - scene.x * np.sin(angle)
        scene.rim(distance.astype(np.float32), 10)
        return float(np.sum(scene.mirror**2) * np.cos(angle))

    assert level(0.0) > 3 * level(0.9) > 9 * level(1.3)


def test_reverberation_appears_where_sound_does_not_pass():
    scene = even(echo=-200, attenuation=20)
    scene.haze[128] = 1.0
    assert np.argmax(power(receive(scene))) == pytest.approx(128, abs=1)


# --- geometry


def test_a_convex_picture_is_a_fan_with_black_outside():
    frame = Frame(radius=50.0, half=0.6, depth=120.0, size=128)
    white = frame.picture(np.ones((frame.samples, frame.lines), np.float32))
    area = 0.6 * ((50 + 120) ** 2 - 50**2)  # of the sector, mm2
    assert (white > 0.5).sum() * frame.pixel**2 == pytest.approx(area, rel=0.02)
    assert white[0, 0] == white[-1, 0] == white[0, -1] == 0
    columns = np.nonzero(white.any(axis=0))[0]
    assert np.ptp(columns) + 1 == pytest.approx(2 * 170 * np.sin(0.6) / frame.pixel, abs=1.5)


def test_a_point_lands_where_it_lies():
    for frame in (LINEAR, Frame(50.0, 0.6, 120.0, 128), Frame(11.0, 1.1, 60.0, 128)):
        x, z = frame.points
        row, column = frame.samples // 2, frame.lines // 3
        dot = np.hypot(x - x[row, column], z - z[row, column]) < 2 * frame.pixel
        found = ndimage.center_of_mass(frame.stencil(dot))
        _, top, bottom = frame.extent
        expected = ((z[row, column] - (top + bottom) / 2) / frame.pixel + 63.5, x[row, column] / frame.pixel + 63.5)
        assert found == pytest.approx(expected, abs=0.6)


def test_distances_to_shapes_are_right():
    scene = even()
    circle = ellipse(scene, (3.0, 20.0), (5.0, 5.0))
    np.testing.assert_allclose(circle, np.hypot(scene.x - 3, scene.z - 20) - 5, atol=5e-3)
    turned = ellipse(scene, (0.0, 20.0), (8.0, 3.0), 0.5) < 0
    straight = np.pi * 8 * 3 / (LINEAR.step * LINEAR.pitch[0])
    assert turned.sum() == pytest.approx(straight, rel=0.03)
    assert turned[
        np.hypot(*(a - b for a, b in zip((scene.x, scene.z), place((0, 20), 0.5, 7, 0), strict=True))) < 0.4
    ].all()
    pipe = tube(scene, (-5.0, 10.0), (5.0, 10.0), (2.0, 2.0))
    above = np.abs(scene.x) < 4
    np.testing.assert_allclose(pipe[above], np.abs(scene.z - 10)[above] - 2, atol=1e-4)


# --- the data set


@pytest.fixture
def source(tmp_path) -> PhantomSource:
    return PhantomSource(images=48, patients=24, size=64, cache=str(tmp_path))


def test_a_picture_depends_on_its_row_alone(source):
    rows = list(source.rows())
    more = list(PhantomSource(images=200, patients=24, size=64, cache=False).rows())
    assert more[:48] == rows
    backwards = {row["path"]: source.render(row).image for row in reversed(rows[::7])}
    stranger = PhantomSource(seed=9, cache=False)
    for row in rows[::7]:
        np.testing.assert_array_equal(stranger.read(row), backwards[row["path"]])
    assert len({image.tobytes() for image in backwards.values()}) == len(backwards)


def test_another_seed_gives_other_patients(source):
    other = next(PhantomSource(images=48, seed=1, size=64, cache=False).rows())
    first = next(source.rows())
    assert other["patient"] != first["patient"]
    assert np.any(source.render(other).image != source.render(first).image)


# Means of 32 x 32 px blocks: arithmetic may differ between machines by a rounding here and there, these may not.
PINNED = {
    "thyroid": [71.3, 95.6, 99.6, 85.7, 59.3, 60.3, 32.8, 43.2, 50.6, 28.6, 4.2, 13.4, 22.1, 9.8, 1.6, 4.0],
    "liver": [0.0, 30.0, 29.3, 0.0, 3.1, 51.5, 42.5, 6.4, 29.7, 70.2, 65.6, 48.3, 21.1, 35.1, 36.2, 21.3],
    "fetal_head": [0.0, 31.0, 28.8, 0.0, 5.1, 43.9, 46.2, 1.5, 48.1, 64.6, 53.2, 65.3, 14.4, 43.8, 35.9, 17.7],
}


@pytest.mark.parametrize("organ", PINNED)
def test_pictures_are_the_same_on_every_machine(organ):
    image = render(0, 3, 1, organ, ORGANS[organ].labels[-1], 128, 60.0).image
    coarse = image.reshape(4, 32, 4, 32).mean(axis=(1, 3)).ravel()
    np.testing.assert_allclose(coarse, PINNED[organ], atol=0.5)


def test_rows_say_what_there_is_and_survive_a_csv_file(source, tmp_path):
    rows = list(source.rows())
    assert len(rows) == len({row["path"] for row in rows}) == 48
    assert {row["organ"] for row in rows} == set(ORGANS)
    assert {row["label"] for row in rows} == {"normal", "benign", "malignant"}
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with (tmp_path / "manifest.csv").open(newline="") as file:
        back = list(csv.DictReader(file))
    np.testing.assert_array_equal(source.read(back[5]), source.render(rows[5]).image)


def test_a_patient_has_one_organ_label_and_probe_and_views_that_differ(source):
    rows = list(source.rows())
    for subject in (0, 5, 17):
        first, second = (row for row in rows if row["subject"] == subject)
        for same in ("patient", "organ", "label", "probe"):
            assert first[same] == second[same]
        one, other = source.render(first), source.render(second)
        assert np.any(one.image != other.image)
        assert abs(float(one.organ.mean()) - float(other.organ.mean())) < 0.15
    probes = [settings(0, patient, 0, "liver", 64, 60.0) for patient in range(8)]
    assert len({(frame.depth, scanner.gain, scanner.frequency) for frame, scanner in probes}) == 8


def test_masks_hold_a_lesion_exactly_where_the_label_says_so():
    for organ, plan in ORGANS.items():
        for patient, label in enumerate(plan.labels):
            truth = render(3, patient, 0, organ, label, 96, 60.0)
            assert truth.image.shape == truth.organ.shape == truth.lesion.shape == (96, 96)
            assert truth.image.dtype == np.uint8
            assert truth.organ.dtype == truth.lesion.dtype == np.bool_
            assert truth.organ.mean() > 0.01
            assert (truth.lesion.sum() > 4) == (label != "normal")
            assert 0.15 < truth.pixel_mm < 3.5


def test_malignant_lesions_are_taller_and_darker_but_the_two_kinds_overlap():
    shape, level = {}, {}
    for label in ("benign", "malignant"):
        truths = [render(1, patient, 0, "breast", label, 64, 60.0) for patient in range(24)]
        places = [np.nonzero(truth.lesion) for truth in truths]
        shape[label] = np.array([y.std() / x.std() for y, x in places])
        level[label] = np.array(
            [truth.image[truth.lesion].mean() - truth.image[truth.organ].mean() for truth in truths]
        )
    assert shape["malignant"].mean() > shape["benign"].mean() + 0.2
    assert level["malignant"].mean() < level["benign"].mean() - 5
    assert shape["malignant"].min() < shape["benign"].max()
    assert level["malignant"].max() > level["benign"].min()


def test_less_signal_makes_the_depth_noisier():
    def far(snr: float) -> float:
        return float(render(0, 4, 0, "liver", "normal", 96, snr).image[70:90, 40:56].mean())

    assert far(30.0) > far(60.0) + 20


def test_pictures_have_the_brightness_and_grain_of_real_ones(ultrasound):
    from PIL import Image

    with (ultrasound / "manifest.csv").open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file) if row["organ"] == "liver"][::40]
    real = [Image.open(ultrasound / path).convert("L") for path in paths]
    real = [np.asarray(image.resize((128, round(128 * image.height / image.width)))) for image in real]
    made = [render(0, patient, 0, "liver", "normal", 128, 60.0).image for patient in range(18)]

    def summary(images: list[np.ndarray]) -> np.ndarray:
        """Mean grey of the tissue, and how alike neighbours are along and across the beam in even patches."""
        patches = [p for image in images for p in _patches(image.astype(float))]
        patches = sorted(patches, key=lambda p: np.ptp(ndimage.gaussian_filter(p, 3)))[: len(patches) // 4]
        rests = [p - ndimage.gaussian_filter(p, 5) for p in patches]
        along = np.mean([(r[1:] * r[:-1]).mean() / r.var() for r in rests])
        across = np.mean([(r[:, 1:] * r[:, :-1]).mean() / r.var() for r in rests])
        return np.array([np.mean([image[image > 5].mean() for image in images]) / 100, along, across])

    np.testing.assert_allclose(summary(made), summary(real), atol=0.2)


def _patches(image: np.ndarray, size: int = 16) -> list[np.ndarray]:
    corners = [(y, x) for y in range(0, image.shape[0] - size, 8) for x in range(0, image.shape[1] - size, 8)]
    patches = [image[y : y + size, x : x + size] for y, x in corners]
    return [patch for patch in patches if patch.min() > 8 and 35 < patch.mean() < 170]


# --- the cache


def test_a_picture_is_rendered_once(source, monkeypatch):
    rows = list(source.rows())
    first = source.read(rows[30])
    monkeypatch.setattr(plugin, "render", None)
    np.testing.assert_array_equal(source.read(rows[30]), first)
    assert first.flags.writeable
    with pytest.raises(TypeError):
        source.read(rows[31])


def test_a_damaged_record_is_not_there(tmp_path):
    cache = PictureCache(tmp_path, 8)
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    cache.put("a", 3, picture)
    np.testing.assert_array_equal(cache.get("a", 3), picture)
    assert cache.get("a", 1) is None  # a hole
    assert cache.get("a", 4) is None  # past the end
    assert cache.get("b", 0) is None
    damaged = bytearray((tmp_path / "a").read_bytes())
    damaged[3 * 68 + 5] ^= 1
    (tmp_path / "a").write_bytes(damaged)
    assert cache.get("a", 3) is None


WRITER = """
import sys, pathlib, numpy
from ussl.phantom.cache import PictureCache
cache = PictureCache(pathlib.Path(sys.argv[1]), 16)
for slot in range(60):
    cache.put("shared", slot, numpy.full((16, 16), slot, numpy.uint8))
    other = slot * 7 % 60
    seen = cache.get("shared", other)
    assert seen is None or (seen == other).all()
"""


def test_several_processes_write_one_file_at_once(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) for _ in range(2)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    cache = PictureCache(tmp_path, 16)
    for slot in range(60):
        np.testing.assert_array_equal(cache.get("shared", slot), np.full((16, 16), slot))


def test_a_folder_that_cannot_be_written_is_said_once_and_done_without(tmp_path, caplog):
    (tmp_path / "file").touch()
    source = PhantomSource(images=2, size=32, cache=str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        pictures = [source.read(row) for row in source.rows()]
    assert [picture.shape for picture in pictures] == [(32, 32)] * 2
    assert len(caplog.records) == 1
    assert "not cached" in caplog.text


def test_a_full_disk_ends_caching_and_nothing_else(tmp_path, caplog, monkeypatch):
    source = PhantomSource(images=2, size=32, cache=str(tmp_path))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with caplog.at_level(logging.WARNING):
        pictures = [source.read(row) for row in source.rows()]
    assert len(pictures) == 2
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def test_the_cache_lies_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = PhantomSource(images=1, size=32)
    source.read(next(source.rows()))
    (file,) = (path for path in (tmp_path / "ussl").rglob("*") if path.is_file())
    assert file.stat().st_size == 32 * 32 + 4


# --- the user's mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": 0}, "at least 1"),
        ({"images": 10, "patients": 11}, "1 to 10"),
        ({"patients": 0}, "1 to 2000"),
        ({"size": 16}, "32 to 1024"),
        ({"snr": float("nan")}, "0 (noise) to 120"),
        ({"seed": -1}, "0 or a positive number"),
        ({"organs": []}, "once"),
        ({"organs": ["liver", "liver"]}, "once"),
        ({"organs": ["livre"]}, "did you mean 'liver'"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_what_to_write(options, said):
    with pytest.raises(ValueError) as error:
        PhantomSource(**options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_row_of_other_data_is_refused(source):
    with pytest.raises(ValueError, match="not a phantom's: it lacks seed"):
        source.read({"path": "a.png"})
    row = next(source.rows())
    with pytest.raises(ValueError, match="cannot be 'mild'"):
        source.read({**row, "label": "mild"})


def test_the_contact_sheet_is_written(tmp_path, capsys, ultrasound):
    from ussl.phantom.__main__ import main

    out = tmp_path / "sheet.png"
    arguments = ["--out", str(out), "--organs", "liver", "muscle", "--size", "32", "--count", "2"]
    main([*arguments, "--real", str(ultrasound / "manifest.csv")])
    assert out.stat().st_size > 1000
    assert "pictures" in capsys.readouterr().out


def test_the_source_is_offered():
    assert plugin.ussl_sources() == {"phantom": PhantomSource}
