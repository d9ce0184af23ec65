"""Volumes through the commands: prepared, trained on, segmented, scored, all in their geometry."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations

from medsegdiff_jax import (
    decision,
    display,
    imaging,
    metrics,
    prediction,
    volume_output,
    volumes,
)
from medsegdiff_jax.segmenter import Segmenter

AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])  # axes grow to the left, posterior, superior (LPS)
FLAGS = (
    "--config=configs/folder.py:default,tiny",
    "--config.data.image_size=16",
    "--config.data.neighbours=1",
    "--config.data.augment.probability=0.0",
    "--config.data.augment.flip=False",
    "--config.num_steps=120",
    "--config.batch_size=8",
    "--config.ema_decay=0.8",
    "--config.log_every_steps=60",
    "--config.optim.learning_rate=5e-3",
    "--config.optim.schedule=constant",
    "--config.optim.warmup_steps=1",
    "--config.validation.members=2",
    "--config.validation.steps=2",
    "--config.validation.batch_size=8",
    "--config.sampling.members=2",
    "--config.sampling.steps=2",
    "--config.sampling.batch_size=5",
)


def phantom(seed, shape=(20, 16, 11)):
    """A scan with a bright left and a brighter right half of an ellipsoid; labels 1 and 2."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    centre = rng.uniform(-0.2, 0.2, (3, 1, 1, 1))
    radii = rng.uniform(0.45, 0.6, (3, 1, 1, 1))
    inside = (((axes - centre) / radii) ** 2).sum(axis=0) < 1
    labels = np.where(inside, np.where(axes[0] < centre[0], 1, 2), 0)
    scan = 200 + rng.normal(0, 20, shape) + 300 * (labels == 1) + 700 * (labels == 2)
    return scan.astype(np.float32), labels.astype(np.uint8)


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory):
    """A Decathlon folder of ten volumes; returns its root."""
    root = tmp_path_factory.mktemp("Task99_Ellipsoids")
    names = [f"case_{number:03d}" for number in range(10)]
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    for number, name in enumerate(names):
        scan, labels = phantom(number)
        nib.save(nib.Nifti1Image(scan, AFFINE), root / "imagesTr" / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(labels, AFFINE), root / "labelsTr" / f"{name}.nii.gz")
    pairs = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in names
    ]
    fields = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "left", "2": "right"},
        "training": pairs,
    }
    (root / "dataset.json").write_text(json.dumps(fields))
    return root


@pytest.fixture(scope="module")
def trained(command, decathlon, cache, tmp_path_factory):
    """Workdir of a model of the ellipsoids."""
    workdir = tmp_path_factory.mktemp("volumes") / "run"
    data = (f"--config.data.path={decathlon}", f"--config.data.cache_dir={cache}")
    outcome = command("train.py", *FLAGS, *data, f"--workdir={workdir}")
    assert outcome.code == 0, outcome.stderr
    assert "10 volumes of MRI, 20/20/20 x 16/16/16 x 11/11/11 voxels" in outcome.stderr
    return workdir


@pytest.fixture(scope="module")
def held_out(command, decathlon, cache, trained, tmp_path_factory):
    """The held-out volumes as `python -m data` writes them."""
    output = tmp_path_factory.mktemp("split") / "test"
    data = (f"--config.data.path={decathlon}", f"--config.data.cache_dir={cache}")
    assert command("data/__main__.py", FLAGS[0], *data, f"--output={output}").code == 0
    return output


def test_from_scans_to_scores_per_volume(command, trained, held_out, tmp_path):
    output = tmp_path / "out"
    flags = (f"--checkpoint={trained}", f"--input={held_out}", f"--output={output}")
    save = "--save=mask,probability,uncertainty,overlay,members"
    done = command("sample.py", *flags, save, "--decision=probable")
    assert done.code == 0, done.stderr
    refused = command(
        "sample.py", *flags, "--save=mask,members", "--tolerance=0.01", "--members=20"
    )
    assert refused.code == 2 and "slices of a volume differ in their members" in refused.stderr
    run = json.loads((output / "run.json").read_text())
    (case,) = run["cases"]
    assert run["cases"][case]["members"] == 2
    assert run["cases"][case]["files"] == {
        "mask": [f"{case}.nii.gz"],
        "probability": [f"{case}_probability_left.nii.gz", f"{case}_probability_right.nii.gz"],
        "uncertainty": [f"{case}_uncertainty.nii.gz"],
        "members": [f"{case}_member_00.nii.gz", f"{case}_member_01.nii.gz"],
        "overlay": [f"{case}_overlay.png"],
    }
    scan = nib.load(held_out / "images" / f"{case}.nii.gz")
    for path in output.glob("*.nii.gz"):
        image = nib.load(path)
        np.testing.assert_array_equal(image.affine, scan.affine)
        assert image.shape == scan.shape and image.get_data_dtype() == np.uint8
    mask = np.asarray(nib.load(output / f"{case}.nii.gz").dataobj)
    left, right = (
        nib.load(output / f"{case}_probability_{name}.nii.gz").get_fdata()
        for name in ("left", "right")
    )
    decided = np.argmax([1 - left - right, left, right], axis=0)
    assert (decided == mask).mean() > 0.995  # but for ties within 1 / 255
    outcome = command(
        "evaluate.py",
        f"--predictions={output}",
        f"--references={held_out}",
        f"--output={tmp_path / 'score'}",
    )
    row = next(line for line in outcome.output.splitlines() if line.startswith("left"))
    assert row.endswith("  1")
    scores = json.loads((tmp_path / "score" / "metrics.json").read_text())
    assert scores["spacing"] == "of each volume, mm"
    reference = np.asarray(nib.load(held_out / "masks" / f"{case}.nii.gz").dataobj)
    for value, name in ((1, "left"), (2, "right")):
        row = scores["classes"][name]
        assert row["dice"]["mean"] == pytest.approx(
            metrics.dice(mask == value, reference == value), abs=1e-9
        )
        expected = metrics.hd95(mask == value, reference == value, (1.5, 1.5, 3.0))
        assert row["hd95"]["mean"] == pytest.approx(expected, abs=1e-6)
        assert row["dice"]["mean"] > 0.6


def test_pictures_show_the_slice_itself_and_not_those_beside_it(trained, held_out):
    segmenter = Segmenter.load(trained)
    cases = volume_output.find(held_out, None, segmenter.task)
    (files,) = volume_output.segment(segmenter, cases, segmenter.choose(), ("mask",), pytest.fail)
    ((path,),) = cases.values()
    scan, grid = volumes.read_image((path,), 1)
    slices = volumes.to_slices(volumes.to_stored(scan, segmenter.task.modalities), grid, "axial")
    size = files.pictures.image.shape[:2]
    shown = [display.to_rgb(imaging.resize_image(one, size)).astype(int) for one in slices]
    distance = [np.abs(files.pictures.image - one).max() for one in shown]
    assert min(distance) <= 1  # levels of 255; one that is drawn before it is resized differs


def test_a_volume_is_decided_by_its_expected_dice(command, trained, held_out, tmp_path):
    flags = (f"--checkpoint={trained}", f"--input={held_out}", f"--output={tmp_path}")
    done = command("sample.py", *flags, "--save=mask,probability")
    assert done.code == 0, done.stderr
    (case,) = json.loads((tmp_path / "run.json").read_text())["cases"]
    kept = [
        nib.load(tmp_path / f"{case}_probability_{name}.nii.gz").get_fdata()
        for name in ("left", "right")
    ]
    probability = np.stack([1 - sum(kept), *kept], axis=-1)
    decide = decision.rule("dice", lambda: [probability], Segmenter.load(trained).task)
    mask = np.asarray(nib.load(tmp_path / f"{case}.nii.gz").dataobj)
    expected = np.argmax(decide(probability), axis=-1)
    assert (mask == expected).mean() > 0.9999  # but for what the probabilities' 32 bits round
    assert (mask != np.argmax(probability, axis=-1)).mean() > 0.001


def stored(volume, affine, codes):
    """The same voxels in another order of axes."""
    transform = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(codes)
    )
    turned = orientations.apply_orientation(volume, transform)
    return turned, affine @ orientations.inv_ornt_aff(transform, volume.shape)


def segment(trained, folder, scans):
    """Writes scans {name: (voxels, affine)}, segments them, returns name -> mask image."""
    folder.mkdir()
    for name, (voxels, affine) in scans.items():
        nib.save(nib.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
    segmenter = Segmenter.load(trained)
    masks = {}
    for name in scans:  # one by one and under one name, so that all get the same noise
        (folder / "in").mkdir(exist_ok=True)
        (folder / f"{name}.nii.gz").replace(folder / "in" / "scan.nii.gz")
        cases = prediction.find_cases(folder / "in", None, segmenter.task)
        prediction.predict(segmenter, cases, folder / name, segmenter.choose(), ("mask",))
        masks[name] = nib.load(folder / name / "scan.nii.gz")
    return masks


def in_world(mask):
    """A mask [X, Y, Z] with its axes turned to left, posterior, superior."""
    voxels = np.asarray(mask.dataobj)
    return stored(voxels, mask.affine, "LPS")[0]


def test_the_same_scan_gets_the_same_mask_however_it_is_stored(trained, tmp_path):
    scan, labels = phantom(77)
    turn = np.eye(4)
    angle = np.deg2rad(15)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    scans = {codes: stored(scan, AFFINE, codes) for codes in ("LPS", "RAS", "SAL", "PIR")}
    scans["oblique"] = (scan, turn @ AFFINE)
    masks = segment(trained, tmp_path / "scans", scans)
    expected = np.asarray(masks["LPS"].dataobj)
    assert metrics.dice(expected > 0, labels > 0) > 0.7
    for name, mask in masks.items():
        np.testing.assert_array_equal(in_world(mask), expected, err_msg=name)
        np.testing.assert_allclose(mask.affine, scans[name][1], atol=1e-6)


def test_another_spacing_gives_nearly_the_same_mask(trained, tmp_path):
    """Every voxel cut into 2 x 2 x 1, at the same place in the world."""
    scan, _ = phantom(77)
    fine = scan.repeat(2, axis=0).repeat(2, axis=1)
    affine = AFFINE @ np.diag([0.5, 0.5, 1.0, 1.0])
    affine[:3, 3] = nib.affines.apply_affine(AFFINE, [-0.25, -0.25, 0])
    masks = segment(trained, tmp_path / "scans", {"own": (scan, AFFINE), "fine": (fine, affine)})
    coarse = np.asarray(masks["own"].dataobj).repeat(2, axis=0).repeat(2, axis=1)
    for value in (1, 2):
        assert metrics.dice(np.asarray(masks["fine"].dataobj) == value, coarse == value) > 0.9


def test_volumes_and_pictures_are_not_confused(command, trained, held_out, disc_folder, tmp_path):
    output = f"--output={tmp_path / 'out'}"
    flags = (f"--checkpoint={trained}", output)
    assert (
        "no image (.nii.gz, .nii)" in command("sample.py", *flags, f"--input={disc_folder}").refusal
    )
    scans = shutil.copytree(held_out / "images", tmp_path / "scans")
    (scans / "a.nii.gz").write_bytes(b"no volume")
    refused = command("sample.py", *flags, f"--input={scans}").refusal  # after all others
    assert "a.nii.gz: cannot be read as NIfTI" in refused and refused.endswith("others are done")
    scoring = (f"--predictions={tmp_path / 'out'}", f"--output={tmp_path / 'score'}")
    assert (
        "--spacing: is for pictures"
        in command("evaluate.py", *scoring, f"--references={held_out}", "--spacing=1,1").refusal
    )
    (mask,) = (held_out / "masks").iterdir()
    image = nib.load(mask)
    moved = tmp_path / "moved"
    moved.mkdir()
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine + np.eye(4, k=3) * 5),
             moved / mask.name)  # fmt: skip
    line = command("evaluate.py", *scoring, f"--references={moved}").refusal
    assert f"{mask.name}: has other voxels than the prediction" in line
