"""A training that starts from the weights of another."""

import logging
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from medsegdiff_jax import checkpoint, export, fine_tuning, trainer
from medsegdiff_jax.types import InputError
from tests.runs import disc_config


@pytest.fixture(scope="module")
def source(disc_folder, cache, tmp_path_factory):
    """Workdir of a training of three steps; not to be changed."""
    workdir = tmp_path_factory.mktemp("source") / "run"
    trainer.train(disc_config("unet,tiny", disc_folder, cache), str(workdir))
    return workdir


def starting_from(config, path, **fields):
    """The config of one step that moves nothing."""
    config.init_from, config.num_steps, config.seed = str(path), 1, 5
    config.optim.learning_rate = 1e-12
    config.update_from_flattened_dict(fields)
    return config


def arrays(params):
    return flatten_dict(jax.device_get(params), sep="/")


def test_it_starts_from_the_averaged_weights(unet_config, source, tmp_path, caplog):
    source = shutil.copytree(source, tmp_path / "source")
    expected = arrays(checkpoint.load_model(source).params)
    with caplog.at_level(logging.INFO, logger="medsegdiff_jax"):
        state = trainer.train(starting_from(unet_config, source), str(tmp_path / "run"))
    for params in (state.params, state.ema_params):
        found = arrays(params)
        assert found.keys() == expected.keys()
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name], atol=1e-7, err_msg=name)
    assert "starting from EMA weights of step 3" in caplog.text
    assert "drawn anew" not in caplog.text

    # It resumes without what it has started from.
    shutil.rmtree(source)
    unet_config.num_steps = 2
    assert int(trainer.train(unet_config, str(tmp_path / "run")).step) == 2

    export.export(tmp_path / "run", tmp_path / "exported")  # for others, who need not know
    assert str(source) not in (tmp_path / "exported" / "model.json").read_text()


def test_other_classes_and_channels_begin_anew(unet_config, source, disc_folder, tmp_path, caplog):
    folder = shutil.copytree(disc_folder, tmp_path / "two classes")
    for path in sorted((folder / "masks").iterdir()):
        mask = np.array(Image.open(path)) // 255
        mask[: len(mask) // 2] *= 2
        Image.fromarray(mask).save(path)
    for path in (folder / "images").iterdir():
        Image.open(path).convert("L").save(path)
    given = arrays(checkpoint.load_model(source).params)
    config = starting_from(unet_config, source, **{"data.path": str(folder)})
    with caplog.at_level(logging.INFO, logger="medsegdiff_jax"):
        found = arrays(trainer.train(config, str(tmp_path / "run")).params)
    other = [name for name in found if found[name].shape != given[name].shape]
    assert 2 <= len(other) <= 4 and all(name in caplog.text for name in other)
    assert f"(of {len(found)} arrays)" in caplog.text
    for name in found.keys() - other:
        np.testing.assert_allclose(found[name], given[name], atol=1e-7, err_msg=name)
    kernels = [found[name] for name in other if name.endswith("kernel")]
    assert kernels and all(np.isfinite(kernel).all() for kernel in kernels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.condition_widths": (8, 8, 16)}, r"another model\.condition_widths"),
        ({"diffusion.prediction": "v"}, r"another diffusion\.prediction"),
    ],
)
def test_another_network_is_refused_before_the_workdir_is_made(
    unet_config, source, tmp_path, fields, message
):
    config = starting_from(unet_config, source, **fields)
    with pytest.raises(InputError, match=f"init_from: .*run was trained with {message}"):
        trainer.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_how_the_network_is_computed_may_change(unet_config, source):
    config = starting_from(unet_config, source, **{"model.dtype": "bfloat16", "model.remat": True})
    fine_tuning.load_start(source, config)


def test_a_start_that_is_no_model_is_refused(unet_config, tmp_path):
    with pytest.raises(InputError, match=r"config field init_from: .*nowhere: no such folder"):
        trainer.train(starting_from(unet_config, tmp_path / "nowhere"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_another_start_is_another_run(unet_config, source, tmp_path):
    trainer.train(starting_from(unet_config, source), str(tmp_path / "run"))
    other_spelling = f"{source.parent}/../{source.parent.name}/{source.name}/"
    trainer.train(starting_from(unet_config, other_spelling), str(tmp_path / "run"))
    with pytest.raises(InputError, match="config field init_from: .* differs from this run's"):
        trainer.train(starting_from(unet_config, ""), str(tmp_path / "run"))
