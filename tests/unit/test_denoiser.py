"""The ensemble: what a case's samples depend on, and what runs inside the loop."""

from types import SimpleNamespace

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from medsegdiff_jax import denoiser, networks, process, samplers
from medsegdiff_jax.types import InputError, Task

TASK = Task(("lesion",), (1,), True, 3)
SIZE = 16
COMPILED = {}  # ensembles of the one model of these tests, by their settings


@pytest.fixture(scope="module")
def model():
    """Tiny model, process and random parameters."""
    config = base.get_config("default,tiny")
    network = networks.build(config.model, TASK, SIZE)
    args = (jnp.zeros((1, SIZE, SIZE, 3)), jnp.zeros((1, SIZE, SIZE, 1)), jnp.ones(1, int))
    shapes = jax.eval_shape(network.init, jax.random.key(0), *args)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.2, size=leaf.shape), jnp.float32), shapes
    )
    return network, process.build(config.diffusion, TASK.one_hot), params


def segment(model, image, case, *, members=3, chunk=3, seed=0, **changes):
    """Samples of a batch as numpy [n, B, H, W, K]."""
    network, diffusion, params = model
    settings = {"steps": 3, "sampler": "ddpm", "member_chunk": chunk} | changes
    key = tuple(sorted(settings.items()))
    if key not in COMPILED:
        COMPILED[key] = jax.jit(denoiser.make_members_fn(network, diffusion, **settings))
    case = jnp.asarray(case, jnp.uint32)
    members = jnp.broadcast_to(jnp.arange(members)[:, None], (members, len(case)))
    return np.asarray(COMPILED[key](params, image, case, np.uint32(seed), members).members)


@pytest.fixture(scope="module")
def image():
    """Three images."""
    return jax.random.normal(jax.random.key(1), (3, SIZE, SIZE, 3))


def test_a_case_does_not_depend_on_its_batch_or_the_chunk_size(model, image):
    together = segment(model, image, [11, 22, 33])
    assert together.shape == (3, 3, SIZE, SIZE, 1)
    assert 0 <= together.min() and together.max() <= 1
    reordered = segment(model, image[::-1], [33, 22, 11], chunk=2)
    np.testing.assert_allclose(reordered[:, ::-1], together, atol=1e-4)
    alone = segment(model, image[1:2], [22], chunk=1)
    np.testing.assert_allclose(alone[:, 0], together[:, 1], atol=1e-4)


def test_members_cases_and_seeds_differ(model, image):
    same_image = jnp.broadcast_to(image[:1], image.shape)
    first = segment(model, same_image, [1, 2, 2])
    assert np.abs(first[0] - first[1]).max() > 1e-3  # members
    assert np.abs(first[:, 0] - first[:, 1]).max() > 1e-3  # cases
    np.testing.assert_allclose(first[:, 1], first[:, 2], atol=1e-5)
    assert np.abs(first - segment(model, same_image, [1, 2, 2], seed=1)).max() > 1e-3


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_members_come_in_pairs_that_start_from_opposite_noise(model, image, sampler):
    network, diffusion, params = model
    trace = jax.jit(denoiser.make_path_fn(network, diffusion, steps=1, sampler=sampler))
    arguments = (params, image[:2], jnp.array([5, 5], jnp.uint32), np.uint32(0))
    paths = [trace(*arguments, jnp.array(indices)) for indices in ([0, 2], [1, 3])]
    start = np.stack(paths)[:, :, 0, ..., 0]
    np.testing.assert_allclose(start[0], -start[1], atol=1e-6)
    assert np.abs(start[0, 0] - start[0, 1]).max() > 1  # another pair, other noise
    assert 0.8 < start[0].std() < 1.2


def test_the_steps_of_a_pair_have_noise_of_their_own():
    case, members = jnp.array([5, 5, 6], jnp.uint32), jnp.array([0, 1, 0])
    start, keys = denoiser._start(np.uint32(0), case, members, (3, SIZE, SIZE, 1))
    np.testing.assert_array_equal(start[0], -start[1])
    drawn = np.asarray(samplers.gaussian_like(keys, start)).reshape(3, -1)
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.3


def test_the_network_sees_noisy_masks_of_unit_variance_as_in_training():
    seen = []

    def apply(variables, x_t, t, condition, method):
        seen.append(x_t)
        return jnp.zeros_like(x_t)

    config = base.get_config().diffusion
    diffusion = process.build(config, one_hot=False)
    mask = jnp.asarray(np.random.default_rng(0).random((2, 64, 64, 1)) < 0.5, jnp.float32)
    noise = jax.random.normal(jax.random.key(0), mask.shape)
    for t in (50, 500, 950):
        x_t = diffusion.corrupt(diffusion.mask_to_x0(mask), noise, jnp.int32(t))
        found = denoiser.bind(SimpleNamespace(apply=apply), diffusion, {}, None)(x_t, jnp.int32(t))
        assert float((seen[-1] ** 2).mean()) == pytest.approx(1, abs=0.1)
        alpha, sigma = diffusion.schedule.alpha[t], diffusion.schedule.sigma[t]
        np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, x_t, atol=1e-5)


def test_each_case_may_continue_its_own_ensemble(model, image):
    network, diffusion, params = model
    whole = segment(model, image[:2], [5, 6], members=5, chunk=5)
    fn = denoiser.make_members_fn(network, diffusion, steps=3, sampler="ddpm", member_chunk=2)
    indices = jnp.array([[1, 3], [2, 4]])
    case = jnp.array([5, 6], jnp.uint32)
    part = np.asarray(jax.jit(fn)(params, image[:2], case, np.uint32(0), indices).members)
    np.testing.assert_allclose(part[:, 0], whole[1:3, 0], atol=1e-4)
    np.testing.assert_allclose(part[:, 1], whole[3:5, 1], atol=1e-4)


def test_more_members_keep_the_first(model, image):
    few, many = (segment(model, image[:1], [5], members=n, chunk=2) for n in (2, 3))
    np.testing.assert_allclose(few, many[:2], atol=1e-4)


def test_zero_steps_are_the_condition_models_own_answer(model, image):
    network, _, params = model
    logits = network.apply({"params": params}, image, method="encode").logits
    result = segment(model, image, [1, 2, 3], steps=0, members=1)
    np.testing.assert_allclose(result[0], jax.nn.sigmoid(logits), atol=1e-5)


VIEWS = (lambda x: x, lambda x: x[:, :, ::-1], lambda x: x[:, ::-1], lambda x: x[:, ::-1, ::-1])


def test_pairs_of_members_look_at_the_image_in_turn_from_four_sides(model, image):
    found = segment(model, image, [1, 2, 3], members=10, steps=2, mirror=True)
    for pair, view in enumerate((*VIEWS, VIEWS[0])):
        indices = slice(2 * pair, 2 * pair + 2)
        seen = segment(model, view(image), [1, 2, 3], members=10, steps=2)[indices]
        for member, turned in zip(found[indices], seen, strict=True):
            np.testing.assert_allclose(member, view(turned), atol=1e-4)
    assert np.abs(found - segment(model, image, [1, 2, 3], members=10, steps=2)).max() > 1e-2


def test_zero_steps_give_the_condition_models_answer_to_each_view(model, image):
    network, _, params = model
    found = segment(model, image, [1, 2, 3], members=5, steps=0, mirror=True)
    for member, view in zip(found, (*VIEWS, VIEWS[0]), strict=True):
        logits = network.apply({"params": params}, view(image), method="encode").logits
        np.testing.assert_allclose(member, view(jax.nn.sigmoid(logits)), atol=1e-5)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("steps", [0, 2])
def test_the_condition_models_own_answer_is_the_mean_over_its_views(model, image, steps, mirror):
    network, diffusion, params = model
    settings = {"steps": steps, "sampler": "ddim", "member_chunk": 2, "mirror": mirror}
    fn = jax.jit(denoiser.make_members_fn(network, diffusion, **settings))
    indices = jnp.zeros((1, 3), jnp.int32)
    drawn = fn(params, image, jnp.arange(3, dtype=jnp.uint32), np.uint32(0), indices)
    views = VIEWS if mirror else VIEWS[:1]
    logits = [network.apply({"params": params}, v(image), method="encode").logits for v in views]
    answers = [view(jax.nn.sigmoid(one)) for view, one in zip(views, logits, strict=True)]
    np.testing.assert_allclose(drawn.condition_probability, np.mean(answers, axis=0), atol=1e-5)


def test_cases_that_are_at_different_members_see_their_own_views(model, image):
    network, diffusion, params = model
    whole = segment(model, image[:2], [5, 6], members=6, mirror=True)
    settings = {"steps": 3, "sampler": "ddpm", "member_chunk": 2, "mirror": True}
    fn = denoiser.make_members_fn(network, diffusion, **settings)
    case = jnp.array([5, 6], jnp.uint32)
    indices = jnp.array([[1, 4], [2, 5]])
    part = np.asarray(jax.jit(fn)(params, image[:2], case, np.uint32(0), indices).members)
    np.testing.assert_allclose(part[:, 0], whole[1:3, 0], atol=1e-4)
    np.testing.assert_allclose(part[:, 1], whole[4:6, 1], atol=1e-4)


def equations(jaxpr):
    """All equations of a jaxpr, inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def primitives(jaxpr, name):
    """How often a primitive occurs in a jaxpr, inner jaxprs included."""
    return sum(equation.primitive.name == name for equation in equations(jaxpr))


def scan_bodies(jaxpr):
    """Jaxprs of all scans, innermost included."""
    for equation in equations(jaxpr):
        if equation.primitive.name == "scan":
            yield equation.params["jaxpr"].jaxpr


@pytest.mark.parametrize("mirror", [False, True])
def test_the_condition_model_is_outside_the_loop(model, image, mirror):
    network, diffusion, params = model
    settings = {"steps": 3, "sampler": "ddim", "member_chunk": 2, "mirror": mirror}
    fn = denoiser.make_members_fn(network, diffusion, **settings)
    case, seed, members = jnp.zeros(3, jnp.uint32), jnp.uint32(0), jnp.zeros((2, 3), jnp.int32)
    whole = jax.make_jaxpr(fn)(params, image, case, seed, members).jaxpr
    inside = max(primitives(body, "conv_general_dilated") for body in scan_bodies(whole))
    condition = jax.make_jaxpr(
        lambda: network.apply({"params": params}, image, method="encode")
    )().jaxpr
    answer = network.apply({"params": params}, image, method="encode")
    one_step = jax.make_jaxpr(
        lambda: network.apply({"params": params}, image[..., :1], seed, answer, method="denoise")
    )().jaxpr
    count = "conv_general_dilated"
    assert inside == primitives(one_step, count)
    assert primitives(whole, count) == inside + primitives(condition, count)  # all views at once


def test_filters_are_computed_once_per_step_for_all_members_and_cases(model, image):
    network, diffusion, params = model
    fn = denoiser.make_members_fn(network, diffusion, steps=3, sampler="ddim", member_chunk=2)
    case, seed, members = jnp.zeros(3, jnp.uint32), jnp.uint32(0), jnp.zeros((2, 3), jnp.int32)
    whole = jax.make_jaxpr(fn)(params, image, case, seed, members).jaxpr
    body = next(b for b in scan_bodies(whole) if primitives(b, "fft"))
    tokens = (SIZE // 2 // network.semantic_patch) ** 2
    half_plane = (tokens, tokens // 2 + 1)
    shapes = [
        variable.aval.shape
        for equation in equations(body)
        for variable in equation.outvars
        if equation.primitive.name == "dot_general"
    ]
    filters = [shape for shape in shapes if shape[-3:-1] == half_plane]
    modules = 2 * network.semantic_blocks
    assert len(filters) == modules * (network.filter_blocks + 1)
    assert {np.prod(shape[:-3]) for shape in filters} == {1}
    # There and back again in each module; the transforms do see members and cases.
    assert primitives(body, "fft") == primitives(whole, "fft") == 2 * modules


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampler": "euler"}, "euler"),
        ({"steps": 1001}, "steps: 1001"),
        ({"member_chunk": 0}, "member_chunk"),
    ],
)
def test_impossible_settings_are_named(model, change, words):
    settings = {"steps": 2, "sampler": "ddim", "member_chunk": 1} | change
    with pytest.raises(InputError, match=words):
        denoiser.make_members_fn(*model[:2], **settings)


def test_a_plain_unet_has_nothing_to_denoise():
    config = base.get_config("unet,tiny")
    network = networks.build(config.model, TASK, SIZE)
    with pytest.raises(InputError, match="steps=0"):
        denoiser.make_members_fn(
            network,
            process.build(config.diffusion, TASK.one_hot),
            steps=2,
            sampler="ddim",
            member_chunk=1,
        )
