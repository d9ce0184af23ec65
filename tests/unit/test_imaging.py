"""Reading, resizing, ranges and class channels of images and label maps."""

import dataclasses
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medsegdiff_jax import imaging
from medsegdiff_jax.types import InputError, Modality, Task

BINARY = Task(("lesion",), (255,), True, 3)
EXCLUSIVE = Task(("lesion", "core"), (1, 4), True, 1)
REGIONS = Task(("disc", "cup", "vessel"), (1, 2, 4), False, 3)

# Smallest half-axis, in pixels of the coarser grid, from which a disc's area is kept within 1%. A
# grid counts the area of a disc with an error of about 0.8 sqrt(r) pixels (Gauss's circle problem),
# 0.26 r^-1.5 of the area, and several times as much where the centre lies on a symmetry of the
# grid: the worst of 1200 discs was 1.3% at r = 28, 0.99% at 32 and 0.93% at 36.
SMALLEST_RADIUS = 40


def save(path, array, **kwargs):
    """Writes an array with Pillow and returns the path."""
    Image.fromarray(array).save(path, **kwargs)
    return path


@settings(max_examples=60)
@given(
    radius=st.floats(SMALLEST_RADIUS, 2 * SMALLEST_RADIUS),
    stretch=st.tuples(st.floats(0.5, 3.0), st.floats(0.5, 3.0)),
    margin=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    shift=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_resize_labels_keeps_the_area_of_a_disc(radius, stretch, margin, shift):
    # The coarser grid of each axis sees a half-axis of `radius`: shrinking starts from more.
    side = [int(np.ceil(2 * radius)) + m for m in margin]
    source = [round(s * max(f, 1.0)) for s, f in zip(side, stretch, strict=True)]
    target = [round(s / min(f, 1.0)) for s, f in zip(side, stretch, strict=True)]
    half = [radius * n / s for n, s in zip(source, side, strict=True)]
    centre = [h + u * (n - 2 * h) for h, u, n in zip(half, shift, source, strict=True)]
    rows, columns = np.mgrid[: source[0], : source[1]] + 0.5
    inside = ((rows - centre[0]) / half[0]) ** 2 + ((columns - centre[1]) / half[1]) ** 2 <= 1
    resized = imaging.resize_labels(inside.astype(np.int32), tuple(target))
    assert resized.shape == tuple(target)
    assert abs(resized.mean() / inside.mean() - 1) <= 0.01


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    source=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    target=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_resize_labels_takes_the_label_with_most_area_and_never_dilates(seed, source, target):
    labels = np.random.default_rng(seed).integers(0, 3, source).astype(np.uint8)
    # Exact areas: repeat each pixel target-fold and count in blocks of source.
    fine = np.kron(labels, np.ones(target, np.uint8))
    blocks = fine.reshape(target[0], source[0], target[1], source[1])
    areas = np.stack([(blocks == value).sum(axis=(1, 3)) for value in range(3)], axis=-1)
    resized = imaging.resize_labels(labels, target)
    np.testing.assert_array_equal(resized, areas.argmax(axis=-1))  # first: background at a tie
    assert resized.dtype == labels.dtype


def test_a_half_covered_pixel_stays_background():
    labels = np.tile(np.array([0, 7], np.int32), (4, 4))  # every second column
    assert not imaging.resize_labels(labels, (4, 4)).any()
    assert not imaging.resize_labels(labels, (2, 2)).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 12), (90, 70)])
def test_resize_image_keeps_constants_and_the_mean(dtype, channels, size):
    top = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    constant = np.full((48, 48, channels), 0.7 * top, dtype)
    resized = imaging.resize_image(constant, size)
    assert resized.shape == (*size, channels) and resized.dtype == dtype
    np.testing.assert_allclose(resized, np.full(resized.shape, constant[0, 0, 0]), rtol=1e-6)
    noise = (np.random.default_rng(0).random((48, 48, channels)) * top).astype(dtype)
    np.testing.assert_allclose(imaging.resize_image(noise, size).mean(), noise.mean(), rtol=0.01)


def test_resize_image_is_antialiased():
    # One-pixel stripes hold nothing that survives a shrink by four but their mean.
    stripes = np.zeros((64, 64, 1), np.float32)
    stripes[:, ::2] = 1.0
    inner = imaging.resize_image(stripes, (16, 16))[2:-2, 2:-2]
    np.testing.assert_allclose(inner, 0.5, atol=1e-6)


def test_resize_probability_stays_in_range_and_moves_no_edge():
    step = np.zeros((8, 8, 2), np.float32)
    step[:, 4:, 0], step[..., 1] = 1.0, 0.25
    resized = imaging.resize_probability(step, (16, 16))
    assert resized.dtype == np.float32 and resized.min() >= 0 and resized.max() <= 1
    np.testing.assert_array_equal(resized[..., 0] >= 0.5, np.tile(np.arange(16) >= 8, (16, 1)))
    np.testing.assert_allclose(resized[..., 1], 0.25)


GREY = np.random.default_rng(1).integers(0, 256, (5, 7), dtype=np.uint8)
RGB = np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_eight_bit_files_are_read_exactly(tmp_path, suffix):
    grey = imaging.read_image(save(tmp_path / f"grey.{suffix}", GREY))
    colour = imaging.read_image(save(tmp_path / f"rgb.{suffix}", RGB))
    assert grey.dtype == colour.dtype == np.uint8
    np.testing.assert_array_equal(grey, GREY[..., None])
    np.testing.assert_array_equal(colour, RGB)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_both_bytes(tmp_path, suffix):
    deep = (GREY.astype(np.uint16) << 8) + 13
    image = imaging.read_image(save(tmp_path / f"deep.{suffix}", deep))
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image[..., 0], deep)


def test_float_tiff_is_float32(tmp_path):
    values = (GREY / 7 - 11).astype(np.float32)
    image = imaging.read_image(save(tmp_path / "float.tif", values))
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image[..., 0], values)


def test_jpeg_is_read(tmp_path):
    flat = np.full((16, 16, 3), (90, 120, 60), np.uint8)
    image = imaging.read_image(save(tmp_path / "photo.jpg", flat, quality=95))
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image, flat, atol=3)


def test_palette_alpha_and_one_bit(tmp_path):
    palette = Image.fromarray(GREY % 3)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.convert("P").save(tmp_path / "palette.png")
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
    np.testing.assert_array_equal(imaging.read_image(tmp_path / "palette.png"), colours[GREY % 3])
    np.testing.assert_array_equal(imaging.read_labels(tmp_path / "palette.png"), GREY % 3)
    save(tmp_path / "alpha.png", np.dstack([RGB, GREY]))
    np.testing.assert_array_equal(imaging.read_image(tmp_path / "alpha.png"), RGB)
    bits = GREY > 127
    save(tmp_path / "bits.png", bits)
    np.testing.assert_array_equal(
        imaging.read_image(tmp_path / "bits.png")[..., 0], bits * np.uint8(255)
    )
    np.testing.assert_array_equal(imaging.read_labels(tmp_path / "bits.png"), bits)


def test_labels_of_grey_colour_and_deep_files(tmp_path):
    labels = imaging.read_labels(save(tmp_path / "grey.png", GREY))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, GREY)
    save(tmp_path / "equal.png", np.dstack([GREY] * 3))
    np.testing.assert_array_equal(imaging.read_labels(tmp_path / "equal.png"), GREY)
    save(tmp_path / "alpha.png", np.dstack([GREY] * 3 + [255 - GREY]))
    np.testing.assert_array_equal(imaging.read_labels(tmp_path / "alpha.png"), GREY)
    deep = GREY.astype(np.uint16) + 1000
    np.testing.assert_array_equal(imaging.read_labels(save(tmp_path / "deep.png", deep)), deep)


def test_what_is_no_image_is_named(tmp_path):
    whole = save(tmp_path / "whole.png", RGB).read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("truncated.png", "text.png", "empty.jpg", "missing.png"):
        for read in (imaging.read_image, imaging.read_labels):
            with pytest.raises(InputError, match=name) as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_pixels_are_named(tmp_path, value):
    pixels = np.zeros((4, 4), np.float32)
    pixels[1, 2] = value
    path = save(tmp_path / "float.tif", pixels)
    with pytest.raises(InputError, match="float.tif.*non-finite"):
        imaging.read_image(path)
    with pytest.raises(InputError, match="float.tif"):
        imaging.read_labels(path)


@pytest.mark.parametrize(("bits", "samples"), [(2, [0, 1, 2, 3]), (4, [0, 5, 10, 15])])
def test_labels_of_few_bits_are_those_of_the_file(tmp_path, bits, samples):
    row = sum(value << (bits * (3 - i)) for i, value in enumerate(samples))
    chunks = {
        b"IHDR": struct.pack(">2I5B", 4, 1, bits, 0, 0, 0, 0),  # grey
        b"IDAT": zlib.compress(b"\0" + row.to_bytes(4 * bits // 8, "big")),
        b"IEND": b"",
    }
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    ]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert imaging.read_labels(tmp_path / "a.png").tolist() == [samples]
    assert imaging.read_image(tmp_path / "a.png").max() == 255


def test_masks_that_are_no_labels_are_named(tmp_path):
    with pytest.raises(InputError, match="rgb.png.*colours"):
        imaging.read_labels(save(tmp_path / "rgb.png", RGB))
    for name, value in (("half.tif", 0.5), ("minus.tif", -1.0)):
        path = save(tmp_path / name, np.full((4, 4), value, np.float32))
        with pytest.raises(InputError, match=f"{name}.*integers"):
            imaging.read_labels(path)


@pytest.mark.parametrize("orientation", [2, 3, 6])
def test_a_turned_tiff_is_refused_and_an_upright_one_read(tmp_path, orientation):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = tmp_path / "a.tif"
    Image.fromarray(pixels).save(path, tiffinfo={274: 1})
    np.testing.assert_array_equal(imaging.read_image(path)[..., 0], pixels)
    Image.fromarray(pixels).save(path, tiffinfo={274: orientation})
    for read in (imaging.read_image, imaging.read_labels):
        with pytest.raises(InputError, match=rf"a\.tif: is stored turned .* {orientation}"):
            read(path)


def test_inverted_labels_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(path, tiffinfo={262: 0})
    with pytest.raises(InputError, match=r"a\.tif: its labels are stored inverted"):
        imaging.read_labels(path)
    Image.fromarray(np.eye(4) > 0).save(path)  # one bit is as it is displayed
    np.testing.assert_array_equal(imaging.read_labels(path) > 0, np.eye(4) > 0)


def test_a_stack_of_frames_is_refused(tmp_path):
    frame = Image.fromarray(GREY)
    frame.save(tmp_path / "stack.tif", save_all=True, append_images=[frame])
    with pytest.raises(InputError, match="stack.tif.*2 frames"):
        imaging.read_image(tmp_path / "stack.tif")


def test_unit_range():
    np.testing.assert_array_equal(
        imaging.to_unit(np.array([0, 51, 255], np.uint8)), np.float32([0, 0.2, 1])
    )
    np.testing.assert_array_equal(
        imaging.to_unit(np.array([0, 13107, 65535], np.uint16)), np.float32([0, 0.2, 1])
    )
    within = np.array([0.2, 0.7], np.float32)
    np.testing.assert_array_equal(imaging.to_unit(within), within)
    np.testing.assert_array_equal(
        imaging.to_unit(np.array([-1, 1, 3], np.float32)), np.float32([0, 0.5, 1])
    )
    np.testing.assert_array_equal(imaging.to_unit(np.full(3, 9, np.float32)), np.zeros(3))


@settings(max_examples=30)
@given(scale=st.floats(0.05, 1.0), offset=st.floats(-0.5, 0.5))
def test_zscore_ignores_scale_and_offset(scale, offset):
    image = np.random.default_rng(0).random((8, 9, 3)).astype(np.float32)
    normal = imaging.normalize(image, BINARY)
    np.testing.assert_allclose(normal.mean(axis=(0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(normal.std(axis=(0, 1)), 1, rtol=1e-5)
    changed = (image * np.float32(scale) + np.float32(offset)).astype(np.float32)
    np.testing.assert_allclose(imaging.normalize(changed, BINARY), normal, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.1, 0.3, 1.0, -2.0, 1e4])
def test_a_constant_picture_becomes_zero_whatever_the_rounding(value):
    flat = np.full((4, 4, 1), value, np.float32)
    noise = np.random.default_rng(0).integers(-2, 3, flat.shape)
    nearly = (flat * (1 + noise * np.finfo(np.float32).eps)).astype(np.float32)
    for image in (flat, nearly):
        np.testing.assert_array_equal(imaging.normalize(imaging.to_unit(image), BINARY), 0)


@pytest.mark.parametrize("largest", [1e-12, 1e-9, 1e-6, 1e-3, 1e6])
def test_the_unit_of_a_picture_does_not_matter(largest):
    """Diffusivity is 1e-9 m^2/s; such a picture was once taken for a constant."""
    image = np.random.default_rng(0).random((8, 9, 1)).astype(np.float32)
    scaled = image * np.float32(largest)
    expected = imaging.normalize(image, BINARY)
    for given_image in (scaled, imaging.to_unit(scaled)):
        np.testing.assert_allclose(imaging.normalize(given_image, BINARY), expected, atol=1e-5)
    # Augmentation adds up to 0.2 to what it is given.
    assert imaging.to_unit(scaled).max() > 0.99


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["uint8", "uint16", "unit", "signed", "dark"]),
    channels=st.sampled_from([1, 3]),
)
def test_ordinary_pictures_are_what_they_were(seed, kind, channels):
    """Bit for bit the plain formula, by which models have been trained."""
    rng = np.random.default_rng(seed)
    image = {
        "uint8": lambda shape: rng.integers(0, 256, shape, np.uint8),
        "uint16": lambda shape: rng.integers(0, rng.integers(2, 65536), shape, np.uint16),
        "unit": lambda shape: rng.random(shape, np.float32),
        "signed": lambda shape: rng.normal(40, 300, shape).astype(np.float32),
        "dark": lambda shape: 0.01 * rng.random(shape, np.float32),
    }[kind]((7, 8, channels))
    if image.dtype.kind == "u":
        unit = image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    elif kind == "signed":
        unit = (image - image.min()) / (image.max() - image.min())
    else:
        unit = image
    mean, std = (f(axis=(0, 1), dtype=np.float64) for f in (unit.mean, unit.std))
    expected = ((unit - mean) / np.where(std > 1e-6, std, 1.0)).astype(np.float32)
    np.testing.assert_array_equal(imaging.normalize(imaging.to_unit(image), BINARY), expected)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64, np.int16, np.int64, bool])
def test_a_dtype_of_unknown_range_is_refused(dtype):
    with pytest.raises(InputError, match=f"uint8, uint16 or floats, not {np.dtype(dtype)}"):
        imaging.to_unit(np.ones((4, 4, 1), dtype))


def test_slices_keep_what_their_intensities_mean():
    scan = dataclasses.replace(BINARY, modalities=(Modality("CT", (-100.0, 100.0)),))
    image = np.array([0.0, 0.3, 1.0], np.float32).reshape(1, 3, 1)
    np.testing.assert_allclose(imaging.normalize(image, scan).ravel(), [-1, -0.4, 1], atol=1e-6)


def test_match_channels():
    grey = imaging.match_channels(RGB, 1)
    np.testing.assert_allclose(grey[..., 0], RGB @ [0.299, 0.587, 0.114], atol=0.51)
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(imaging.match_channels(GREY[..., None], 3), np.dstack([GREY] * 3))
    with pytest.raises(InputError, match="2 channels, which come last, cannot serve 3"):
        imaging.match_channels(np.zeros((2, 2, 2)), 3)


@pytest.mark.parametrize(
    ("task", "known", "unknown", "channels"),
    [(BINARY, (0, 255), 254, 1), (EXCLUSIVE, (0, 1, 4), 5, 3), (REGIONS, range(8), 8, 3)],
)
def test_masks_and_labels_are_inverse(task, known, unknown, channels):
    labels = np.random.default_rng(0).choice(list(known), (2, 6, 5))
    mask = imaging.labels_to_mask(labels, task)
    assert mask.shape == (2, 6, 5, channels) and mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    np.testing.assert_array_equal(imaging.mask_to_labels(mask, task), labels)
    labels[1, 2, 3] = unknown
    with pytest.raises(InputError, match=str(unknown)):
        imaging.labels_to_mask(labels, task)


def test_channels_are_what_the_task_says():
    exclusive = imaging.labels_to_mask(np.array([[0, 1, 4]]), EXCLUSIVE)
    np.testing.assert_array_equal(exclusive[0], np.eye(3))
    regions = imaging.labels_to_mask(np.array([[0, 3, 6]]), REGIONS)
    np.testing.assert_array_equal(regions[0], [[0, 0, 0], [1, 1, 0], [0, 1, 1]])


@pytest.mark.parametrize(
    "array", [GREY, GREY[..., None], RGB, RGB[::-1].swapaxes(0, 1), GREY.astype(np.uint16) * 257]
)
def test_written_png_is_read_back(tmp_path, array):
    imaging.write_png(tmp_path / "new" / "image.png", array)
    read = imaging.read_image(tmp_path / "new" / "image.png")
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array.reshape(read.shape))
    assert os.listdir(tmp_path / "new") == ["image.png"]


def test_a_failing_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "mask.png"
    imaging.write_png(path, GREY)
    before = path.read_bytes()

    def fill_the_disk(self, file, format):
        file.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        imaging.write_png(path, 255 - GREY)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["mask.png"]


def test_write_png_refuses_other_dtypes(tmp_path):
    with pytest.raises(ValueError, match="float64"):
        imaging.write_png(tmp_path / "mask.png", np.zeros((2, 2)))
    assert not os.listdir(tmp_path)
