"""Videos: frames, times, orientation, malformed files."""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from detrkit.data import video as videos
from detrkit.data.images import tensor_to_image
from detrkit.data.video import Frame, VideoWriter, camera_address, camera_name, open_camera, open_video
from detrkit.errors import ConfigError, DatasetError

GREYS = [20 * number for number in range(12)]


def write_video(path: Path, size: tuple[int, int] = (66, 48), rate: int = 8) -> Path:
    """Twelve frames, each of its own gray."""
    with VideoWriter(path, Fraction(rate)) as writer:
        for number, gray in enumerate(GREYS):
            writer.add(Image.new("RGB", size, (gray, gray, gray)), number / rate)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4")


def test_every_frame_has_its_number_and_time(video: Path) -> None:
    with open_video(video) as opened:
        assert opened.num_frames == 12
        assert opened.rate == 8
        frames = list(opened)
    assert [frame.number for frame in frames] == list(range(12))
    assert [frame.seconds for frame in frames] == pytest.approx([number / 8 for number in range(12)])
    assert all(frame.pixels.shape == (3, 48, 66) for frame in frames)
    for frame, gray in zip(frames, GREYS, strict=True):
        assert float(frame.pixels.float().mean()) == pytest.approx(gray, abs=4)


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.5, 0.55, 2.0]
    with VideoWriter(tmp_path / "a.mp4", Fraction(10)) as writer:
        for seconds in times:
            writer.add(Image.new("RGB", (32, 32)), seconds)
    with open_video(tmp_path / "a.mp4") as opened:
        assert [frame.seconds for frame in opened] == pytest.approx(times, abs=1e-4)


def test_odd_sizes_are_padded_and_other_sizes_resized(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", Fraction(10)) as writer:
        writer.add(Image.new("RGB", (33, 31), "white"), 0)
        writer.add(Image.new("RGB", (64, 64), "white"), 0.1)
    with open_video(tmp_path / "a.mp4") as opened:
        first, second = (frame.pixels for frame in opened)
    assert first.shape == second.shape == (3, 32, 34)
    assert int(first[:, :30, :30].min()) > 240
    assert int(first[:, -1, :].max()) < 60
    assert int(second[:, -1, -1].min()) > 200


def test_rotated_video_is_read_upright(tmp_path: Path) -> None:
    """White at the top as stored; shown turned left by 90 degrees, white lies on the left."""
    picture = Image.new("RGB", (64, 32))
    picture.paste("white", (0, 0, 64, 8))
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(90)
        container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    with open_video(tmp_path / "a.mp4") as opened:
        (frame,) = opened
    shown = tensor_to_image(frame.pixels)
    assert shown.size == (32, 64)
    assert shown.getpixel((2, 32))[0] > 200  # type: ignore[index]
    assert shown.getpixel((29, 32))[0] < 60  # type: ignore[index]


@pytest.mark.parametrize("content", [b"", b"hello", bytes(3000), b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 8])
def test_file_that_is_not_a_video_is_rejected(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with (
        pytest.raises(DatasetError, match=r"a\.mp4: .*(cannot be opened|no picture)") as caught,
        open_video(tmp_path / "a.mp4") as opened,
    ):
        list(opened)
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match="no such file"), open_video(tmp_path / "b.mp4"):
        pass


def test_playlists_are_rejected(video: Path, tmp_path: Path) -> None:
    """They are read by their content, whatever their name: FFmpeg alone would open what they name."""
    lists = {
        "script.mp4": f"ffconcat version 1.0\nfile {video.name}\n",
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{video.name}\n#EXT-X-ENDLIST\n",
    }
    (tmp_path / video.name).write_bytes(video.read_bytes())
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        with av.open(str(tmp_path / name)) as followed:
            assert followed.streams.video, "without our list of formats, it is followed"
        with pytest.raises(DatasetError, match="cannot be opened"), open_video(tmp_path / name):
            pass


def test_truncated_video_yields_its_frames_and_raises(video: Path, tmp_path: Path) -> None:
    moved = tmp_path / "index_first.mp4"
    with av.open(str(video)) as source, av.open(str(moved), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = moved.read_bytes()
    start = content.index(b"mdat")
    moved.write_bytes(content[: start + (len(content) - start) * 9 // 10])
    frames: list[Frame] = []
    with open_video(moved) as opened, pytest.raises(DatasetError, match=r"ends after|is broken after"):
        frames.extend(opened)
    assert 0 < len(frames) < 12


def test_damaged_videos_decode_or_raise_a_dataset_error(video: Path, tmp_path: Path) -> None:
    import random

    content = bytearray(video.read_bytes())
    chance = random.Random(0)
    for attempt in range(40):
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 8, 60])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path = tmp_path / f"{attempt}.mp4"
        path.write_bytes(bytes(damaged))
        try:
            with open_video(path) as opened:
                for frame in opened:
                    assert frame.pixels.shape[0] == 3
        except DatasetError as error:
            assert "\n" not in str(error)


def test_frames_above_the_size_limit_are_rejected(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "MAX_PIXELS", 1000)
    with pytest.raises(DatasetError, match="66 x 48 pixels"), open_video(video):
        pass


def test_camera_address_on_every_system() -> None:
    assert camera_address("0", "linux") == ("/dev/video0", "v4l2")
    assert camera_address("/dev/video7", "linux") == ("/dev/video7", "v4l2")
    assert camera_address("1", "darwin") == ("1:none", "avfoundation")
    assert camera_address("Front", "win32") == ("video=Front", "dshow")


def test_camera_is_read_like_a_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg's test picture goes through the same door as a camera."""
    monkeypatch.setattr(videos, "camera_address", lambda name, system: ("testsrc=size=64x48:rate=10", "lavfi"))
    with open_camera("0") as camera:
        frames = [frame for frame, _ in zip(camera, range(5), strict=False)]
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_missing_camera_is_rejected() -> None:
    with pytest.raises(DatasetError, match="camera:/dev/nothing: cannot be opened"), open_camera("/dev/nothing"):
        pass


def test_missing_pyav_is_reported(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with (
        pytest.raises(ConfigError, match=r"needs the package av.* pip install 'detrkit\[video\]'"),
        open_video(video),
    ):
        pass


@pytest.mark.parametrize(
    ("aspect", "rotation"), [(Fraction(16, 11), 0), (Fraction(8, 9), 0), (Fraction(16, 11), 90), (Fraction(1), 180)]
)
def test_pixels_that_are_not_square_keep_their_aspect(aspect: Fraction, rotation: int, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 32)))))
        container.mux(stream.encode())
    with open_video(tmp_path / "a.mp4") as opened:
        (frame,) = opened
    assert frame.pixel_aspect == (1 / aspect if rotation == 90 else aspect)
    with VideoWriter(tmp_path / "b.mp4", Fraction(10)) as writer:
        writer.add(tensor_to_image(frame.pixels), 0.0, frame.pixel_aspect)
    with open_video(tmp_path / "b.mp4") as opened:
        (written,) = opened
    assert written.pixel_aspect == frame.pixel_aspect
    assert written.pixels.shape == frame.pixels.shape


def test_sound_is_noticed(video: Path, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        sound = container.add_stream("aac", rate=48000)
        container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 32)))))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48000
        container.mux(sound.encode(silence))
        container.mux(stream.encode())
        container.mux(sound.encode())
    with open_video(tmp_path / "a.mp4") as opened:
        assert opened.has_sound
    with open_video(video) as opened:
        assert not opened.has_sound


@pytest.mark.parametrize(
    ("camera", "shown"),
    [
        ("0", "camera:0"),
        ("/dev/video7", "camera:/dev/video7"),
        ("rtsp://user:secret@127.0.0.1:1/live", "rtsp://127.0.0.1:1/live"),
        ("http://user:p@ss@127.0.0.1:1/a.mjpg", "http://127.0.0.1:1/a.mjpg"),
    ],
)
def test_cameras_are_shown_without_passwords(camera: str, shown: str) -> None:
    assert camera_name(camera) == shown
    if "://" in camera:
        message = f"{shown}: cannot be opened .*stream that can be reached"
        with pytest.raises(DatasetError, match=message) as raised, open_camera(camera):
            pass
        assert "secret" not in str(raised.value)
