"""The model behind one call: any image in, the same answer however it is computed."""

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

from medsegdiff_jax import checkpoint, denoiser, imaging, input_pipeline, metrics
from medsegdiff_jax.segmenter import Segmentation, Segmenter
from medsegdiff_jax.types import InputError
from tests.runs import logged

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def segmenter(trained):
    """The trained model."""
    return Segmenter.load(trained)


@pytest.fixture(scope="module")
def discs(disc_folder):
    """uint8 [5, 24, 24, 3]: images of the test list, and one more."""
    paths = sorted((disc_folder / "images").iterdir())[-5:]
    return np.stack([imaging.read_image(path) for path in paths])


def assert_alike(ours, theirs, pick=slice(None)):
    """Every field agrees; `pick` chooses and orders the cases of `theirs`."""
    for field in ("probability", "uncertainty"):
        ours_field, theirs_field = getattr(ours, field), getattr(theirs, field)[pick]
        np.testing.assert_allclose(ours_field, theirs_field, atol=1e-5, err_msg=field)
    assert np.mean(ours.mask != theirs.mask[pick]) < 1e-3
    assert np.mean(ours.members != theirs.members[pick]) < 1e-3


def test_validation_scores_what_the_segmenter_would_answer(trained):
    """With the averaged weights, the seed and the fusion of the run, pixel by pixel."""
    loaded = checkpoint.load_model(trained)
    dataset = input_pipeline.load(loaded.config.data)
    (batch,) = input_pipeline.eval_batches(dataset, "validation", batch_size=4)
    images = np.stack([example["image"] for example in dataset.sources["validation"]])
    seed = loaded.config.seed
    settings = {"mirror": False, "decision": "probable", "members": 2, "seed": seed}
    (row,) = [one for one in logged(trained) if "validation/dice" in one]
    found = {}
    for name, steps in (("dice", 2), ("condition_dice", 0)):
        answer = Segmenter(loaded)(images, case_ids=batch["id"], steps=steps, **settings)
        dice = metrics.dice(answer.mask > 0, batch["mask"][..., 0] > 0, axis=(1, 2))
        found[name] = np.mean(dice)
        # Two programs: a pixel may fall on the other side of one half.
        assert found[name] == pytest.approx(row[f"validation/{name}"], abs=0.004)
    assert found["dice"] > 0.1 and abs(found["dice"] - found["condition_dice"]) > 0.01


@pytest.mark.parametrize("shape", [(24, 24, 3), (31, 17, 3), (9, 40, 1), (1, 1, 3), (16, 16, 1)])
def test_a_result_has_the_size_of_its_image(segmenter, shape):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, shape).astype(np.uint8)
    result = segmenter([image], members=3, member_chunk=3)
    height, width = shape[:2]
    assert result.mask.shape == (1, height, width) and result.mask.dtype == np.uint8
    assert result.probability.shape == (1, height, width, 1)
    assert result.uncertainty.shape == (1, height, width)
    assert result.members.shape == (1, 3, height, width)
    assert result.probability.dtype == result.uncertainty.dtype == np.float32
    for array in (result.probability, result.uncertainty):
        assert array.min() >= 0 and array.max() <= 1
    (value,) = segmenter.task.label_values
    assert set(np.unique(result.mask)) | set(np.unique(result.members)) <= {0, value}
    marked, probability = result.mask == value, result.probability[..., 0]
    assert probability[~marked].max(initial=0) <= min(0.5, probability[marked].min(initial=1))


def test_the_model_of_these_tests_finds_discs_and_doubts(segmenter, discs, disc_folder):
    """Otherwise the comparisons below would compare constants."""
    result = segmenter(discs)
    assert result.probability.std() > 0.1 and result.uncertainty.std() > 0.05
    assert 0.02 < (result.mask > 0).mean() < 0.98
    assert (result.members[:, 0] != result.members[:, 1]).any()


def test_grey_images_are_like_colour_images_with_three_equal_channels(segmenter, discs):
    grey = discs[:2, 4:20, 4:20, :1]  # of the network's size: resizing rounds them differently
    assert_alike(segmenter(grey, case_ids="ab"), segmenter(np.repeat(grey, 3, -1), case_ids="ab"))


def test_depth_and_float_range_do_not_matter(segmenter, discs):
    images = [discs[0], discs[0].astype(np.uint16) * 257, discs[0].astype(np.float32) / 255]
    result = segmenter(images, case_ids="aaa")
    for index in (1, 2):
        # Only the 8-bit image is rounded to integers when it is resized.
        np.testing.assert_allclose(result.probability[index], result.probability[0], atol=0.1)
    np.testing.assert_allclose(result.probability[1], result.probability[2], atol=1e-3)


def test_a_case_depends_on_nothing_but_its_image_its_name_and_the_seed(segmenter, discs):
    names = [f"case {i}" for i in range(5)]
    whole = segmenter(discs, case_ids=names, batch_size=5, members=3, seed=7)
    order = [3, 0, 4, 2, 1]
    shuffled = segmenter(
        discs[order],
        case_ids=[names[i] for i in order],
        batch_size=2,
        members=3,
        member_chunk=1,
        seed=7,
    )
    assert_alike(shuffled, whole, order)
    other_seed = segmenter(discs[:2], case_ids=names[:2], members=3, batch_size=2, seed=8)
    other_name = segmenter(discs[:2], case_ids=["x", "y"], members=3, batch_size=2, seed=7)
    for other in (other_seed, other_name):
        assert np.abs(other.probability - whole.probability[:2]).max() > 0.01


def test_without_names_the_content_names_a_case(segmenter, discs):
    forward = segmenter(discs[:3])
    backward = segmenter(discs[2::-1])
    assert_alike(backward, forward, slice(None, None, -1))
    twins = segmenter(np.stack([discs[0], discs[0], discs[1]]))
    np.testing.assert_array_equal(twins.members[0], twins.members[1])


def test_no_steps_is_the_condition_model(segmenter, discs):
    image = np.stack([segmenter._prepare("", disc) for disc in discs[:2]])
    condition = segmenter._model.apply({"params": segmenter.params[0]}, image, method="encode")
    expected = np.asarray(segmenter._process.logits_to_mask(condition.logits))
    result = segmenter(discs[:2], steps=0, members=4, mirror=False)
    assert result.members.shape[1] == 1
    for ours, theirs in zip(result.probability, expected, strict=True):
        resized = imaging.resize_probability(theirs, ours.shape[:2])
        np.testing.assert_allclose(ours, resized, atol=1e-5)


def test_workdir_checkpoint_and_export_are_one_model(segmenter, trained, exported, discs):
    (step,) = (trained / "checkpoints").iterdir()
    expected = segmenter(discs[:2])
    for path in (step, exported):
        assert_alike(Segmenter.load(path)(discs[:2]), expected)
    stored = checkpoint.load_model(exported).params
    for ours, theirs in zip(
        jax.tree.leaves(stored), jax.tree.leaves(segmenter.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_the_export_holds_the_parameters_and_nothing_to_resume(trained, exported):
    def size(root):
        return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())

    (step,) = (trained / "checkpoints").iterdir()
    assert {path.name for path in exported.iterdir()} == {"params", "model.json"}
    assert size(exported) < size(step) / 2
    assert not [path for path in exported.rglob("*") if b"opt_state" in path.name.encode()]
    texts = [path.read_bytes() for path in exported.rglob("_*METADATA*") if path.is_file()]
    assert texts and not any(b"opt_state" in text or b"'mu'" in text for text in texts)


def test_an_export_of_another_format_is_refused(exported, tmp_path):
    model = shutil.copytree(exported, tmp_path / "model")
    metadata = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(metadata | {"format": 2}))
    with pytest.raises(
        InputError, match="model: exported in format 2; this version reads format 1"
    ):
        checkpoint.load_model(model)


def test_images_of_different_sizes_come_back_as_lists(segmenter, discs):
    wide = np.asarray(Image.fromarray(discs[1]).resize((37, 20)))
    result = segmenter([discs[0], wide], case_ids=["a", "b"])
    assert [mask.shape for mask in result.mask] == [(24, 24), (20, 37)]
    assert [array.shape for array in result.members] == [(2, 24, 24), (2, 20, 37)]
    alone = segmenter(discs[:1], case_ids=["a"])
    np.testing.assert_allclose(result.probability[0], alone.probability[0], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "unknown setting 'colour'"),
        ({"sampler": "nonesuch"}, "sampler: 'nonesuch'"),
        ({"fusion": "max"}, "fusion: 'max'"),
        ({"members": 0}, "members: 0"),
        ({"member_chunk": 0}, "member_chunk: 0"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"steps": -1}, "steps"),
        ({"steps": 100_000}, "steps"),
        ({"seed": -1}, "seed: -1"),
        ({"tolerance": -0.1}, "tolerance: -0.1"),
        ({"tolerance": 1.0}, "tolerance: 1.0"),
        ({"members": "4"}, "members: '4' is not a whole number"),
        ({"steps": 2.5}, "steps: 2.5 is not a whole number"),
        ({"mirror": "no"}, "mirror: 'no' is not True or False"),
        ({"members": True}, "members: True is not a whole number"),
        ({"fusion": 1}, "fusion: 1 is not a word"),
    ],
)
def test_impossible_settings_are_named(segmenter, discs, changes, message):
    with pytest.raises(InputError, match=message):
        segmenter(discs[:1], **changes)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 2), np.uint8), "2 channels"),
        (np.zeros((8, 8), np.uint8), r"\[H, W, C\]"),
        (np.zeros((0, 8, 3), np.uint8), r"\[H, W, C\]"),
        (np.full((8, 8, 3), np.nan, np.float32), "not finite"),
        (np.full((8, 8, 3), np.inf), "not finite"),
        (np.ones((8, 8, 3), np.int64), "uint8, uint16 or floats, not int64"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(segmenter, discs, image, message):
    with pytest.raises(InputError, match=f"lesion 7: .*{message}"):
        segmenter([discs[0], image], case_ids=["lesion 6", "lesion 7"])


def test_an_image_without_the_axis_of_a_batch_is_refused(segmenter, discs):
    with pytest.raises(InputError, match=r"\(24, 24, 3\) is not \[B, H, W, C\]"):
        segmenter(discs[0])


def test_no_image_and_miscounted_names_are_refused(segmenter, discs):
    with pytest.raises(InputError, match="no images"):
        segmenter([])
    with pytest.raises(InputError, match="1 case_ids for 2 images"):
        segmenter(discs[:2], case_ids=["a"])


def test_a_model_is_compiled_once_for_the_same_settings(segmenter, discs, monkeypatch):
    segmenter(discs[:1], members=2)
    monkeypatch.setattr(denoiser, "make_members_fn", None)
    segmenter(discs[:1], members=np.int64(2), seed=5, fusion="vote")


def test_few_images_share_the_programs_of_powers_of_two(segmenter):
    settings = segmenter.choose(batch_size=7, mirror=np.bool_(False))
    sizes = [settings.for_cases(count).batch_size for count in (1, 2, 3, 4, 5, 9, 100)]
    assert sizes == [1, 2, 4, 4, 7, 7, 7]


EIGHT_DEVICES = """
import sys
sys.modules["tensorflow"] = None  # any import of it fails
import jax, numpy as np
from medsegdiff_jax.segmenter import Segmenter
assert jax.device_count() == 8
images = np.load(sys.argv[2])
segmenter = Segmenter.load(sys.argv[1])
result = segmenter(images, case_ids=list("abcde"), seed=3)
alone = segmenter(images[:1], case_ids=["a"], seed=3)  # its members on different devices
np.savez(sys.argv[3], **vars(result), alone=alone.probability)
"""


def test_eight_devices_without_tensorflow_agree_with_one(segmenter, trained, discs, tmp_path):
    np.save(tmp_path / "images.npy", discs)
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    arguments = [trained, tmp_path / "images.npy", tmp_path / "result.npz"]
    subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=300,
    )
    alone = segmenter(discs, case_ids=list("abcde"), seed=3)
    with np.load(tmp_path / "result.npz") as stored:
        arrays = dict(stored)
    np.testing.assert_allclose(arrays.pop("alone")[0], alone.probability[0], atol=1e-4)
    assert_alike(Segmentation(**arrays), alone)
