"""Folders with members, probabilities and raters: what is reported is what the arrays say."""

import csv
import dataclasses
import json
import weakref
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medsegdiff_jax import metrics, scored_files, scoring
from medsegdiff_jax.metrics import aggregate
from medsegdiff_jax.types import InputError, Modality, Task

ORGANS = Task(("disc", "cup"), (1, 2), exclusive=True, image_channels=3)
SCAN = Task(("lesion",), (1,), exclusive=True, image_channels=1, modalities=(Modality("CT"),))
AFFINE = np.diag([-1.0, -1.0, 2.5, 1.0])


def blobs(rng, shape, values):
    """Nested smooth regions of labels."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), 2.5)
    levels = np.quantile(field, np.linspace(0.6, 0.85, len(values)))
    return np.select([field > level for level in levels[::-1]], values[::-1]).astype(np.uint8)


def write_run(folder, task, cases):
    """The run.json of cases {name: {what: file names}}."""
    entries = {name: {"files": files, "seconds": 0.1} for name, files in cases.items()}
    run = {"task": task.to_json(), "cases": entries}
    (folder / "run.json").write_text(json.dumps(run))


@pytest.fixture
def pictures(tmp_path):
    """Two pictures with two classes, three members, two raters; as files and as arrays."""
    rng = np.random.default_rng(0)
    arrays, files = {}, {}
    for folder in ("out", "masks_x", "masks_y"):
        (tmp_path / folder).mkdir()

    def write(folder, name, array):
        Image.fromarray(array).save(tmp_path / folder / name)
        return name

    for case in ("a", "b"):
        raters = [blobs(rng, (24, 32), (1, 2)) for _ in "xy"]
        members = [blobs(rng, (24, 32), (1, 2)) for _ in range(3)]
        chances = [rng.integers(0, 256, (24, 32), dtype=np.uint8) for _ in range(2)]
        for rater, mask in zip("xy", raters, strict=True):
            write(f"masks_{rater}", f"{case}.png", mask)
        arrays[case] = {"raters": raters, "members": members, "chances": chances}
        files[case] = {
            "mask": [write("out", f"{case}.png", members[0])],
            "members": [write("out", f"{case}_m{i}.png", one) for i, one in enumerate(members)],
            "probability": [write("out", f"{case}_p{i}.png", one) for i, one in enumerate(chances)],
        }
    write_run(tmp_path / "out", ORGANS, files)
    return tmp_path, arrays


def test_numbers_on_files_are_those_on_arrays(pictures):
    root, arrays = pictures
    result = scoring.evaluate([root / "out"], [root], None, "strict", 2.0)
    written = scoring.write_report(result, root / "report")
    assert {"reliability.png", "risk_coverage.png", "members.png"} < set(written)
    for name in written:
        assert (root / "report" / name).stat().st_size > 500
    with open(root / "report" / "per_case.csv", newline="") as file:
        rows = {(row["case"], row["class"]): row for row in csv.DictReader(file)}
    stored = json.loads((root / "report" / "metrics.json").read_text())["uncertainty"]
    for index, (name, value) in enumerate(zip(ORGANS.classes, ORGANS.label_values, strict=True)):
        sums, geds = None, []
        for case, found in arrays.items():
            members, raters = (np.stack(found[what]) == value for what in ("members", "raters"))
            overlaps, row = metrics.set_overlaps(members, raters), rows[case, name]
            assert float(row["ged"]) == pytest.approx(overlaps.energy_distance, abs=1e-12)
            assert float(row["matched_iou"]) == pytest.approx(overlaps.matched_iou)
            assert float(row["max_dice"]) == pytest.approx(overlaps.max_dice)
            p = found["chances"][index] / 255
            assert float(row["region_entropy"]) == pytest.approx(
                metrics.region_entropy(p), rel=1e-6
            )
            of_case = metrics.measure_calibration(p, raters.mean(axis=0))
            sums = of_case if sums is None else sums + of_case
            geds.append(overlaps.energy_distance)
        image = stored["calibration"][name]["image"]
        assert image["brier"] == pytest.approx(sums.brier, rel=1e-6)
        assert image["pixels"] == sum(image["reliability"]["pixels"]) == 2 * 24 * 32
        assert 0 < stored["calibration"][name]["border"]["pixels"] < image["pixels"]
        assert stored["classes"][name]["ged"]["mean"] == pytest.approx(np.mean(geds))
        assert stored["ranking"][name]["sample_dice"]["n_cases"] == 2
        assert set(stored["rater_dice"][name]) == {"x", "y"}


def test_it_is_said_which_references_were_read(pictures, caplog):
    root, _ = pictures
    (root / "masks").mkdir()
    found = scoring.evaluate([root / "out"], [root], None, "strict", 2.0)
    assert found.run["references"] == [str(root / "masks_x"), str(root / "masks_y")]
    assert found.run["compared with"] == "the most frequent class of 2 raters"
    assert f"{root}: masks/ is not read, since there is masks_x/" in caplog.text


@pytest.mark.parametrize(
    ("raters", "classes", "exclusive", "words"),
    [
        ((1, 1), 1, True, "one annotation per case"),
        ((2, 2), 1, True, "the union of 2 raters"),
        ((2, 2), 2, False, "the union of 2 raters"),
        ((5, 5), 1, True, "what at least half of 5 raters mark"),
        ((1, 5), 1, True, "what at least half of 1 to 5 raters mark"),
        ((2, 2), 2, True, "the most frequent class of 2 raters"),
    ],
)
def test_what_raters_are_fused_to_is_said(raters, classes, exclusive, words):
    task = Task(("a", "b")[:classes], (1, 2)[:classes], exclusive, 1)
    assert scoring._fused(*raters, task) == words


def test_masks_of_members_are_made_one_by_one(pictures, monkeypatch):
    """Beside a mask each of the prediction, the reference and the two raters."""
    made, most = [], []
    make = scoring.class_mask

    def watched(labels, task, index):
        mask = make(labels, task, index)
        made.append(weakref.ref(mask))
        most.append(sum(one() is not None for one in made))
        return mask

    monkeypatch.setattr(scoring, "class_mask", watched)
    root, _ = pictures
    scoring.evaluate([root / "out"], [root], None, "strict", 2.0)
    assert len(made) == 2 * 2 * (4 + 3)  # cases, classes, masks
    assert max(most) <= 4 + 2  # a member is made while the last one is still named


def read_picture(folder, *values, foreign=True):
    """What is read of a picture of these values for a task of the one class 6."""
    Image.fromarray(np.array([values], np.uint8)).save(folder / "a.png")
    spleen = dataclasses.replace(ORGANS, classes=("spleen",), label_values=(6,))
    return scored_files.read_labels(folder / "a.png", spleen, foreign=foreign)[0].tolist()


@pytest.mark.parametrize("value", [1, 255, 6])
def test_a_reference_of_one_class_may_be_written_in_three_ways(tmp_path, value):
    assert read_picture(tmp_path, 0, value, value) == [[0, 6, 6]]
    assert read_picture(tmp_path, value, value) == [[6, 6]]
    assert read_picture(tmp_path, 0, 0) == [[0, 0]]


@pytest.mark.parametrize("values", [(0, 3), (3, 3), (0, 3, 6), (0, 1, 6), (0, 1, 255), (0, 254)])
def test_a_reference_of_another_class_is_not_taken_for_this_one(tmp_path, values):
    known = (0, 6)
    found = ", ".join(str(value) for value in sorted(set(values) - set(known)))
    with pytest.raises(InputError, match=rf"a\.png: unknown label values \[{found}\]"):
        read_picture(tmp_path, *values)


def test_what_sample_wrote_is_read_as_it_is(tmp_path):
    assert read_picture(tmp_path, 0, 6, foreign=False) == [[0, 6]]
    with pytest.raises(InputError, match="unknown label values"):
        read_picture(tmp_path, 0, 1, foreign=False)


def test_a_listed_file_that_is_gone_is_named(pictures):
    root, _ = pictures
    (root / "out" / "b_m1.png").unlink()
    with pytest.raises(InputError, match=r"b_m1\.png"):
        scoring.evaluate([root / "out"], [root], None, "strict", 2.0)


def test_a_volume_with_its_scaled_probability_and_millimetres(tmp_path):
    rng = np.random.default_rng(1)
    reference, *members = (blobs(rng, (20, 18, 9), (1,)) for _ in range(3))
    chance = rng.integers(0, 256, reference.shape, dtype=np.uint8)
    for folder in ("out", "masks"):
        (tmp_path / folder).mkdir()

    def write(path, array, unit=False):
        image = nib.Nifti1Image(array, AFFINE)
        if unit:
            image.header.set_slope_inter(1 / 255, 0)
        nib.save(image, tmp_path / path)

    write("masks/a.nii.gz", reference)
    write("out/a.nii.gz", members[0])
    for number, member in enumerate(members):
        write(f"out/a_m{number}.nii.gz", member)
    write("out/a_p.nii.gz", chance, unit=True)
    files = {"mask": ["a.nii.gz"], "members": ["a_m0.nii.gz", "a_m1.nii.gz"]}
    write_run(tmp_path / "out", SCAN, {"a": files | {"probability": ["a_p.nii.gz"]}})
    found = scoring.evaluate([tmp_path / "out"], [tmp_path], None, "strict", 2.0).uncertainty
    (case,) = found.cases
    ged = metrics.generalized_energy_distance(members, [reference])
    assert case.values["ged"] == pytest.approx(ged) and not case.rater_dice
    # Five times the smallest side of a voxel, in mm: two slices up and down.
    band = metrics.border_band(reference, (1.0, 1.0, 2.5), 5.0)
    near = metrics.measure_calibration(chance / 255, reference, band)
    assert case.calibration["border"].total == near.total < reference.size
    assert case.calibration["border"].brier == pytest.approx(near.brier, rel=1e-5)
    assert found.ranking == {}  # one case has no order


def test_a_report_does_not_go_where_masks_are_read(pictures):
    root, _ = pictures
    for folder in ("out", "masks_x"):
        with pytest.raises(InputError, match=f"{folder} is read, too"):
            scoring.check_output(root / "masks_x" / ".." / folder, root / "out", root / "masks_x")
    with pytest.raises(InputError, match=r"run\.json is no folder"):
        scoring.check_output(root / "out" / "run.json", root / "out", root)
    scoring.check_output(root / "report", root / "out", root)
    assert not (root / "report").exists()


def test_the_table_says_of_how_many_cases_a_mean_is():
    full, empty = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    scores = [
        aggregate.score_case(name, "disc", mask, full, (1.0, 1.0), 2.0, "ignore")
        for name, mask in (("a", full), ("b", empty))
    ]
    table = aggregate.table(scores)
    evaluation = SimpleNamespace(table=table)
    dice, iou, hd95 = scoring.format_table(evaluation).splitlines()[1].split("]")[:3]
    assert "n=" not in dice + iou
    assert scoring.format_table(evaluation).splitlines()[1].endswith("  2")
    assert " n=1 " in scoring.format_table(evaluation)


@pytest.mark.parametrize("files", [{"mask": []}, {"mask": None}, {}])
def test_a_run_without_masks_is_named(pictures, files):
    root, _ = pictures
    write_run(root / "out", ORGANS, {"a": files})
    with pytest.raises(InputError, match="is not the run.json of a run that saved masks"):
        scoring.evaluate([root / "out"], [root], None, "strict", 2.0)
