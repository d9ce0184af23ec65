"""Every shipped config builds, and its parameter count is the one stated here."""

import importlib
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from configs import base
from data import preparation
from medsegdiff_jax import losses, networks, process, train_state, trainer
from medsegdiff_jax.types import Task

TASK = Task(("lesion",), (1,), True, 3)

# Parameters by (config file, network, size), for a binary task on colour images.
PARAMETERS = {
    ("base", "medsegdiff_v2", "tiny"): 51_341,
    ("base", "medsegdiff_v2", "small"): 4_541_979,
    ("base", "medsegdiff_v2", "paper"): 44_743_883,
    ("base", "medsegdiff_v1", "tiny"): 44_057,
    ("base", "medsegdiff_v1", "small"): 3_484_297,
    ("base", "medsegdiff_v1", "paper"): 23_806_145,
    ("base", "medsegdiff_transunet", "tiny"): 56_857,
    ("base", "medsegdiff_transunet", "small"): 4_793_769,
    ("base", "medsegdiff_transunet", "paper"): 27_228_481,
    ("base", "ensdiff", "tiny"): 20_625,
    ("base", "ensdiff", "small"): 2_450_929,
    ("base", "ensdiff", "paper"): 21_390_721,
    ("base", "segdiff", "tiny"): 33_105,
    ("base", "segdiff", "small"): 2_663_977,
    ("base", "segdiff", "paper"): 25_781_185,
    ("base", "unet", "tiny"): 14_089,
    ("base", "unet", "small"): 3_808_161,
    ("base", "unet", "paper"): 18_956_353,
    ("base", "transunet", "tiny"): 26_889,
    ("base", "transunet", "small"): 5_138_177,
    ("base", "transunet", "paper"): 104_996_673,
    ("base", "swin_unetr", "tiny"): 12_659,
    ("base", "swin_unetr", "small"): 2_611_897,
    ("base", "swin_unetr", "paper"): 23_997_691,
    ("demo", "medsegdiff_v2", "small"): 964_251,
    ("demo", "unet", "small"): 675_121,
}

# Parameters as published: table 5 of MedSegDiff-V2; TransUNet; Swin UNETR in two dimensions.
PUBLISHED = {
    "medsegdiff_v2": 46e6,
    "medsegdiff_v1": 25e6,
    "ensdiff": 23e6,
    "segdiff": 23e6,
    "transunet": 105e6,
    "swin_unetr": 25e6,
}


def test_the_recipe_of_the_paper_is_what_the_paper_says():
    """And our reading where it is silent (docs/paper_to_code.md)."""
    config = base.get_config("paper,paper")
    stated = {
        "batch_size": 32,
        "num_steps": 100_000,
        "data.image_size": 256,
        "diffusion.num_timesteps": 1000,
        "diffusion.schedule": "linear",
        "diffusion.prediction": "eps",
        "diffusion.input_scale": 1.0,
        "diffusion.zero_terminal_snr": False,
        "loss.condition_every": 5,
        "loss.condition_ce_weight": 10.0,
        "optim.learning_rate": 1e-4,
        "optim.schedule": "constant",
        "model.anchor": "u_sa",
        "model.semantic": "nbp",
        "model.condition_prior": False,
        "model.evidence": False,
        "sampling.members": 10,
        "sampling.steps": 100,
        "sampling.sampler": "ddpm",
        "sampling.fusion": "staple",
        "sampling.decision": "probable",
        "sampling.mirror": False,
    }
    found = flatten_dict(config.to_dict(), sep=".")
    assert {field: found[field] for field in stated} == stated


def test_every_network_has_a_recipe():
    """Which says how it is to be sampled; see docs/extending.md."""
    assert networks.NETWORKS.keys() - {"medsegdiff_v2"} == {*base.RECIPES} - {"default", "paper"}


def count(config):
    """Parameters of the config's network, from shapes alone."""
    size = config.data.image_size
    model = networks.build(config.model, TASK, size)
    image, x_t = jnp.zeros((1, size, size, 3)), jnp.zeros((1, size, size, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, x_t, jnp.ones(1, int))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def shipped():
    """Names of the config files."""
    folder = Path(base.__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


# Configs that change the network; the others only say where the data are.
OWN_NETWORK = ("base", "demo")
DATASETS = [name for name in shipped() if name not in OWN_NETWORK]


def test_every_dataset_has_a_config():
    assert {*DATASETS, "phantom"} == set(preparation.DATASETS)
    for name in DATASETS:
        assert importlib.import_module(f"configs.{name}").get_config().data.name == name


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_takes_the_networks_of_base(name):
    for arg in ("", "transunet", "default,tiny", "paper,paper"):
        config = importlib.import_module(f"configs.{name}").get_config(arg)
        assert config.model == base.get_config(arg).model


@pytest.mark.parametrize(("name", "network", "size"), PARAMETERS)
def test_parameter_count(name, network, size):
    recipe = "default" if network == "medsegdiff_v2" else network
    config = importlib.import_module(f"configs.{name}").get_config(f"{recipe},{size}")
    assert count(config) == PARAMETERS[name, network, size]


def test_every_network_is_counted_at_every_size():
    counted = {(network, size) for name, network, size in PARAMETERS if name == "base"}
    assert counted == {(name, size) for name in networks.NETWORKS for size in base.SIZES}


@pytest.mark.parametrize("network", PUBLISHED)
def test_the_paper_size_has_about_the_published_parameters(network):
    assert abs(PARAMETERS["base", network, "paper"] / PUBLISHED[network] - 1) < 0.13


@pytest.mark.parametrize("recipe", base.RECIPES)
@pytest.mark.parametrize("name", shipped())
def test_every_recipe_builds(name, recipe):
    config = importlib.import_module(f"configs.{name}").get_config(recipe)
    process.build(config.diffusion, TASK.one_hot)
    losses.build(config.loss)
    train_state.build_optimizer(config.optim, config.num_steps)
    networks.build(config.model, TASK, config.data.image_size)
    trainer.check_config(config)


@pytest.mark.parametrize("anchor", ["none", "spatial_attention", "u_sa"])
@pytest.mark.parametrize("semantic", ["none", "ss_former", "nbp"])
def test_every_ablation_builds(anchor, semantic):
    config = base.get_config("default,tiny")
    config.model.update(anchor=anchor, semantic=semantic)
    parameters = count(config)
    full = PARAMETERS["base", "medsegdiff_v2", "tiny"]
    assert parameters == full if (anchor, semantic) == ("u_sa", "nbp") else parameters < full


@pytest.mark.parametrize("arg", ["papr", "default,huge", "small"])
def test_unknown_arguments_are_refused(arg):
    with pytest.raises(ValueError, match=arg) as refused:
        base.get_config(arg)
    assert ("is default,small meant?" in str(refused.value)) == (arg == "small")
