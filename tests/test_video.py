"""Videos, frame by frame: exactly those that decoding from the start gives."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from ussl.data import videos  # noqa: E402
from ussl_plugins.sources.video import Video  # noqa: E402

COARSE = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
NOISE = np.kron(COARSE, np.ones((8, 8, 1), np.uint8))  # patches of colour, which survive compression
KINDS = {  # what the encoder is, and whether it is asked for frames that depend on later ones
    "b.mp4": ("libx264", {"bf": "3"}),
    "open.mp4": ("libx264", {"bf": "3", "x264-params": "open-gop=1:keyint=12"}),
    "b.mkv": ("libx264", {"bf": "3"}),
    "B.MOV": ("libx264", {"bf": "3"}),
    "m.avi": ("mjpeg", {}),
    "b.mpg": ("mpeg2video", {"bf": "2"}),
    "old.mpeg": ("mpeg1video", {"bf": "2"}),  # its frames have no times
    "v.webm": ("libvpx", {}),
    "w.wmv": ("wmv2", {}),
}


def pictures(count, colour=True):
    frames = [np.roll(NOISE, 3 * i, 1) for i in range(count)]
    return frames if colour else [np.repeat(frame[..., :1], 3, -1) for frame in frames]


def write(path, frames, codec="libx264", options=None, pixels="yuv420p"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else pixels
        stream.options = options or {}
        stream.codec_context.gop_size = 12
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def decoded(path):
    """All frames, from the first to the last."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def rows(path, **options):
    source = Video(path=path, **options)
    return [row for item in source.listing() for row in source.expand(item)]


def refusal(path):
    with pytest.raises(ValueError) as caught:
        rows(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", KINDS)
def test_any_frame_is_the_one_that_decoding_from_the_start_gives(tmp_path, name):
    codec, options = KINDS[name]
    path = write(tmp_path / name, pictures(70), codec, options)
    expected, found = decoded(path), rows(path)
    assert [row["frame"] for row in found] == list(range(70))
    assert len(expected) == 70
    order = np.random.default_rng(1).permutation(70)
    for k in [*order[:25], 69, 0, 1, 2, 40]:
        np.testing.assert_array_equal(Video().read(found[k]), expected[k])
    for k in (5, 50, 4):  # as a manifest in text has it, and without its time
        text = {name: str(value) for name, value in found[k].items()}
        np.testing.assert_array_equal(Video().read(text), expected[k])
        np.testing.assert_array_equal(Video().read({"path": str(path), "frame": k}), expected[k])


def test_frames_in_order_are_decoded_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", pictures(20))
    opened = []
    monkeypatch.setattr(videos._Player, "_open", lambda self, was=videos._Player._open: (opened.append(1), was(self)))
    for row in rows(path):
        Video().read(row)
    assert len(opened) == 2  # to count them, and to read them


def test_a_file_that_changed_is_opened_again(tmp_path):
    path = write(tmp_path / "a.mp4", pictures(4))
    (first, *_) = rows(path)
    Video().read(first)
    write(path, pictures(9)[5:])
    np.testing.assert_array_equal(Video().read(first), decoded(path)[0])


def test_a_colourless_video_has_one_channel(tmp_path):
    path = write(tmp_path / "a.mp4", pictures(3, colour=False))
    grey = Video().read(rows(path)[1])
    assert grey.shape == (48, 64)
    assert np.abs(grey - decoded(path)[1].mean(-1)).max() <= 9
    path = write(tmp_path / "b.avi", pictures(3, colour=False), "ffv1", pixels="gray")
    assert Video().read(rows(path)[1]).shape == (48, 64)


def test_a_few_coloured_pixels_keep_the_colour(tmp_path):
    frames = pictures(2, colour=False)
    for frame in frames:
        frame[10:14, 10:14] = 250, 200, 0
    assert Video().read(rows(write(tmp_path / "a.mp4", frames))[0]).shape == (48, 64, 3)


def test_a_video_that_was_filmed_sideways_is_upright(tmp_path):
    upright = np.zeros((64, 48, 3), np.uint8)
    upright[:32, :24] = 255  # its upper left is white
    path = write(tmp_path / "a.mp4", [np.rot90(upright).copy()] * 3)
    body = path.read_bytes()
    track = body.index(b"tkhd")
    place = body.index(np.array([65536, 0, 0, 0, 65536], ">i4").tobytes(), track)
    clockwise = np.array([0, 65536, 0, -65536, 0], ">i4").tobytes()  # a quarter turn, as telephones write it
    path.write_bytes(body[:place] + clockwise + body[place + 20 :])
    picture = Video().read(rows(path)[0])
    assert picture.shape == (64, 48)
    assert np.abs(picture.astype(int) - upright[..., 0]).max() < 40


def test_every_stride_th_frame_is_a_row(tmp_path):
    path = write(tmp_path / "a.mp4", pictures(7))
    assert [row["frame"] for row in rows(path, stride=3)] == [0, 3, 6]
    with pytest.raises(ValueError, match=r"^stride is 0: write 1"):
        Video(stride=0)


def test_a_video_is_a_group_named_by_its_place(tmp_path):
    write(tmp_path / "Heart" / "scan 1.mp4", pictures(1))
    write(tmp_path / "Heart" / "scan 2.AVI", pictures(1), "mjpeg")
    (tmp_path / "notes.txt").write_text("none")
    source = Video(path=tmp_path, organ="heart", label="normal")
    found = [row for item in source.listing() for row in source.expand(item)]
    assert [row["video"] for row in found] == [f"{tmp_path.name}/Heart/scan 1", f"{tmp_path.name}/Heart/scan 2"]
    assert all(row["patient"] == row["video"] and row["group_kind"] == "video" for row in found)
    assert {(row["organ"], row["label"], row["source"], row["reader"]) for row in found} == {
        ("heart", "normal", "video", "video")
    }
    assert source.aside == {".txt files": 1}
    (row,) = rows(tmp_path / "Heart" / "scan 1.mp4")
    assert row["video"] == "scan 1"


def test_a_video_that_breaks_off_keeps_the_frames_that_exist(tmp_path):
    path = write(tmp_path / "a.mp4", pictures(40), options={"bf": "0"})
    with av.open(str(path)) as container:
        half = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size][19]
    whole = decoded(path)
    front = path.read_bytes()
    at = front.index(b"mdat") - 4
    moov = front[front.index(b"moov") - 4 :]
    assert front.index(b"moov") > at  # its index is at its end, so that a cut file has none
    path.write_bytes(front[: half + 3])
    assert refusal(path) == "damaged or cut short: no video can be read from it"
    path.write_bytes(front[:half] + bytes(len(front) - half - len(moov)) + moov)  # the second half is lost
    *found, last = rows(path)
    assert "rejected" in last
    assert last["rejected"].startswith("damaged or cut short: of its 40 frames ")
    assert 15 <= len(found) <= 20
    np.testing.assert_array_equal(Video().read(found[7]), whole[7])
    path = write(tmp_path / "b.mpg", pictures(40), "mpeg2video")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 5 < len(rows(path)) < 35


@pytest.mark.parametrize("body", [b"", b"no video at all" * 50, b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"])
def test_what_is_no_video_is_refused_in_one_line(tmp_path, body, capfd):
    (tmp_path / "a.mp4").write_bytes(body)
    assert refusal(tmp_path / "a.mp4") == "damaged or cut short: no video can be read from it"
    assert capfd.readouterr().err == ""


def test_a_playlist_cannot_lead_to_other_files(tmp_path):
    write(tmp_path / "secret.ts", pictures(3), "mpeg2video")
    (tmp_path / "a.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n")
    assert "no video" in refusal(tmp_path / "a.mp4")


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert refusal(tmp_path / "a.mp4") == "holds no video"


def test_frames_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", pictures(2))
    monkeypatch.setattr("ussl.data.pictures.MAX_PIXELS", 3000)
    assert refusal(path).startswith("64 x 48 pixels a frame: more than ")


def test_a_frame_that_is_not_there_is_named(tmp_path):
    path = write(tmp_path / "a.mp4", pictures(2))
    with pytest.raises(ValueError, match=r"a\.mp4: has no frame 2, counted from 0, that can be decoded$"):
        Video().read({"path": str(path), "frame": 2})


def test_a_video_that_is_gone_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"a\.mp4: no such file or directory$"):
        Video().read({"path": str(tmp_path / "a.mp4"), "frame": 0})


def test_a_path_that_is_none_says_what_to_write(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    for path, words in (
        (None, "where are the videos"),
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "a.png", "neither a folder nor a video"),
    ):
        with pytest.raises(ValueError, match=words):
            list(Video(path=path).listing())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", pictures(1))
    monkeypatch.setitem(sys.modules, "av", None)
    assert refusal(path) == "reading video needs a package: pip install 'ultrasound-ssl[video]'"


def test_a_source_that_has_read_goes_to_other_processes(tmp_path):
    path = write(tmp_path / "a.mp4", pictures(2))
    source = Video(path=Path(path))
    row = rows(path)[0]
    source.read(row)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(row), decoded(path)[0])
