"""Training as a whole: it learns, resumes bitwise, keeps the right checkpoints, stops in words."""

import copy
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from medsegdiff_jax import checkpoint, trainer
from medsegdiff_jax.types import InputError, Task
from medsegdiff_jax.workdir import prepare_workdir
from tests.runs import logged

ROOT = Path(__file__).parents[2]


def leaves(tree):
    """All arrays of a tree, on the host."""
    return jax.tree.leaves(jax.device_get(tree))


def prepare(config, workdir):
    """The workdir of a run on the discs, without the run."""
    task = Task(("disc",), (255,), True, 3)
    dataset = types.SimpleNamespace(name="folder", task=task, fingerprint="0")
    return prepare_workdir(config, dataset, workdir)


def test_three_steps_and_three_more_equal_six(tiny_config, tmp_path):
    tiny_config.num_steps = 6
    whole = trainer.train(tiny_config, str(tmp_path / "whole"))
    tiny_config.num_steps = 3
    trainer.train(tiny_config, str(tmp_path / "parts"))
    tiny_config.num_steps = 6
    resumed = trainer.train(tiny_config, str(tmp_path / "parts"))
    assert int(resumed.step) == 6
    for ours, theirs in zip(leaves(resumed), leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    losses = [
        [row["loss/total"] for row in logged(tmp_path / name) if "loss/total" in row]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_it_learns_the_discs_and_keeps_the_best_and_the_last_checkpoint(tiny_config, tmp_path):
    tiny_config.num_steps = 160
    tiny_config.log_every_steps = 40
    tiny_config.eval_every_steps = 40
    tiny_config.optim.learning_rate = 3e-3
    tiny_config.data.augment.probability = 0.0
    trainer.train(tiny_config, str(tmp_path))
    rows = [row for row in logged(tmp_path) if "validation/dice" in row]
    dice = {row["step"]: row["validation/dice"] for row in rows}
    assert dice[160] > 0.9
    best = max(dice, key=lambda step: (dice[step], step))
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, 160}
    loaded = checkpoint.load_model(tmp_path)
    assert f"step {best} " in loaded.description and f"{dice[best]:.4f}" in loaded.description
    assert loaded.task.classes == ("foreground",)
    last = checkpoint.load_model(tmp_path / "checkpoints" / "160")
    assert "EMA weights of step 160" in last.description


def test_another_config_or_dataset_does_not_resume(unet_config, tmp_path):
    trainer.train(unet_config, str(tmp_path))
    scale = unet_config.diffusion.input_scale
    unet_config.diffusion.input_scale = 2 * scale
    with pytest.raises(InputError, match=r"config\.json: config field diffusion"):
        trainer.train(unet_config, str(tmp_path))
    unet_config.diffusion.input_scale = scale
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["fingerprint"] = "another"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="dataset has changed"):
        trainer.train(unet_config, str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("data.image_size", 32, "data.image_size: 16 differs from this run's 32"),
        ("data.augment.flip", False, "data.augment.flip: True differs from this run's False"),
        ("model.name", "transunet", "model.name: 'unet' differs from this run's 'transunet'"),
        ("seed", 1, "seed: 0 differs from this run's 1"),
        ("batch_size", 4, "batch_size: 8 differs from this run's 4"),
        ("loss.condition_every", 2, "loss.condition_every: 1 differs from this run's 2"),
        ("data.raters", "mean", "data.raters: 'draw' differs from this run's 'mean'"),
        ("diffusion.prediction", "v", "diffusion.prediction: 'x0' differs from this run's 'v'"),
    ],
)
def test_a_field_that_makes_it_another_run_is_named_with_both_values(
    unet_config, tmp_path, field, value, words
):
    prepare(unet_config, tmp_path)
    unet_config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=f"config.json: config field {words};"):
        prepare(unet_config, tmp_path)


def test_a_field_that_an_earlier_version_did_not_have_makes_it_another_run(unet_config, tmp_path):
    prepare(unet_config, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["config"]["diffusion"]["input_scale"]
    (tmp_path / "config.json").write_text(json.dumps(stored | {"version": "0.0.9"}))
    with pytest.raises(InputError, match=r"diffusion.input_scale is not known .* run, 0\.0\.9;"):
        prepare(unet_config, tmp_path)


def test_speed_and_memory_may_change_within_a_run(unet_config, tmp_path):
    prepare(unet_config, tmp_path)
    unet_config.data.update(workers=3, read_threads=0, prefetch=1)
    unet_config.model.remat = True
    assert prepare(unet_config, tmp_path)["config"]["data"]["workers"] == 3


def test_a_run_goes_on_where_its_data_have_moved(unet_config, disc_folder, tmp_path):
    trainer.train(unet_config, str(tmp_path / "run"))
    moved = shutil.copytree(disc_folder, tmp_path / "moved")
    unet_config.data.update(path=str(moved), cache_dir=str(tmp_path / "cache"))
    unet_config.num_steps = 4
    assert int(trainer.train(unet_config, str(tmp_path / "run")).step) == 4
    (moved / "images" / "disc_00.png").write_bytes((moved / "images/disc_01.png").read_bytes())
    with pytest.raises(InputError, match="dataset has changed"):
        trainer.train(unet_config, str(tmp_path / "run"))


def test_what_a_resumed_run_does_otherwise_is_said(unet_config, tmp_path, caplog):
    trainer.train(unet_config, str(tmp_path))
    unet_config.num_steps = 4
    unet_config.optim.learning_rate *= 2
    with caplog.at_level("INFO", logger="medsegdiff_jax"):
        trainer.train(unet_config, str(tmp_path))
    rate = unet_config.optim.learning_rate
    said = [message for message in caplog.messages if message.startswith("from here on")]
    assert said == [
        "from here on num_steps=4, not 3",
        f"from here on optim.learning_rate={rate}, not {rate / 2}",
    ]


def test_a_size_that_the_network_cannot_take_is_refused_before_the_data_are_read(
    tiny_config, tmp_path
):
    tiny_config.data.path = str(tmp_path / "missing")
    tiny_config.data.image_size = 15
    with pytest.raises(InputError, match="data.image_size: 15 is not a multiple of"):
        trainer.train(tiny_config, str(tmp_path / "run"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(unet_config, tmp_path):
    unet_config.num_steps = 40
    unet_config.log_every_steps = 10
    unet_config.eval_every_steps = 100
    unet_config.optim.learning_rate = 1e20
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+"):
        trainer.train(unet_config, str(tmp_path))
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("broken", ["total", "grad_norm"])
def test_a_diverged_state_never_takes_the_place_of_a_checkpoint(
    unet_config, tmp_path, monkeypatch, broken
):
    unet_config.update(num_steps=40, log_every_steps=40, checkpoint_every_steps=10)
    unet_config.eval_every_steps = 100
    compiled = trainer.compile_train_step

    def diverging(*arguments):
        train_step = compiled(*arguments)

        def step(state, batch):
            state, terms = train_step(state, batch)
            wrong = np.nan if int(state.step) == 15 else 1.0
            return state, terms | {broken: wrong * terms[broken]}

        return step

    monkeypatch.setattr(trainer, "compile_train_step", diverging)
    with pytest.raises(FloatingPointError, match="not finite at step 15"):
        trainer.train(unet_config, str(tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["10"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("ema_decay", 1.0),
        ("batch_size", 0),
        ("seed", -1),
        ("validation.max_cases", -1),
    ],
)
def test_impossible_values_name_their_field(tiny_config, tmp_path, field, value):
    tiny_config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=field):
        trainer.train(tiny_config, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_wrong_loss_optimizer_or_empty_validation_is_refused_before_the_workdir_is_made(
    tiny_config, disc_folder, tmp_path
):
    def refused(config, words):
        with pytest.raises(InputError, match=words):
            trainer.train(config, str(tmp_path / "run"))
        assert not (tmp_path / "run").exists()

    for field, value in (("loss.condition_every", 0), ("optim.learning_rate", 0.0)):
        changed = copy.deepcopy(tiny_config)
        changed.update_from_flattened_dict({field: value})
        refused(changed, field)
    folder = tmp_path / "folder"
    shutil.copytree(disc_folder, folder)
    (folder / "val.txt").write_text("")
    tiny_config.data.path = str(folder)
    refused(tiny_config, "no case for validation")


def test_a_damaged_checkpoint_is_named(unet_config, tmp_path):
    trainer.train(unet_config, str(tmp_path))
    damaged = tmp_path / "checkpoints" / "3"
    for path in (damaged / "ema").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="checkpoints/3.*cannot be read"):
        checkpoint.load_model(tmp_path)


EIGHT_DEVICES = """
import json, sys
import jax, numpy as np
from ml_collections import ConfigDict
from medsegdiff_jax import trainer
config = ConfigDict(json.load(open(sys.argv[1])))
assert jax.device_count() == 8
for name, model_shards, accumulate_steps in (("eight", 1, 1), ("sharded", 4, 2)):
    config.update(model_shards=model_shards, accumulate_steps=accumulate_steps)
    state = trainer.train(config, f"{sys.argv[2]}/{name}")
    held = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(state.opt_state))
    share = held / sum(x.size for x in jax.tree.leaves(state.opt_state))
    params = [np.asarray(x) for x in jax.tree.leaves(jax.device_get(state.params))]
    np.savez(f"{sys.argv[2]}/{name}.npz", *params, share=share)
"""


@pytest.fixture
def eight_devices(tiny_config, tmp_path):
    """Workdirs and results of eight devices, plain and sharded; and the config."""
    tiny_config.batch_size = 16
    (tmp_path / "config.json").write_text(tiny_config.to_json_best_effort())
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, str(tmp_path / "config.json"), str(tmp_path)],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=300,
    )
    return tiny_config, tmp_path


def test_one_device_trains_like_eight_whole_or_sharded_and_resumes_them(eight_devices):
    config, folder = eight_devices
    alone = leaves(trainer.train(config, str(folder / "one")).params)
    shares = {}
    for name in ("eight", "sharded"):
        with np.load(folder / f"{name}.npz") as stored:
            shares[name] = float(stored["share"])
            others = [stored[f"arr_{index}"] for index in range(len(alone))]
        # Sums in another order, then Adam's division by small second moments.
        for ours, theirs in zip(alone, others, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-4)
    # Each of four devices holds a quarter of the moments but for the smallest arrays.
    assert shares["eight"] == 1 and 0.25 <= shares["sharded"] < 0.5
    config.num_steps = 4
    assert int(trainer.train(config, str(folder / "sharded")).step) == 4


def test_parts_that_do_not_divide_are_refused(tiny_config, tmp_path):
    for field, value, words in (
        ("accumulate_steps", 3, "batch_size: 8 is not a multiple of 3 parts"),
        ("batch_size", 0, "batch_size: 0 is less than 1"),
        ("accumulate_steps", 0, "accumulate_steps: 0 is less than 1"),
        ("model_shards", 2, "model_shards: 2 does not divide the 1 devices"),
    ):
        changed = copy.deepcopy(tiny_config)
        changed[field] = value
        with pytest.raises(InputError, match=words):
            trainer.train(changed, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
