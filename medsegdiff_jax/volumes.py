"""Volumes in NIfTI: reading, slicing, intensities, and writing back on the grid of the input.

A volume is [X, Y, Z, M] in the voxel order of its file, M its co-registered modalities. The network
sees its slices [N, H, W, M], all in one anatomical orientation however the file is stored, and
their intensities as uint16, 0..65535 for [0, 1]; so prepared data and new scans pass through the
same rounding. Slices are resized in their plane alone; nothing is interpolated between slices.
"""

import dataclasses
import gzip
import itertools
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations

from medsegdiff_jax.atomic import replacing
from medsegdiff_jax.imaging import reason
from medsegdiff_jax.types import InputError, Modality, check_one_of

SUFFIXES = (".nii.gz", ".nii")

# Directions in which slice number, row and column grow. The patient's right is at the left of the
# picture, anterior or superior at its top, as radiologists look at it.
PLANES = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}

PERCENTILES = (0.5, 99.5)  # of a modality without window
_FULL = 65535
_CHUNK = 1 << 24  # bytes
_MILLIMETRES = {1: 1e3, 3: 1e-3}  # by NIfTI's codes for metres and micrometres
_READ_ERRORS = (OSError, EOFError, ValueError, OverflowError, TypeError, zlib.error)
_READ_ERRORS += (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie.

    Attributes:
      shape: (X, Y, Z).
      affine: [4, 4] voxel indices -> millimetres, right-anterior-superior.
      header: the NIfTI header of the file.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    header: nib.Nifti1Header

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along each array axis, mm."""
        unit = _MILLIMETRES.get(int(self.header["xyzt_units"]) & 7, 1.0)
        return tuple(unit * float(size) for size in nib.affines.voxel_sizes(self.affine))

    def offset(self, other: "Grid") -> float:
        """How far apart the same corner of two files of one shape lies at most, in voxels."""
        corners = np.array(list(itertools.product(*((0, size - 1) for size in self.shape))))
        shift = nib.affines.apply_affine(self.affine - other.affine, corners)
        smallest = nib.affines.voxel_sizes(self.affine).min()
        return float(np.linalg.norm(shift, axis=1).max() / smallest)

    def matches(self, other: "Grid") -> bool:
        """Whether two files have the same voxels: one shape, and no corner half a voxel away.

        Programs round affines, and some public datasets have labels whose origin was rounded.
        """
        return self.shape == other.shape and self.offset(other) < 0.5


def is_volume(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """The file name without .nii or .nii.gz."""
    suffix = next(s for s in SUFFIXES if path.name.lower().endswith(s))
    return path.name[: -len(suffix)]


def _open(path: Path) -> nib.Nifti1Image:
    """A NIfTI file whose voxels are not yet read."""
    try:
        image = nib.load(path)
    except _READ_ERRORS as error:
        raise InputError(f"{path}: cannot be read as NIfTI ({reason(error)})") from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is one too
        raise InputError(f"{path}: is {type(image).__name__}, not NIfTI")
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: holds {image.get_data_dtype()} voxels, not numbers")
    axes = image.affine[:3, :3]
    if not np.isfinite(axes).all() or not (
        abs(np.linalg.det(axes)) > 1e-6 * np.prod(np.linalg.norm(axes, axis=0))
    ):
        raise InputError(f"{path}: its affine says nothing of where the voxels lie")
    return image


def _voxels(image: nib.Nifti1Image, path: Path) -> np.ndarray:
    try:
        if path.name.lower().endswith(".gz"):
            # nibabel stops at the last voxel, before the checksum.
            with gzip.open(path) as file:
                while file.read(_CHUNK):
                    pass
        # Scale factors are applied in float32; anything finer is below the rounding to 16 bits.
        voxels = image.get_fdata(caching="unchanged", dtype=np.float32)
    except _READ_ERRORS as error:
        raise InputError(f"{path}: cannot be read as NIfTI ({reason(error)})") from error
    if not np.isfinite(voxels).all():
        raise InputError(f"{path}: holds voxels that are not finite (NaN or infinity)")
    return voxels


def read_image(paths: Sequence[Path], modalities: int) -> tuple[np.ndarray, Grid]:
    """Reads the modalities of one case: a file each, or one file with all of them as fourth axis.

    Returns:
      [X, Y, Z, M] float32 in the units of the file, and the grid of the first file.

    Raises:
      InputError: unreadable, non-finite, not three axes (four for one file), files on different
        grids, or another number of modalities; names the file.
    """
    parts, grids = [], []
    for path in paths:
        image = _open(path)
        voxels = _voxels(image, path)
        if voxels.ndim == 4 and len(paths) > 1 and voxels.shape[3] == 1:
            voxels = voxels[..., 0]
        if voxels.ndim not in ((3, 4) if len(paths) == 1 else (3,)) or 0 in voxels.shape:
            raise InputError(f"{path}: shape {voxels.shape} is not that of a volume")
        parts.append(voxels if voxels.ndim == 4 else voxels[..., None])
        grids.append(Grid(voxels.shape[:3], image.affine, image.header))
        if not grids[0].matches(grids[-1]):
            raise InputError(
                f"{path}: has other voxels than {paths[0]} ({_difference(grids[0], grids[-1])})"
            )
    found = sum(part.shape[3] for part in parts)
    if found != modalities:
        raise InputError(f"{paths[0]}: {found} modalities where {modalities} are expected")
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=3), grids[0]


def read_labels(path: Path) -> tuple[np.ndarray, Grid]:
    """Reads a label volume.

    Returns:
      [X, Y, Z] int32, >= 0, and its grid.

    Raises:
      InputError: unreadable, not three axes, or negative or fractional labels; names the file.
    """
    image = _open(path)
    voxels = _voxels(image, path)
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3 or 0 in voxels.shape:
        raise InputError(f"{path}: shape {voxels.shape} is not that of a label volume")
    labels = np.rint(voxels)
    # Scale factors may leave labels a rounding error away from integers.
    if (labels < 0).any() or np.abs(voxels - labels).max() > 1e-3:
        raise InputError(f"{path}: labels must be integers >= 0")
    return labels.astype(np.int32), Grid(voxels.shape, image.affine, image.header)


def check_grids(image: Grid, labels: Grid, image_path: Path, labels_path: Path) -> None:
    """Raises InputError, naming both files, if labels and image have different voxels."""
    if not image.matches(labels):
        raise InputError(
            f"{labels_path}: has other voxels than {image_path} ({_difference(image, labels)})"
        )


def _difference(one: Grid, other: Grid) -> str:
    if one.shape != other.shape:
        return f"shape {other.shape}, not {one.shape}"
    axes, wanted = ("".join(nib.aff2axcodes(grid.affine)) for grid in (other, one))
    if axes != wanted:
        return f"axes {axes}, not {wanted}"
    return f"their corners lie up to {one.offset(other):.3g} voxels apart"


def _transform(grid: Grid, plane: str) -> np.ndarray:
    """nibabel's orientation transform from the file's axes to (slice, row, column)."""
    check_one_of("data.plane", plane, PLANES)
    target = orientations.axcodes2ornt(PLANES[plane])
    return orientations.ornt_transform(orientations.io_orientation(grid.affine), target)


def to_slices(volume: np.ndarray, grid: Grid, plane: str) -> np.ndarray:
    """[X, Y, Z, ...] in the file's order -> [N, H, W, ...], a view.

    An oblique volume is cut along its own axes, those nearest to the plane.

    Raises:
      InputError: unknown plane (field data.plane).
    """
    return orientations.apply_orientation(volume, _transform(grid, plane))


def from_slices(slices: np.ndarray, grid: Grid, plane: str) -> np.ndarray:
    """Inverse of `to_slices`."""
    target = orientations.axcodes2ornt(PLANES[plane])
    back = orientations.ornt_transform(target, orientations.io_orientation(grid.affine))
    return orientations.apply_orientation(slices, back)


def plane_spacing(grid: Grid, plane: str) -> tuple[float, float]:
    """Height and width of a pixel of a slice, mm."""
    order = np.argsort(_transform(grid, plane)[:, 0])  # output axis -> axis of the file
    return tuple(grid.spacing[axis] for axis in order[1:])


def neighbours(index: int, depth: int, reach: int) -> list[int]:
    """Numbers of the slices around one, itself in the middle; the ends of a volume repeat."""
    return [min(max(i, 0), depth - 1) for i in range(index - reach, index + reach + 1)]


def intensity_range(volume: np.ndarray, modality: Modality) -> tuple[float, float]:
    """The intensities of one modality [X, Y, Z] that become 0 and 1.

    Without a window: percentiles of the voxels that are not exactly 0 (air outside a stripped skull
    or a field of view), so that any positive factor on the intensities drops out.
    """
    if modality.window is not None:
        return modality.window
    voxels = volume[volume != 0]
    low, high = np.percentile(voxels if voxels.size else volume, PERCENTILES)
    return float(low), float(high)


def to_stored(volume: np.ndarray, modalities: Sequence[Modality]) -> np.ndarray:
    """Intensities [X, Y, Z, M] -> uint16 [X, Y, Z, M]: the range of each modality over 0..65535.

    A constant modality becomes 0.
    """
    stored = np.empty(volume.shape, np.uint16)
    for index, modality in enumerate(modalities):
        low, high = intensity_range(volume[..., index], modality)
        scale = _FULL / (high - low) if high > low else 0.0
        # Plane by plane: a float copy of the whole volume would double the memory.
        for z in range(volume.shape[2]):
            unit = (volume[:, :, z, index] - np.float32(low)) * np.float32(scale)
            stored[:, :, z, index] = np.rint(np.clip(unit, 0, _FULL))
    return stored


def write(path: str | os.PathLike, voxels: np.ndarray, grid: Grid, *, unit: bool = False) -> None:
    """Writes [X, Y, Z] on a grid as .nii.gz: same affine, codes, units; all or nothing.

    Args:
      path: ends in .nii.gz.
      voxels: label ids, uint8 or uint16, or, with `unit`, uint8 0..255 for [0, 1], which a scale
        factor in the header restores.
      grid: of the input; its header's sform and qform codes and units are kept.
      unit: see `voxels`.

    Raises:
      ValueError: another dtype, or another shape than the grid's.
    """
    if voxels.dtype not in (np.uint8, np.uint16) or voxels.shape != grid.shape:
        raise ValueError(f"{voxels.dtype} {voxels.shape} does not fit a mask of {grid.shape}")
    kind = nib.Nifti2Image if isinstance(grid.header, nib.Nifti2Header) else nib.Nifti1Image
    header = grid.header.copy()
    header.set_data_dtype(voxels.dtype)
    # What described the intensities of the scan would mislead about the mask.
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = b"medsegdiff_jax"
    header.extensions.clear()
    image = kind(voxels, grid.affine, header)
    if unit:
        image.header.set_slope_inter(1 / 255, 0)
    with replacing(path) as temporary, gzip.open(temporary, "wb", compresslevel=4) as file:
        image.to_stream(file)
