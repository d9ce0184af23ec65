"""Two checkpoints as one ensemble, and two folders of predictions as one evaluation, by command."""

import json

import numpy as np
import pytest
from PIL import Image

NAMES = ("disc_20", "disc_21", "disc_22", "disc_23")


@pytest.fixture(scope="module")
def sample(command, disc_folder, tmp_path_factory):
    """Runs sample.py on the test discs: sample(checkpoints, flags...) -> output folder, outcome."""
    root = tmp_path_factory.mktemp("several")

    def run(checkpoints, *flags, names=NAMES):
        output = root / f"out{len(list(root.iterdir()))}"
        output.mkdir()
        (names_file := output.with_suffix(".txt")).write_text("\n".join(names))
        outcome = command(
            "sample.py",
            *(f"--checkpoint={one}" for one in checkpoints),
            f"--input={disc_folder}",
            f"--list={names_file}",
            f"--output={output}",
            "--save=mask,members",
            *flags,
        )
        return output, outcome

    return run


def members(folder, case):
    """Label ids of each sample, [n, H, W]."""
    return np.stack([Image.open(path) for path in sorted(folder.glob(f"{case}_member_*.png"))])


def test_checkpoints_take_turns_in_one_ensemble(sample, trained, exported):
    both, outcome = sample([trained, exported], "--members=3", "--seed=4", names=NAMES[:2])
    assert outcome.code == 0, outcome.stderr
    assert "6 members, " in outcome.stdout and f"from {trained}, {exported}" in outcome.stdout
    run = json.loads((both / "run.json").read_text())
    assert {entry["members"] for entry in run["cases"].values()} == {6}
    first, second = run["checkpoint"].split("; ")
    assert second == f"{first}, exported"
    masks = np.concatenate([members(both, case) for case in NAMES[:2]])
    assert masks.any() and (masks[::2] != masks[1::2]).any()  # else the turns would not show
    for turn in range(2):
        alone, _ = sample([trained], "--members=3", f"--seed={4 + turn}", names=NAMES[:2])
        for case in NAMES[:2]:
            found, expected = members(both, case)[turn::2], members(alone, case)
            assert found.shape == expected.shape and np.mean(found != expected) < 1e-3

    (step,) = (trained / "checkpoints").iterdir()
    _, outcome = sample([trained, step])
    assert f"error: {step}: is given twice" in outcome.refusal


def test_calibrate_and_export_take_one(command, trained, exported, tmp_path):
    flags = (f"--checkpoint={trained}", f"--checkpoint={exported}")
    assert "--checkpoint: is given 2 times" in command("calibrate.py", *flags).refusal
    outcome = command("export.py", *flags, f"--output={tmp_path / 'out'}")
    assert "--checkpoint: is given 2 times" in outcome.refusal and not (tmp_path / "out").exists()


def test_folders_are_scored_as_one(command, sample, trained, disc_folder, tmp_path):
    folders = [sample([trained], names=names)[0] for names in (NAMES[:1], NAMES[1:])]
    flags = [f"--predictions={one}" for one in folders]
    common = (f"--references={disc_folder}", f"--output={tmp_path / 'report'}")
    outcome = command("evaluate.py", *flags, *common)
    assert outcome.code == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[1].startswith("foreground") and lines[1].endswith(" 4")
    assert [line.partition(":")[0] for line in lines[2:4]] == [str(one) for one in folders]
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    own = [metrics["folders"][str(folder)]["dice"]["mean"] for folder in folders]
    weighted = (own[0] + 3 * own[1]) / 4
    assert metrics["classes"]["foreground"]["dice"]["mean"] == pytest.approx(weighted)
    outcome = command("evaluate.py", flags[0], flags[0], *common)
    assert "has a prediction of disc_20, as" in outcome.refusal
