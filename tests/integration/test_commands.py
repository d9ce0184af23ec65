"""train, sample, evaluate, export and sample again, as a user runs them."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medsegdiff_jax import __version__, checkpoint

ROOT = Path(__file__).parents[2]
SIZES = {"disc_20": (24, 24), "odd": (19, 33)}  # height, width


@pytest.fixture(scope="module")
def inputs(disc_folder, tmp_path_factory):
    """Two images: one of the discs, and another stretched to an odd size; with their masks."""
    root = tmp_path_factory.mktemp("inputs")
    for kind in ("images", "masks"):
        (root / kind).mkdir()
        shutil.copy(disc_folder / kind / "disc_20.png", root / kind)
        with Image.open(disc_folder / kind / "disc_21.png") as picture:
            picture.resize((33, 19), Image.Resampling.NEAREST).save(root / kind / "odd.png")
    return root


@pytest.fixture(scope="module")
def predicted(command, trained, inputs, tmp_path_factory):
    """Output folder of sample.py with its defaults, and what it said."""
    output = tmp_path_factory.mktemp("predicted") / "out"
    outcome = command(
        "sample.py", f"--checkpoint={trained}", f"--input={inputs}", f"--output={output}"
    )
    assert outcome.code == 0, outcome.stderr
    return output, outcome


def pixels(path):
    """Array of a PNG."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def digests(folder, pattern="*.png"):
    """File name -> SHA-256."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob(pattern)
    }


def test_train_writes_a_run_that_sample_can_use(training, inputs, tmp_path):
    workdir, outcome = training
    assert "step 60/60" in outcome.stderr and "step 60  validation" in outcome.stderr
    names = {path.name for path in workdir.iterdir()}
    assert {"config.json", "parameters.txt", "metrics.jsonl", "checkpoints"} <= names
    assert "learning_curve.png" in names
    flags = [
        f"--checkpoint={workdir}",
        f"--input={inputs / 'images' / 'odd.png'}",
        f"--output={tmp_path / 'out'}",
        "--steps=0",
    ]
    # Once as a process of its own, imports and all.
    done = subprocess.run(
        [sys.executable, "sample.py", *flags],
        cwd=ROOT,
        env={"JAX_PLATFORMS": "cpu", **os.environ},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "EMA weights of step 60" in done.stdout
    assert pixels(tmp_path / "out" / "odd.png").shape == SIZES["odd"]


def test_sample_writes_the_files_of_every_case(predicted):
    output, outcome = predicted
    expected = {"run.json", "contact_sheet.png"}
    for case, size in SIZES.items():
        expected |= {
            f"{case}{kind}.png" for kind in ("", "_probability", "_uncertainty", "_overlay")
        }
        mask, probability = (
            pixels(output / f"{case}.png"),
            pixels(output / f"{case}_probability.png"),
        )
        assert mask.shape == probability.shape == size
        assert pixels(output / f"{case}_uncertainty.png").shape == size
        assert pixels(output / f"{case}_overlay.png").shape == (*size, 3)
        assert probability[mask == 0].max() <= min(128, probability[mask > 0].min())
    assert {path.name for path in output.iterdir()} == expected
    assert min(pixels(output / "contact_sheet.png").shape[:2]) > 200
    assert "segmenting  2/2" in outcome.stderr
    assert "using EMA weights of step 60" in outcome.stdout
    assert "2 members, 2 ddim steps, fused by" in outcome.stdout


def test_run_json_says_how_the_masks_were_made(predicted, trained):
    output, _ = predicted
    run = json.loads((output / "run.json").read_text())
    loaded = checkpoint.load_model(trained)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(loaded.params)):
        digest.update(leaf.tobytes())
    assert run["version"] == __version__ and run["jax"] == jax.__version__
    assert run["checkpoint_sha256"] == digest.hexdigest()
    assert run["checkpoint"] == loaded.description
    assert run["config"] == json.loads(json.dumps(loaded.config.to_dict()))
    assert run["task"] == json.loads(json.dumps(loaded.task.to_json()))
    assert run["sampling"]["seed"] == 0 and run["sampling"]["members"] == 2
    assert list(run["cases"]) == sorted(SIZES)
    for case, entry in run["cases"].items():
        assert entry["files"]["mask"] == [f"{case}.png"]
        assert all((output / name).is_file() for names in entry["files"].values() for name in names)
        assert 0 <= entry["seconds"] < 300
    assert sum(entry["seconds"] for entry in run["cases"].values()) > 0


def test_list_members_and_the_seed(command, trained, inputs, disc_folder, predicted, tmp_path):
    (tmp_path / "list.txt").write_text("odd.png\n\ndisc_20\n")
    (inputs / "images" / "notes.txt").write_text("not an image")
    shared = [f"--checkpoint={trained}", f"--input={inputs}", f"--list={tmp_path / 'list.txt'}"]
    for name, seed in (("a", 0), ("b", 1)):
        run = command(
            "sample.py",
            *shared,
            f"--seed={seed}",
            "--save=mask,probability,uncertainty,overlay,members",
            f"--output={tmp_path / name}",
        )
        assert run.code == 0, run.stderr
    again, other = digests(tmp_path / "a"), digests(tmp_path / "b")
    first = digests(predicted[0], "[do]*_probability.png") | digests(predicted[0], "[do]*.png")
    assert len(first) == 8 and first.items() <= again.items()
    assert any(again[name] != other[name] for name in first if "_probability" in name)
    written = json.loads((tmp_path / "a" / "run.json").read_text())["cases"]
    assert list(written) == ["odd", "disc_20"]
    assert written["odd"]["files"]["members"] == ["odd_member_00.png", "odd_member_01.png"]
    for case, size in SIZES.items():
        members = [pixels(tmp_path / "a" / f"{case}_member_{i:02d}.png") for i in range(2)]
        assert [member.shape for member in members] == [size, size]
    (tmp_path / "one.txt").write_text("odd\n")
    shared[-1] = f"--list={tmp_path / 'one.txt'}"
    one = command("sample.py", *shared, "--save=mask", f"--output={tmp_path / 'one'}")
    assert one.code == 0, one.stderr
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "odd.png",
        "run.json",
        "contact_sheet.png",
    }


def test_the_exported_model_writes_the_same_files(command, trained, inputs, predicted, tmp_path):
    exported = command("export.py", f"--checkpoint={trained}", f"--output={tmp_path / 'model'}")
    assert "EMA weights of step 60" in exported.output
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"params", "model.json"}
    model = json.loads((tmp_path / "model" / "model.json").read_text())
    assert model["preprocessing"]["size"] == [16, 16] and "task" in model
    where = {name: model["config"]["data"][name] for name in ("path", "cache_dir")}
    assert where == {"path": "", "cache_dir": ""}  # nobody else's business
    sampled = command(
        "sample.py",
        f"--checkpoint={tmp_path / 'model'}",
        f"--input={inputs}",
        f"--output={tmp_path / 'out'}",
    )
    assert sampled.code == 0, sampled.stderr
    ours, theirs = digests(tmp_path / "out"), digests(predicted[0])
    assert ours == theirs and len(ours) == 9


def surface_distances(mask, other):
    """Distance of every border pixel of `mask` to the nearest one of `other`."""
    borders = [
        np.argwhere(region & ~ndimage.binary_erosion(region, border_value=0))
        for region in (mask, other)
    ]
    return np.linalg.norm((borders[0][:, None] - borders[1]) * (0.5, 2.0), axis=-1).min(axis=1)


def test_evaluate_reports_what_numpy_finds_in_the_masks(command, inputs, predicted, tmp_path):
    outcome = command(
        "evaluate.py",
        f"--predictions={predicted[0]}",
        f"--references={inputs}",
        f"--output={tmp_path}",
        "--spacing=0.5,2",
        "--nsd_tolerance=3.5",
    )
    table = outcome.output.splitlines()
    assert "Dice" in table[0] and table[1].endswith("  2")
    expected = {}
    for case in sorted(SIZES):
        ours, theirs = (
            pixels(predicted[0] / f"{case}.png") > 0,
            pixels(inputs / "masks" / f"{case}.png") > 0,
        )
        assert ours.any()
        both = (ours & theirs).sum()
        directed = [surface_distances(*pair) for pair in ((ours, theirs), (theirs, ours))]
        pooled = np.concatenate(directed)
        expected[case] = {
            "dice": 2 * both / (ours.sum() + theirs.sum()),
            "iou": both / (ours | theirs).sum(),
            "sensitivity": both / theirs.sum(),
            "precision": both / ours.sum(),
            "hd95": max(np.percentile(distances, 95) for distances in directed),
            "assd": pooled.mean(),
            "nsd": (pooled <= 3.5).mean(),
        }
    with open(tmp_path / "per_case.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == sorted(SIZES)
    (summary,) = json.loads((tmp_path / "metrics.json").read_text())["classes"].values()
    for metric in ("dice", "iou", "sensitivity", "precision", "hd95", "assd", "nsd"):
        for row in rows:
            assert float(row[metric]) == pytest.approx(expected[row["case"]][metric], abs=1e-9)
        mean = np.mean([values[metric] for values in expected.values()])
        assert summary[metric]["mean"] == pytest.approx(mean, abs=1e-9)
        assert summary[metric]["n_cases"] == 2
    assert f"{summary['dice']['mean']:.4f}" in outcome.stdout
    assert pixels(tmp_path / "dice.png").std() > 1
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["spacing"] == [0.5, 2.0] and metrics["empty_mask_policy"] == "strict"


def test_several_raters_count_by_majority(command, inputs, predicted, tmp_path):
    """Two raters agree, the third says everything is foreground; one reference is left over."""
    for rater in "abc":
        folder = tmp_path / "raters" / f"masks_{rater}"
        shutil.copytree(inputs / "masks", folder)
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "unseen.png")
    for case, size in SIZES.items():
        full = Image.fromarray(np.full(size, 255, np.uint8))
        full.save(tmp_path / "raters" / "masks_c" / f"{case}.png")
    for name, references in (
        ("single", inputs),
        ("raters", tmp_path / "raters"),
        ("full", tmp_path / "raters" / "masks_c"),
    ):
        outcome = command(
            "evaluate.py",
            f"--predictions={predicted[0]}",
            f"--references={references}",
            f"--output={tmp_path / 'reports' / name}",
        )
        assert outcome.code == 0, outcome.stderr
        assert ("1 references have no prediction" in outcome.stdout) == (name != "single")
    tables = {}
    for name in ("single", "raters", "full"):
        with open(tmp_path / "reports" / name / "per_case.csv", newline="") as file:
            tables[name] = list(csv.DictReader(file))
    for single, raters, full in zip(*tables.values(), strict=True):
        for metric in ("dice", "iou", "hd95"):
            assert raters[metric] == single[metric] != full[metric]
        assert raters["dice_of_a"] == raters["dice_of_b"] == "1.0" and "dice_of_a" not in single
        assert 0 < float(raters["dice_of_c"]) < 1
    metrics = json.loads((tmp_path / "reports" / "raters" / "metrics.json").read_text())
    assert metrics["references_without_prediction"] == ["unseen"]
