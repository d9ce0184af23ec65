"""calibrate.py: a temperature that is fitted, kept with the checkpoint, exported and used."""

import json
import shutil

import numpy as np
import pytest

from medsegdiff_jax import export
from medsegdiff_jax.metrics.calibration import apply_temperature
from medsegdiff_jax.segmenter import Segmenter


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the trained workdir."""
    return shutil.copytree(trained, tmp_path / "run")


def test_a_temperature_is_kept_used_and_exported(workdir, command, disc_folder, tmp_path):
    said = command("calibrate.py", f"--checkpoint={workdir}").output
    (step,) = (workdir / "checkpoints").iterdir()
    stored = json.loads((step / "calibration.json").read_text())
    assert f"temperature {stored['temperature']:.3f} from 4 validation cases" in said
    brier = stored["brier"]
    assert f"Brier score of whole images {brier['before']:.4f} and {brier['after']:.4f}" in said
    assert ("it is for the worse" in said) == (brier["after"] > brier["before"])
    assert stored["temperature"] != 1 and stored["ece"]["after"] < stored["ece"]["before"]
    image = np.random.default_rng(0).integers(0, 256, (1, 37, 22, 3), dtype=np.uint8)
    calibrated = Segmenter.load(workdir)
    result = calibrated(image, case_ids=["a"])
    assert calibrated.temperature == stored["temperature"]
    calibrated.temperature = 1.0
    plain = calibrated(image, case_ids=["a"])
    expected = apply_temperature(plain.probability, stored["temperature"])
    np.testing.assert_allclose(result.probability, expected, atol=1e-5)
    np.testing.assert_array_equal(result.mask, plain.mask)
    voted = [
        segmenter(image, case_ids=["a"], fusion="vote").probability
        for segmenter in (calibrated, Segmenter.load(workdir))
    ]
    np.testing.assert_array_equal(*voted)  # shares of votes are no probabilities to calibrate
    export.export(workdir, tmp_path / "exported")
    assert Segmenter.load(tmp_path / "exported").temperature == stored["temperature"]
    assert "is exported" in command("calibrate.py", f"--checkpoint={tmp_path / 'exported'}").refusal


def test_a_calibrated_checkpoint_resumes(workdir, command, train):
    command("calibrate.py", f"--checkpoint={workdir}", "--members=1", "--steps=1")
    assert "resuming at step 60" in train(workdir, "--config.num_steps=61").stderr


def test_other_settings_than_those_of_the_fit_are_named(workdir, command, disc_folder, tmp_path):
    command("calibrate.py", f"--checkpoint={workdir}", "--members=1", "--steps=1")
    export.export(workdir, tmp_path / "exported")

    def said(checkpoint, *flags):
        where = (f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}")
        return command("sample.py", f"--input={disc_folder}", "--members=1", *where, *flags).stderr

    warning = "the temperature of this checkpoint was fitted with steps=1;"
    assert warning in said(workdir, "--steps=2")
    assert warning in said(tmp_path / "exported", "--steps=2")
    assert "was fitted with" not in said(workdir, "--steps=1")
    assert "was fitted with" not in said(workdir, "--steps=2", "--fusion=vote")
    for flags, mirror in (((), True), (("--nomirror",), False)):
        said(workdir, "--steps=1", "--members=3", *flags)
        run = json.loads((tmp_path / "out" / "run.json").read_text())
        assert run["sampling"]["mirror"] == mirror


def test_other_data_than_those_of_the_training_are_refused(workdir, command):
    (described,) = workdir.glob("checkpoints/*/metadata/metadata")
    described.write_text(json.dumps(json.loads(described.read_text()) | {"fingerprint": "other"}))
    refused = command("calibrate.py", f"--checkpoint={workdir}").refusal
    assert "the dataset has changed since this training began" in refused
    assert not list(workdir.rglob("calibration.json"))


def test_where_there_is_no_model_one_line_says_so(command, tmp_path):
    assert "no such folder" in command("calibrate.py", f"--checkpoint={tmp_path / 'x'}").refusal
