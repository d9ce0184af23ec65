"""Wrong input ends every command with status 2 and one line that names the file or the field."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from medsegdiff_jax import checkpoint
from medsegdiff_jax.types import InputError


def leftovers(root):
    """Files under a temporary name."""
    marks = (".tmp", ".partial")
    return [path for path in root.rglob("*") if any(mark in path.name for mark in marks)]


@pytest.fixture
def broken_discs(disc_folder, tmp_path):
    """A copy of the discs, to be broken."""
    return shutil.copytree(disc_folder, tmp_path / "broken")


def _train(command, data, tmp_path, *flags, config="configs/folder.py:default,tiny", **limits):
    return command(
        "train.py",
        f"--config={config}",
        *([f"--config.data.path={data}"] if data else []),
        f"--config.data.cache_dir={tmp_path / 'cache'}",
        "--config.data.image_size=16",
        "--config.num_steps=1",  # should it train after all
        f"--workdir={tmp_path / 'run'}",
        *flags,
        **limits,
    )


@pytest.mark.parametrize(
    ("flags", "config", "named"),
    [
        (["--config.modle.x=1"], "configs/folder.py", "modle"),
        (
            ["--config.batchsize=3"],
            "configs/folder.py",
            "no config field 'batchsize'. Did you mean",
        ),
        (["--config.num_steps=many"], "configs/folder.py", "num_steps"),
        (["--config.diffusion.schedule=3.5.1"], "configs/folder.py", "schedule"),
        (["--config.num_steps=0"], "configs/folder.py:default,tiny", "num_steps"),
        ([], "configs/folder.py:papr", "papr"),
        ([], "configs/nowhere.py", "configs/nowhere.py"),
        (["--wrokdir=x"], "configs/folder.py", "wrokdir"),
        (
            ["--config.model.widths=(8,16)", "--config.model.widths=(4,8)", "--config.num_steps=1"],
            "configs/folder.py",
            "--config.model.widths is given 2 times",
        ),
        (["discs"], "configs/folder.py", "discs"),
    ],
)
def test_train_refuses_flags_and_fields(command, disc_folder, tmp_path, flags, config, named):
    line = _train(command, disc_folder, tmp_path, *flags, config=config).refusal
    assert named in line
    assert not (tmp_path / "run").exists()


def test_train_needs_its_flags(command):
    assert "--workdir" in command("train.py", "--config=configs/folder.py").refusal


def _no_images(root):
    shutil.rmtree(root / "images")
    return f"{root}: has no folder images/"


def _mask_without_image(root):
    (root / "images" / "disc_03.png").unlink()
    return "masks/disc_03.png"


def _other_size(root):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "masks" / "disc_05.png")
    return "disc_05"


def _truncated(root):
    path = root / "images" / "disc_06.png"
    path.write_bytes(path.read_bytes()[:300])
    return "images/disc_06.png"


def _unknown_case(root):
    (root / "train.txt").write_text("disc_00\ndisc_99.png\n")
    return "for disc_99.png; a case is called 'disc_00'"


@pytest.mark.parametrize(
    "break_folder", [_no_images, _mask_without_image, _other_size, _truncated, _unknown_case]
)
def test_train_names_what_is_wrong_with_the_folder(command, broken_discs, tmp_path, break_folder):
    named = break_folder(broken_discs)
    assert named in _train(command, broken_discs, tmp_path).refusal
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache").glob("folder/size*/*/dataset_info.json"))


def test_train_without_a_path_names_the_field(command, tmp_path):
    assert "data.path" in _train(command, None, tmp_path).refusal
    assert "data.path" in _train(command, tmp_path / "none", tmp_path).refusal


@pytest.fixture
def sample(command, trained, disc_folder, tmp_path):
    """Runs sample.py on two discs, or with what its flags put in their place."""
    (tmp_path / "input").mkdir()
    for name in ("disc_00.png", "disc_01.png"):
        shutil.copy(disc_folder / "images" / name, tmp_path / "input")
    defaults = {"checkpoint": trained, "input": tmp_path / "input", "output": tmp_path / "out"}

    def run(largest_file=None, **changes):
        flags = (f"--{name}={value}" for name, value in (defaults | changes).items())
        return command("sample.py", *flags, largest_file=largest_file)

    return run


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"save": "mask,masks"}, "masks"),
        ({"sampler": "nonesuch"}, "sampler: 'nonesuch'"),
        ({"members": "two"}, "members"),
        ({"input": "nowhere"}, "nowhere: no such file or folder"),
        ({"input": "setup.cfg"}, "setup.cfg: no image"),
        ({"input": "configs"}, "configs: no image"),
        ({"list": "nowhere.txt"}, "nowhere.txt: no such list"),
        ({"list": "setup.cfg"}, "setup.cfg: [metadata] has no image; a case is called 'disc_00'"),
        ({"checkpoint": "nowhere"}, "nowhere: no such folder"),
        ({"checkpoint": "configs"}, "configs: neither a workdir"),
    ],
)
def test_sample_refuses(sample, tmp_path, changes, named):
    assert named in sample(**changes).refusal
    assert not (tmp_path / "out").exists()


def test_sample_refuses_an_empty_folder_and_two_images_with_one_name(sample, tmp_path):
    (tmp_path / "empty" / "images").mkdir(parents=True)
    assert "empty: no image" in sample(input=tmp_path / "empty").refusal
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "input" / "disc_00.bmp")
    line = sample().refusal
    assert "disc_00.png" in line and "disc_00.bmp" in line and "two images" in line
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_read_are_left_out_and_named_at_the_end(sample, tmp_path):
    images = tmp_path / "input"
    whole = (images / "disc_00.png").read_bytes()
    (images / "disc_00a.bmp").write_bytes(b"no image")
    (images / "disc_00b.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(images / "disc_00c.tif")
    done = sample()
    assert "disc_00a.bmp: cannot be read as an image" in done.refusal
    assert done.refusal.endswith("; left out, as 2 more (see above), the others are done")
    for name in ("disc_00b.png", "disc_00c.tif"):
        assert f"left out: {images / name}: " in done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    kinds = ("", "_probability", "_uncertainty", "_overlay")
    expected = {f"disc_0{i}{kind}.png" for i in (0, 1) for kind in kinds}
    assert names == expected | {"run.json", "contact_sheet.png"}
    listed = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
    assert list(listed) == ["disc_00", "disc_01"]
    (images / "disc_00a.bmp").unlink()
    (images / "disc_00b.png").write_bytes(whole)
    again = sample()
    assert "disc_00c.tif: holds non-finite" in again.refusal
    assert again.refusal.endswith("; left out, the others are done")
    assert (tmp_path / "out" / "disc_00b.png").exists() and "2 of 4 cases are done" in again.stderr


def _truncate(folder):
    """Cuts the large files of a checkpoint."""
    cut = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    for path in cut:
        path.write_bytes(path.read_bytes()[:100])
    assert cut


def test_damaged_checkpoints_are_named(sample, command, trained, exported, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "workdir")
    _truncate(workdir / "checkpoints" / "60" / "ema")
    assert "checkpoints/60: the checkpoint cannot be read" in sample(checkpoint=workdir).refusal
    refused = command("export.py", f"--checkpoint={workdir}", f"--output={tmp_path / 'model'}")
    assert "checkpoints/60" in refused.refusal
    model = shutil.copytree(exported, tmp_path / "exported")
    (model / "model.json").write_text('{"config": {')
    assert "exported: the checkpoint cannot be read" in sample(checkpoint=model).refusal
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)
    assert not (tmp_path / "model").exists()


def test_export_does_not_write_into_a_folder_in_use(command, trained, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    refused = command("export.py", f"--checkpoint={trained}", f"--output={tmp_path}")
    assert f"{tmp_path}: exists and is not empty" in refused.refusal
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.fixture
def evaluate(command, disc_folder, tmp_path):
    """Runs evaluate.py on a folder of predictions made of two references."""
    task = {"classes": ["disc"], "label_values": [255], "exclusive": True, "image_channels": 3}
    (tmp_path / "predictions").mkdir()
    cases = {}
    for case in ("disc_00", "disc_01"):
        shutil.copy(disc_folder / "masks" / f"{case}.png", tmp_path / "predictions")
        cases[case] = {"files": {"mask": [f"{case}.png"]}, "seconds": 0.1}
    (tmp_path / "predictions" / "run.json").write_text(json.dumps({"task": task, "cases": cases}))
    references = shutil.copytree(disc_folder / "masks", tmp_path / "references")

    def run(*flags):
        return command(
            "evaluate.py",
            f"--predictions={tmp_path / 'predictions'}",
            f"--references={references}",
            f"--output={tmp_path / 'report'}",
            *flags,
        )

    return run


def test_without_mistakes_the_evaluation_of_these_tests_works(evaluate):
    assert "1.0000" in evaluate().output


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--spacing=1"], "--spacing=1"),
        (["--spacing=1,-2"], "--spacing=1,-2"),
        (["--spacing=1,nan"], "--spacing=1,nan"),
        (["--spacing=one,1"], "--spacing=one,1"),
        (["--empty=skip"], "'skip'"),
        (["--predictions=configs"], "configs/run.json"),
        (["--references=nowhere"], "nowhere: no such folder"),
        (["--references=configs"], "configs: holds no mask"),
    ],
)
def test_evaluate_refuses(evaluate, tmp_path, flags, named):
    assert named in evaluate(*flags).refusal
    assert not (tmp_path / "report").exists()


def test_predictions_are_no_references_of_themselves(evaluate, tmp_path):
    refused = evaluate(f"--references={tmp_path / 'predictions'}").refusal
    assert f"{tmp_path / 'predictions'}: holds predictions" in refused
    assert not (tmp_path / "report").exists()


def test_evaluate_names_the_mask_that_does_not_fit(evaluate, tmp_path):
    reference = tmp_path / "references" / "disc_01.png"
    reference.unlink()
    line = evaluate().refusal
    assert f"{reference.parent}: no mask of disc_01, which has a prediction" in line
    (tmp_path / "references" / "disc_00.png").rename(tmp_path / "references" / "disc_09.png")
    both = evaluate()
    assert both.refusal.endswith("no mask of disc_00, which has a prediction (2 of 2 have none)")
    assert "scoring" not in both.stderr
    (tmp_path / "references" / "disc_09.png").rename(tmp_path / "references" / "disc_00.png")
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(reference)
    line = evaluate().refusal
    assert str(reference) in line and "7x9" in line and "24x24" in line
    (tmp_path / "predictions" / "disc_00.png").unlink()
    assert "predictions/disc_00.png" in evaluate().refusal
    (tmp_path / "predictions" / "run.json").write_text('{"cases": ')
    assert "run.json: is not the run.json" in evaluate().refusal
    assert not (tmp_path / "report").exists()


def test_sample_on_a_full_disk(sample, disc_folder, tmp_path):
    """Files of up to 4 kB can be written: the masks of the discs, not a picture of noise."""
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "input" / "disc_02.png")
    line = sample(largest_file=8192).refusal
    assert "disc_02_overlay.png" in line and "too large" in line
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert "disc_01_overlay.png" in written and "disc_02_overlay.png" not in written
    assert list(json.loads((tmp_path / "out" / "run.json").read_text())["cases"]) == [
        "disc_00",
        "disc_01",
    ]
    assert not leftovers(tmp_path)


def test_train_on_a_full_disk(train, trained, tmp_path):
    """Data prepared (`trained`), but no room: for any file, then for a checkpoint; then room."""
    workdir = tmp_path / "run"
    line = train(workdir, "--config.num_steps=1", largest_file=1_500).refusal
    assert f"{workdir / 'config.json'}: File too large" in line
    assert not list(workdir.iterdir())
    outcome = train(workdir, "--config.num_steps=1", largest_file=200_000)
    # Only a file of the training state is larger. The checkpoint library reports each file that it
    # could not write; our line is the last.
    assert outcome.code == 2, outcome.stderr[-3000:]
    line = outcome.stderr.splitlines()[-1]
    assert line.startswith("error: ") and str(workdir) in line and "too large" in line
    assert not leftovers(workdir)
    with pytest.raises(InputError, match="no finished checkpoint"):
        checkpoint.load_model(workdir)
    again = train(workdir, "--config.num_steps=1")
    assert again.code == 0, again.stderr
    assert "step 1 " in checkpoint.load_model(workdir).description
