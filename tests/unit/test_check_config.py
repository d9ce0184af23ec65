"""What cannot work is refused before there are data, with the full name of its field."""

import pytest

from configs import base
from medsegdiff_jax import trainer
from medsegdiff_jax.types import InputError


@pytest.mark.parametrize(
    ("recipe", "field", "value", "words"),
    [
        ("default", "steps", 2000, "2000 is not between 1 and 1000"),
        ("default", "steps", -1, "-1 is not between 1 and 1000"),
        ("ensdiff", "steps", 0, "0 asks for a segmentation without denoising"),
        ("unet", "steps", 3, "3 needs a diffusion network"),
        ("default", "sampler", "nonesuch", "'nonesuch' is not one of ddim, "),
        ("default", "fusion", "max", "'max' is not one of mean, "),
        ("ensdiff", "fusion", "blend", "a blend needs a condition model"),
        ("default", "members", 0, "0 is less than 1"),
        ("default", "member_chunk", 0, "0 is less than 1"),
        ("default", "batch_size", 0, "0 is less than 1"),
    ],
)
@pytest.mark.parametrize("node", ["validation", "sampling"])
def test_sampling_that_cannot_work_names_its_field(node, recipe, field, value, words):
    config = base.get_config(f"{recipe},tiny")
    config[node][field] = value
    with pytest.raises(InputError, match=f"^config field {node}.{field}: {words}"):
        trainer.check_config(config)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("sampling.decision", "best", "'best' is not one of"),
        ("data.workers", -1, "-1 is less than 0"),
        ("data.read_threads", -1, "-1 is less than 0"),
        ("data.prefetch", -1, "-1 is less than 0"),
        ("data.neighbours", -1, "-1 is less than 0"),
        ("data.raters", "all", "'all' is not one of draw, mean"),
        ("data.max_empty", 1.5, r"1.5 is not in \[0, 1\]"),
        ("data.augment.scale", -1.0, "-1.0 is less than 0"),
        ("data.augment.probability", 2.0, r"2.0 is not in \[0, 1\]"),
        ("optim.learning_rate", -1.0, "-1.0 is not positive"),
        ("optim.schedule", "step", "'step' is not constant or cosine"),
        ("loss.condition_every", 0, "0 is less than 1"),
        ("model.semantic", "fft", "'fft' is not one of"),
        ("model.widths", (), "there is no level"),
        ("model.condition_widths", (8, 0), "0 is less than 1"),
        ("model.semantic_patch", 0, "0 is less than 1"),
        ("model.semantic_blocks", -1, "-1 is less than 1"),
        ("model.filter_blocks", 0, "0 is less than 1"),
        ("model.anchor_kernel", 0, "0 is less than 1"),
        ("model.anchor_kernel", 4, "4 is not odd"),
    ],
)
def test_other_values_that_cannot_work_name_their_field(field, value, words):
    config = base.get_config("default,tiny")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=f"^config field {field}: {words}"):
        trainer.check_config(config)


def test_a_network_with_a_prior_predicts_x0():
    config = base.get_config("default,tiny")
    config.diffusion.prediction = "v"
    words = "^config field model.condition_prior: needs diffusion.prediction='x0', not 'v'"
    with pytest.raises(InputError, match=words):
        trainer.check_config(config)


def test_a_network_without_a_prior_may_predict_what_it_likes():
    config = base.get_config("segdiff,tiny")
    config.model.condition_prior, config.diffusion.prediction = True, "v"
    trainer.check_config(config)


def test_a_process_without_steps_is_not_taken_for_wrong_sampling():
    config = base.get_config("default,tiny")
    config.diffusion.num_timesteps = 0
    with pytest.raises(InputError, match="^config field diffusion.num_timesteps: 0 is less than 1"):
        trainer.check_config(config)
