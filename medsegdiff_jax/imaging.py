"""Images and label maps: reading, resizing, ranges and class channels, each conversion once.

Arrays are numpy, channels last. An image is [H, W, C] with the values of its file (uint8, uint16 or
float32); a label map is [H, W] of the integers of its file; a mask is [..., H, W, K] of {0, 1}.
"""

import functools
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import sparse

from medsegdiff_jax.atomic import replacing
from medsegdiff_jax.types import InputError, Task, class_mask

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_ROUNDING = 1e-6  # of the magnitude: what float32 leaves of a constant, after a resize too
_DARKEST = 1 / 255  # a picture in [0, 1] that is darker would be black in 8 bits
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_READ_ERRORS += (TypeError, LookupError, struct.error)  # of damaged TIFF directories
_STRETCHED = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey samples of few bits by
_ORIENTATION, _PHOTOMETRIC, _WHITE_IS_ZERO = 274, 262, 0  # TIFF 6.0
_TO_COLOUR = {"P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBX": "RGB", "CMYK": "RGB"}
_TO_COLOUR |= {"YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "1": "L", "LA": "L", "La": "L"}


def reason(error: Exception) -> str:
    """What a library says is wrong, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _open(path: Path) -> Image.Image:
    """Decodes one file completely; InputError if it cannot be read or would lose depth."""
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise InputError(f"{path}: holds {image.n_frames} frames; give one image per file")
            modes = _raw_modes(image)
            # Pillow would drop the low byte of these without a word.
            if image.mode in ("RGB", "RGBA") and any(";16" in mode for mode in modes):
                raise InputError(
                    f"{path}: 16-bit colour is not supported; save it as 8-bit or as 16-bit grey"
                )
            photometric = _upright(image, path).get(_PHOTOMETRIC)
            image.load()
            copy = image.copy()
            copy.info["stretched"] = max((_STRETCHED.get(mode, 1) for mode in modes), default=1)
            copy.info["inverted"] = photometric == _WHITE_IS_ZERO and copy.mode == "L"
            return copy
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise InputError(f"{path}: cannot be read as an image ({reason(error)})") from error


def _upright(image: Image.Image, path: Path) -> Mapping[int, Any]:
    """The tags of a TIFF; InputError if Pillow would turn it, which it does to no other file."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_ORIENTATION, 1) in range(2, 9):
        raise InputError(
            f"{path}: is stored turned or mirrored (TIFF orientation {tags[_ORIENTATION]}), its "
            "mask may not be; save it upright"
        )
    return tags


def _raw_modes(image: Image.Image) -> list[str]:
    """How the samples are stored, in the words of Pillow's decoders."""
    decoders = (tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in image.tile)
    return [word for words in decoders for word in words if isinstance(word, str)]


def _integers(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Pillow's 32-bit integer mode as uint16; InputError outside 0..65535."""
    if pixels.min() < 0 or pixels.max() > 65535:
        raise InputError(f"{path}: integer pixels must lie in 0..65535")
    return pixels.astype(np.uint16)


def is_turned(path: str | os.PathLike) -> bool:
    """Whether viewers turn a readable picture by its EXIF tag, which `read_image` does not."""
    with Image.open(path) as image:
        try:
            return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
        except _READ_ERRORS:
            return False  # damaged, so that viewers do nothing either


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads a PNG, JPEG, TIFF or BMP file as it is stored.

    Palettes become RGB, alpha is dropped, 1-bit becomes {0, 255}. The stored pixel grid is kept:
    an EXIF rotation is not applied, because masks do not carry one.

    Returns:
      [H, W, C] with C 1 or 3: uint8, uint16 (16-bit grey) or float32 (float TIFF).

    Raises:
      InputError: unreadable, truncated, several frames, 16-bit colour, a turned TIFF, or non-finite
        pixels.
    """
    path = Path(path)
    image = _open(path)
    if image.mode in _TO_COLOUR:
        image = image.convert(_TO_COLOUR[image.mode])
    pixels = np.asarray(image)
    if image.mode.startswith("I"):
        pixels = _integers(pixels, path)
    if pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise InputError(f"{path}: holds non-finite pixels (NaN or infinity)")
    return pixels[..., None] if pixels.ndim == 2 else pixels


def read_labels(path: str | os.PathLike) -> np.ndarray:
    """Reads a label map: integers per pixel, palette images by their indices.

    A colour image is taken as grey if its three channels agree; alpha is ignored.

    Returns:
      [H, W] int32, >= 0.

    Raises:
      InputError: unreadable, colours instead of labels, negative or fractional labels.
    """
    path = Path(path)
    image = _open(path)
    if image.info["inverted"]:  # as displayed, or as stored? Labels are not to be guessed
        raise InputError(f"{path}: its labels are stored inverted (TIFF, white is zero); save anew")
    if image.mode in ("PA", "LA", "La"):
        pixels = np.asarray(image)[..., 0]
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        pixels = np.asarray(image.convert("RGB"))
    else:
        pixels = np.asarray(image)
    if pixels.ndim == 3:
        colour = pixels[..., :3]
        if (colour != colour[..., :1]).any():
            raise InputError(f"{path}: a mask holds labels in one channel, this one has colours")
        pixels = colour[..., 0]
    if not np.isfinite(pixels).all() or (pixels < 0).any() or (pixels != np.floor(pixels)).any():
        raise InputError(f"{path}: labels must be integers >= 0")
    return pixels.astype(np.int32) // image.info["stretched"]


def files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of a folder by name without suffix, sorted; hidden files and other suffixes left out.

    Raises:
      InputError: no such folder, or two files with one stem.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((s for s in suffixes if path.name.lower().endswith(s)), None)
        if path.name.startswith(".") or suffix is None:
            continue
        stem = path.name[: -len(suffix)]
        if stem in found:
            raise InputError(f"{folder}: {found[stem].name} and {path.name} share a stem")
        found[stem] = path
    return found


def rater_folders(root: Path) -> dict[str, Path]:
    """Rater -> its folder masks_<rater>/ in `root`, sorted; empty where there are none."""
    folders = sorted(path for path in root.glob("masks_*") if path.is_dir())
    return {path.name.removeprefix("masks_"): path for path in folders}


def read_names(path: str | os.PathLike) -> list[str]:
    """Reads a list of case names, one per line; blank lines and a byte order mark do not count.

    Raises:
      InputError: not UTF-8.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a text file in UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes [H, W, C] to [*size, C], bilinear and antialiased when shrinking; dtype is kept."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    planes = [_resize_plane(image[..., c], size) for c in range(image.shape[-1])]
    resized = np.stack(planes, axis=-1)
    if image.dtype.kind == "u":
        resized = np.clip(np.rint(resized), 0, np.iinfo(image.dtype).max)
    return resized.astype(image.dtype)


def _resize_plane(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    plane = Image.fromarray(plane.astype(np.float32, copy=False))
    return np.asarray(plane.resize((size[1], size[0]), Image.Resampling.BILINEAR))


@functools.lru_cache(maxsize=64)
def _coverage(source: int, target: int) -> sparse.csr_array:
    """[target, source] share of each target pixel's side that each source pixel covers."""
    edges = np.arange(target + 1, dtype=np.float64) * source / target
    pixels = np.arange(source, dtype=np.float64)
    lower = np.maximum(edges[:-1, None], pixels)
    upper = np.minimum(edges[1:, None], pixels + 1)
    return sparse.csr_array(np.maximum(upper - lower, 0) * target / source)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a label map [H, W] to [*size]: each pixel takes the label that covers most of it.

    Exact area coverage, so masks neither grow nor shrink; at a tie the smaller label wins
    (background before lesion). The dtype is kept.
    """
    if labels.shape == tuple(size):
        return labels
    values = np.unique(labels)
    rows = _coverage(labels.shape[0], size[0])
    columns = _coverage(labels.shape[1], size[1])
    best = np.full(size, values[0], dtype=labels.dtype)
    largest = np.zeros(size)
    for value in values:
        area = (columns @ (rows @ (labels == value).astype(np.float64)).T).T
        wins = area > largest + 1e-9  # rounding must not break a tie
        best[wins] = value
        largest[wins] = area[wins]
    return best


def resize_probability(probability: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes [H, W, K] in [0, 1] to [*size, K] float32 in [0, 1], bilinear."""
    planes = [_resize_plane(probability[..., k], size) for k in range(probability.shape[-1])]
    return np.clip(np.stack(planes, axis=-1), 0.0, 1.0)


def to_unit(image: np.ndarray) -> np.ndarray:
    """Brings an image to float32 in [0, 1].

    uint8 is divided by 255 and uint16 by 65535. A float image is kept if it lies in [0, 1] and is
    not black in 8 bits, else (signed, or in units that make it large or tiny) its own minimum and
    maximum become 0 and 1; a constant one, up to rounding, becomes 0.

    Raises:
      InputError: another dtype, whose range is not known.
    """
    if image.dtype.newbyteorder("=") in (np.uint8, np.uint16):
        return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    if image.dtype.kind != "f":
        raise InputError(f"an image is uint8, uint16 or floats, not {image.dtype}")
    image = image.astype(np.float32)
    low, high = image.min(), image.max()
    if low >= 0 and _DARKEST < high <= 1:
        return image
    if high - low <= _ROUNDING * max(abs(low), abs(high)):
        return np.zeros_like(image)
    return (image - low) / (high - low)


def normalize(image: np.ndarray, task: Task) -> np.ndarray:
    """Normalises one image [H, W, C] in [0, 1], float32.

    A picture gets mean 0 and standard deviation 1 per channel; a channel that is constant but for
    rounding, which is relative to its magnitude, becomes 0. A slice, whose volume was brought to
    [0, 1] as a whole, is only shifted to [-1, 1]: its own mean would take away what its intensities
    mean (HU in CT).
    """
    if task.modalities:
        return (2 * image - 1).astype(np.float32)
    mean = image.mean(axis=(0, 1), dtype=np.float64)
    std = image.std(axis=(0, 1), dtype=np.float64)
    varies = std > _ROUNDING * np.abs(image).max(axis=(0, 1))
    return (np.where(varies, image - mean, 0) / np.where(varies, std, 1.0)).astype(np.float32)


def match_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Turns [H, W, C] into [H, W, channels]: grey to RGB by repetition, RGB to grey by luminance.

    Raises:
      InputError: another pair of channel counts.
    """
    if image.shape[-1] == channels:
        return image
    if image.shape[-1] == 1 and channels == 3:
        return np.repeat(image, 3, axis=-1)
    if image.shape[-1] == 3 and channels == 1:
        grey = (image @ _LUMINANCE)[..., None]
        return (np.rint(grey) if image.dtype.kind == "u" else grey).astype(image.dtype)
    raise InputError(
        f"an image with {image.shape[-1]} channels, which come last, cannot serve {channels}"
    )


def labels_to_mask(labels: np.ndarray, task: Task) -> np.ndarray:
    """Splits a label map into class channels.

    Exclusive classes: a pixel equal to `label_values[i]` belongs to class i. Independent regions:
    a label is the sum (bitwise or) of the values, distinct powers of two, of its regions.

    Args:
      labels: integers [..., H, W], 0 is background.
      task: says which value means which class.

    Returns:
      uint8 {0, 1} [..., H, W, K], channel 0 the background if `task.one_hot`.

    Raises:
      InputError: a label that the task does not know.
    """
    labels = np.asarray(labels)
    # A region's value may be more than their type holds.
    labels = labels.astype(np.promote_types(labels.dtype, task.label_dtype), copy=False)
    values = np.asarray(task.label_values)
    if task.exclusive or len(values) == 1:
        unknown = ~np.isin(labels, np.append(values, 0))
    else:
        unknown = (labels & ~np.bitwise_or.reduce(values)) != 0
    if unknown.any():
        found = np.unique(labels[unknown])[:5].tolist()
        raise InputError(f"unknown label values {found}; the task knows 0 and {values.tolist()}")
    channels = [class_mask(labels, task, index) for index in range(len(values))]
    if task.one_hot:
        channels.insert(0, labels == 0)
    return np.stack(channels, axis=-1).astype(np.uint8)


def mask_to_labels(mask: np.ndarray, task: Task) -> np.ndarray:
    """The label map of a decided mask {0, 1} [..., H, W, K]; inverse of `labels_to_mask`.

    Returns:
      [..., H, W] uint8, or uint16 if a label value needs it.
    """
    values = np.asarray(task.label_values, dtype=np.int64)
    foreground = mask[..., 1:] if task.one_hot else mask
    labels = (foreground.astype(np.int64) * values).sum(axis=-1)
    return labels.astype(task.label_dtype)


def write_png(path: str | os.PathLike, array: np.ndarray) -> None:
    """Writes uint8 [H, W], [H, W, 1] or [H, W, 3], or uint16 [H, W], as PNG, all or nothing.

    Raises:
      ValueError: another dtype.
    """
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"write_png takes uint8 or uint16, not {array.dtype}")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    with replacing(path) as temporary, temporary.open("wb") as file:
        Image.fromarray(array).save(file, format="PNG")


def write_gif(path: str | os.PathLike, frames: Sequence[np.ndarray]) -> None:
    """Writes uint8 [H, W, 3] frames as an endless GIF, all or nothing; the last stays longer."""
    pictures = [Image.fromarray(frame) for frame in frames]
    durations = [250] * (len(pictures) - 1) + [2000]  # milliseconds
    with replacing(path) as temporary, temporary.open("wb") as file:
        pictures[0].save(
            file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
        )
