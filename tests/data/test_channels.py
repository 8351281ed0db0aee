"""Images of one channel or many: reading, training and prediction."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.checkpoints.adapt import adapt_first_convolution, adapt_input_channels
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.data.batching import collate, normalization_stats
from detrkit.data.categories import default_categories
from detrkit.data.images import open_image, read_image, read_image_size
from detrkit.errors import DatasetError
from detrkit.structures import Annotations, Sample

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 5), dtype=np.uint8)


def test_arrays_keep_every_channel(tmp_path: Path) -> None:
    np.save(tmp_path / "five.npy", PIXELS)
    np.save(tmp_path / "deep.npy", PIXELS.astype(np.uint16) * 257)
    np.save(tmp_path / "flat.npy", PIXELS[:, :, 0])
    assert read_image_size(tmp_path / "five.npy") == (20, 30)
    assert np.array_equal(read_image(tmp_path / "five.npy", channels=5).permute(1, 2, 0), PIXELS)
    assert np.array_equal(read_image(tmp_path / "deep.npy", channels=5).permute(1, 2, 0), PIXELS)
    assert np.array_equal(read_image(tmp_path / "flat.npy", channels=1)[0], PIXELS[:, :, 0])
    assert np.array_equal(np.asarray(open_image(tmp_path / "five.npy")), PIXELS[:, :, :3])
    with pytest.raises(DatasetError, match=r"five\.npy: has 5 channels, expected 3"):
        read_image(tmp_path / "five.npy")


def test_pages_of_a_tiff_are_channels(tmp_path: Path) -> None:
    pages = [Image.fromarray(PIXELS[:, :, channel]) for channel in range(5)]
    pages[0].save(tmp_path / "five.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(read_image(tmp_path / "five.tif", channels=5).permute(1, 2, 0), PIXELS)
    with pytest.raises(DatasetError, match="does not have 6 channels"):
        read_image(tmp_path / "five.tif", channels=6)


def test_rotated_tiff_has_one_size_and_its_pixels(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.ascontiguousarray(PIXELS[:, :, channel])) for channel in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    pages[0].save(tmp_path / "one.tif", exif=exif)
    pages[0].save(tmp_path / "three.tif", save_all=True, append_images=pages[1:])
    upright = np.rot90(PIXELS[:, :, 0], -1)
    assert read_image_size(tmp_path / "one.tif") == (30, 20)
    for claimed in (None, (30, 20)):
        assert np.array_equal(read_image(tmp_path / "one.tif", claimed, channels=1)[0], upright)
    assert np.array_equal(read_image(tmp_path / "three.tif").permute(1, 2, 0), PIXELS[:, :, :3])


def test_16_bit_and_float_gray_images_keep_their_range(tmp_path: Path) -> None:
    gray = PIXELS[:, :, 0]
    for name, image in {
        "big.tif": Image.frombytes("I;16B", (30, 20), (gray.astype(">u2") * 257).tobytes()),
        "shares.tif": Image.fromarray((gray / 255).astype(np.float32)),
        "levels.tif": Image.fromarray(gray.astype(np.float32)),
    }.items():
        image.save(tmp_path / name)
        assert np.abs(read_image(tmp_path / name, channels=1)[0].numpy().astype(int) - gray).max() <= 1, name
    holes = (gray / 255).astype(np.float32)
    holes[0, 0] = np.nan
    Image.fromarray(holes).save(tmp_path / "holes.tif")
    read = read_image(tmp_path / "holes.tif", channels=1)[0].numpy().astype(int)
    assert np.abs(read - gray).reshape(-1)[1:].max() <= 1


def test_gray_and_alpha_equal_pillow_conversions(tmp_path: Path) -> None:
    rgba = Image.fromarray(PIXELS[:, :, :4], "RGBA")
    rgba.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", channels=4).permute(1, 2, 0), PIXELS[:, :, :4])
    Image.fromarray(PIXELS[:, :, 0]).save(tmp_path / "gray.png")
    assert np.array_equal(read_image(tmp_path / "gray.png", channels=1)[0], PIXELS[:, :, 0])
    Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png", channels=1)[0], PIXELS[:, :, 0])


def test_array_files_execute_no_code_and_allocate_no_more_than_their_size(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([print, len], dtype=object), allow_pickle=True)
    np.save(tmp_path / "floats.npy", np.zeros((4, 4, 3)))
    np.save(tmp_path / "empty.npy", np.zeros((0, 4, 3), np.uint8))
    np.save(tmp_path / "first.npy", np.zeros((400, 2, 2), np.uint8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "floats.npy").read_bytes()[:90])
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (900000, 900000, 3), }".ljust(117) + b"\n"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04" + bytes(50))
    (tmp_path / "words.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00" + b"{'descr': (((((\n")
    for path in sorted(tmp_path.glob("*.npy")):
        if path.name != "first.npy":
            with pytest.raises(DatasetError, match=path.name):
                read_image(path)
    with pytest.raises(DatasetError, match="has 2 channels, expected 3"):
        read_image(tmp_path / "first.npy")


def test_normalization_of_other_numbers_of_channels() -> None:
    assert normalization_stats(3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalization_stats(1) == ((0.449,), (0.226,))
    assert normalization_stats(5)[0] == (0.485, 0.456, 0.406, 0.449, 0.449)


def test_gray_model_gives_the_output_of_the_rgb_model() -> None:
    """By hand: filters 1, 2, 3 on one gray value g give 6 g; the one filter of the gray model is their sum."""
    weight = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    assert adapt_first_convolution(weight, 1).flatten().tolist() == [6.0]
    torch.testing.assert_close(adapt_first_convolution(weight, 5).flatten(), torch.tensor([0.6, 1.2, 1.8, 1.2, 1.2]))
    torch.testing.assert_close(adapt_first_convolution(weight, 2).flatten(), torch.tensor([3.0, 3.0]))
    state = {"backbone.body.conv1.weight": weight, "else": torch.zeros(2)}
    assert set(adapt_input_channels(state, 1)) == set(state)
    assert adapt_input_channels(state, 3)["backbone.body.conv1.weight"] is weight


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("name", ["detr-tiny", "detr-r18"])
def test_model_with_other_numbers_of_channels_trains_and_predicts(name: str, channels: int, tmp_path: Path) -> None:
    model = detrkit.build_model(
        name, num_classes=2, in_channels=channels, hidden_dim=32, encoder_layers=1, num_queries=4
    )
    pixels = torch.randint(0, 256, (channels, 64, 64), dtype=torch.uint8)
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    batch = collate([Sample(pixels, nothing, 1, (64, 64))])
    assert model(batch.images).boxes.shape == (1, 4, 4)
    path = tmp_path / "model.safetensors"
    save_checkpoint(
        path, Checkpoint(model.state_dict(), model.config, default_categories(2), Preprocessing(image_size=64))
    )
    detector = detrkit.Detector.load(path)
    found = detector.predict(pixels, threshold=0)
    assert found.image is not None
    assert found.image.mode == "RGB"
    colors = torch.zeros(3, 8, 8, dtype=torch.uint8)
    if channels == 1:  # colours are converted, as those of image files
        assert len(detector.predict(colors, threshold=0)) == 4
    else:
        with pytest.raises(DatasetError, match=rf"\({channels}, H, W\)"):
            detector.predict(colors)
