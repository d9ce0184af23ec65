"""Volumes keep their place in the world however they are stored, and masks their size."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import orientations
from numpy.testing import assert_allclose, assert_array_equal

from medsegdiff_jax import volumes
from medsegdiff_jax.types import InputError, Modality

CODES = ("RAS", "LPS", "ASR", "SLP", "IPR", "PIL")
MR = (Modality("MR"),)


def save(path, voxels, affine):
    """A NIfTI file; returns its path."""
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def oriented(voxels, affine, codes):
    """The same voxels at the same places, stored in another order of axes."""
    transform = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(codes)
    )
    stored = orientations.apply_orientation(voxels, transform)
    return stored, affine @ orientations.inv_ornt_aff(transform, voxels.shape)


@pytest.fixture
def scan():
    """[7, 6, 5] of different values with anisotropic voxels, and its affine (RAS)."""
    voxels = np.arange(7 * 6 * 5, dtype=np.float32).reshape(7, 6, 5)
    affine = np.array([[0.8, 0, 0, -3], [0, 1.5, 0, 4], [0, 0, 4.0, 10], [0, 0, 0, 1]])
    return voxels, affine


@pytest.mark.parametrize("plane", list(volumes.PLANES))
@pytest.mark.parametrize("codes", CODES)
def test_slices_do_not_depend_on_the_storage(tmp_path, scan, codes, plane):
    reference, grid = volumes.read_image([save(tmp_path / "a.nii.gz", *scan)], 1)
    expected = volumes.to_slices(reference, grid, plane)
    volume, other = volumes.read_image([save(tmp_path / "b.nii", *oriented(*scan, codes))], 1)
    assert_array_equal(volumes.to_slices(volume, other, plane), expected)
    assert_array_equal(
        volumes.from_slices(volumes.to_slices(volume, other, plane), other, plane), volume
    )
    assert volumes.plane_spacing(other, plane) == pytest.approx(
        {"axial": (1.5, 0.8), "coronal": (4.0, 0.8), "sagittal": (4.0, 1.5)}[plane]
    )


def test_the_planes_show_what_radiologists_expect(tmp_path, scan):
    """Right-anterior-superior indices of the first voxel of the first slice, and of its corners."""
    volume, grid = volumes.read_image([save(tmp_path / "a.nii.gz", *scan)], 1)
    volume = volume[..., 0]
    axial = volumes.to_slices(volume, grid, "axial")
    assert axial.shape == (5, 6, 7)
    # Bottom slice; top left is anterior and the patient's right.
    assert axial[0, 0, 0] == volume[6, 5, 0] and axial[0, -1, -1] == volume[0, 0, 0]
    coronal = volumes.to_slices(volume, grid, "coronal")
    # From anterior to posterior; top left is superior and right.
    assert coronal.shape == (6, 5, 7) and coronal[0, 0, 0] == volume[6, 5, 4]
    sagittal = volumes.to_slices(volume, grid, "sagittal")
    # From right to left; top left is superior and anterior.
    assert sagittal.shape == (7, 5, 6) and sagittal[0, 0, 0] == volume[6, 5, 4]


def test_an_oblique_volume_is_cut_along_its_own_axes(tmp_path, scan):
    voxels, affine = scan
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    straight, grid = volumes.read_image([save(tmp_path / "a.nii.gz", voxels, affine)], 1)
    oblique, other = volumes.read_image([save(tmp_path / "b.nii.gz", voxels, turn @ affine)], 1)
    assert_array_equal(
        volumes.to_slices(oblique, other, "axial"), volumes.to_slices(straight, grid, "axial")
    )
    assert other.spacing == pytest.approx((0.8, 1.5, 4.0))


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_written_mask_lies_where_its_scan_lies(tmp_path, scan, unit, kind):
    voxels, affine = oriented(*scan, "LPS")
    image = kind(voxels.astype(np.int16), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(2.0, -1024)
    image.set_sform(affine, code=3)
    image.set_qform(affine, code=1)
    nib.save(image, tmp_path / "scan.nii.gz")
    _, grid = volumes.read_image([tmp_path / "scan.nii.gz"], 1)
    mask = (voxels > 100).astype(np.uint8) * (255 if unit else 2)
    volumes.write(tmp_path / "mask.nii.gz", mask, grid, unit=unit)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.nii.gz", "scan.nii.gz"]
    written = nib.load(tmp_path / "mask.nii.gz")
    assert type(written) is kind and written.get_data_dtype() == np.uint8
    assert_array_equal(written.affine, nib.load(tmp_path / "scan.nii.gz").affine)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (3, 1)
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert_allclose(written.get_fdata(), mask / 255 if unit else mask, atol=1e-6)


def test_simpleitk_sees_the_same_geometry(tmp_path, scan):
    for index, codes in enumerate(CODES):
        path = save(tmp_path / f"scan{index}.nii.gz", *oriented(*scan, codes))
        volume, grid = volumes.read_image([path], 1)
        mask = (volume[..., 0] > 100).astype(np.uint8)
        volumes.write(tmp_path / f"mask{index}.nii.gz", mask, grid)
        image, answer = (
            sitk.ReadImage(str(tmp_path / f"{name}{index}.nii.gz")) for name in ("scan", "mask")
        )
        for what in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
            assert getattr(image, what)() == getattr(answer, what)()
        assert_array_equal(sitk.GetArrayFromImage(image) > 100, sitk.GetArrayFromImage(answer))


@settings(max_examples=30)
@given(scale=st.floats(1e-3, 1e6), seed=st.integers(0, 99))
def test_mr_intensities_have_no_unit(scale, seed):
    rng = np.random.default_rng(seed)
    volume = rng.gamma(2.0, 50.0, (9, 8, 7, 1)).astype(np.float32)
    volume[:3] = 0  # air
    stored = volumes.to_stored(volume, MR).astype(int)
    scaled = volumes.to_stored((volume * np.float32(scale)), MR).astype(int)
    assert np.abs(stored - scaled).max() <= 1  # rounding to 16 bits
    assert stored.max() == 65535 and (stored[:3] == 0).all()


def test_air_and_the_outermost_intensities_do_not_count_in_mr():
    within = np.random.default_rng(0).permutation(np.arange(1, 1001, dtype=np.float32))
    volume = np.concatenate([np.zeros(5000, np.float32), within])
    found = volumes.intensity_range(volume, MR[0])
    assert found == pytest.approx(np.percentile(within, (0.5, 99.5)))


def test_a_ct_window_is_absolute():
    volume = np.array([-2000, -175, 37.5, 250, 3000], np.float32).reshape(5, 1, 1, 1)
    stored = volumes.to_stored(volume, (Modality("CT", (-175.0, 250.0)),))
    assert_allclose(stored.ravel() / 65535, [0, 0, 0.5, 1, 1], atol=1e-5)


def test_a_constant_volume_becomes_zero():
    assert not volumes.to_stored(np.full((2, 3, 4, 1), 7, np.float32), MR).any()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("shape", lambda v, a: (v[:-1], a), r"shape \(6, 6, 5\), not \(7, 6, 5\)"),
        (
            "affine",
            lambda v, a: (v, a + np.eye(4, k=3)),
            "lie up to 1.25 voxels apart",
        ),
        ("axes", lambda v, a: (v, np.diag([-1, 1, 1, 1]) @ a), r"axes \w{3}, not \w{3}\)"),
    ],
)
def test_labels_on_other_voxels_are_refused(tmp_path, scan, name, damage, message):
    _, grid = volumes.read_image([save(tmp_path / "a.nii.gz", *scan)], 1)
    path = save(tmp_path / "b.nii.gz", *damage(*scan))
    _, other = volumes.read_labels(path)
    with pytest.raises(InputError, match=rf"b\.nii\.gz: has other voxels.*a\.nii\.gz.*{message}"):
        volumes.check_grids(grid, other, tmp_path / "a.nii.gz", path)


def test_a_rounded_origin_is_no_other_grid(tmp_path, scan):
    voxels, affine = scan
    _, grid = volumes.read_image([save(tmp_path / "a.nii.gz", voxels, affine)], 1)
    shift = np.zeros((4, 4))
    shift[0, 3] = 0.3
    _, other = volumes.read_labels(save(tmp_path / "b.nii.gz", voxels, affine + shift))
    volumes.check_grids(grid, other, tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert grid.offset(other) == pytest.approx(0.3 / 0.8, abs=1e-6)


def test_spacing_is_in_millimetres(tmp_path, scan):
    image = nib.Nifti1Image(*scan)
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii.gz")
    _, grid = volumes.read_labels(tmp_path / "a.nii.gz")
    assert grid.spacing == pytest.approx((0.8e-3, 1.5e-3, 4e-3))
    image.header["xyzt_units"] = 66  # millimetres, and a unit of time that no standard knows
    nib.save(image, tmp_path / "b.nii.gz")
    _, grid = volumes.read_labels(tmp_path / "b.nii.gz")
    assert grid.spacing == pytest.approx((0.8, 1.5, 4))


def test_what_is_no_volume_is_refused_by_name(tmp_path, scan):
    voxels, affine = scan
    broken = save(tmp_path / "broken.nii.gz", voxels, affine)
    broken.write_bytes(broken.read_bytes()[:200])
    text = tmp_path / "text.nii.gz"
    text.write_text("no volume")
    hole = voxels.copy()
    hole[1, 1, 1] = np.nan
    refused = {
        broken: "cannot be read as NIfTI",
        text: "cannot be read as NIfTI",
        save(tmp_path / "nan.nii.gz", hole, affine): "not finite",
        save(tmp_path / "flat.nii.gz", voxels[0], affine): "not that of a volume",
        tmp_path / "missing.nii": "cannot be read as NIfTI",
    }
    flipped = bytearray(save(tmp_path / "flipped.nii.gz", voxels, affine).read_bytes())
    flipped[len(flipped) // 2] ^= 255
    (tmp_path / "flipped.nii.gz").write_bytes(flipped)
    refused[tmp_path / "flipped.nii.gz"] = "cannot be read as NIfTI"
    colours = np.zeros(voxels.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused[save(tmp_path / "rgb.nii.gz", colours, affine)] = "voxels, not numbers"
    for path, message in refused.items():
        with pytest.raises(InputError, match=rf"{path.name}: .*{message}"):
            volumes.read_image([path], 1)
    with pytest.raises(InputError, match=r"frac\.nii: labels must be integers"):
        volumes.read_labels(save(tmp_path / "frac.nii", voxels + np.float32(0.5), affine))
    with pytest.raises(InputError, match="1 modalities where 2 are expected"):
        volumes.read_image([save(tmp_path / "one.nii", voxels, affine)], 2)


def test_modalities_come_as_files_or_as_the_fourth_axis(tmp_path, scan):
    voxels, affine = scan
    both = np.stack([voxels, 2 * voxels], axis=3)
    single, _ = volumes.read_image([save(tmp_path / "both.nii.gz", both, affine)], 2)
    parts = [save(tmp_path / f"p{i}.nii.gz", both[..., i], affine) for i in range(2)]
    pair, _ = volumes.read_image(parts, 2)
    assert_array_equal(single, both)
    assert_array_equal(pair, both)
    other = save(tmp_path / "other.nii.gz", voxels[:-1], affine)
    with pytest.raises(InputError, match=r"other\.nii\.gz: has other voxels than .*p0"):
        volumes.read_image([parts[0], other], 2)


def test_neighbours_repeat_at_the_ends():
    assert volumes.neighbours(0, 5, 2) == [0, 0, 0, 1, 2]
    assert volumes.neighbours(4, 5, 1) == [3, 4, 4]
    assert volumes.neighbours(0, 1, 1) == [0, 0, 0]
