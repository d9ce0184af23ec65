"""The networks: closed forms of their parts, and what the two halves may and may not depend on."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from medsegdiff_jax import networks
from medsegdiff_jax.networks import evidence, layers, spectral, uncertain_attention
from medsegdiff_jax.types import InputError, Task

BINARY = Task(("lesion",), (1,), True, 3)
THREE = Task(("a", "b"), (1, 2), True, 1)
SIZE = 16


def randomized(params, key=7, scale=0.1):
    """Parameters with noise on top, so that zero-initialised layers take part."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    noisy = [
        leaf + scale * jax.random.normal(k, leaf.shape)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, noisy)


def inputs(task=BINARY, batch=3):
    """Image, noisy mask and steps of a batch."""
    keys = jax.random.split(jax.random.key(3), 2)
    image = jax.random.normal(keys[0], (batch, SIZE, SIZE, task.image_channels))
    x_t = jax.random.normal(keys[1], (batch, SIZE, SIZE, task.mask_channels))
    return image, x_t, jnp.array([1, 500, 1000])[:batch]


def random_params(model, args):
    """Parameters that are nowhere zero, from shapes alone (no initialiser has to be compiled)."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.2, size=leaf.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="module")
def tiny():
    """The tiny V2 model, random parameters, and the whole network as one compiled function."""
    model = networks.build(base.get_config("default,tiny").model, BINARY, SIZE)
    params = random_params(model, inputs())
    return model, params, jax.jit(lambda *args: model.apply({"params": params}, *args))


# --- spectrum ---------------------------------------------------------------------------------


def test_product_of_spectra_is_the_spectrum_of_the_affinity():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 12, 5))
    w_q, w_k = rng.normal(size=(2, 5, 4))
    literal = (np.fft.fft(q, axis=0) @ w_q) @ (np.fft.fft(k, axis=0) @ w_k).T
    ours = np.fft.fft2((q @ w_q) @ (k @ w_k).T)
    np.testing.assert_allclose(literal, ours, rtol=1e-10)


def test_filter_of_ones_is_softmax_free_attention():
    query, keys = jax.random.normal(jax.random.key(0), (2, 2, 12, 8))
    embedding = jnp.ones((1, 6))
    filtered = spectral.SpectralAttention(8, functools.partial(spectral.NBPFilter, 4, 2))
    params = filtered.init(jax.random.key(1), query, keys, embedding)["params"]
    gain = params["nbp_filter"]["gain"]
    # sigmoid(50) is 1 in float32.
    params["nbp_filter"]["gain"] = {"kernel": 0 * gain["kernel"], "bias": 0 * gain["bias"] + 50}
    result = filtered.apply({"params": params}, query, keys, embedding)
    q = np.asarray(query) @ params["query"]["kernel"]
    k = np.asarray(keys) @ params["key"]["kernel"]
    v = np.asarray(keys) @ params["value"]["kernel"]
    expected = np.einsum("bqd,bkd->bqk", q, k) / (np.sqrt(8) * 12) @ v
    np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("columns", [8, 9])
def test_any_real_filter_leaves_the_affinity_real(columns):
    rng = np.random.default_rng(1)
    affinity = rng.normal(size=(2, 6, columns)).astype(np.float32)
    gains = rng.uniform(size=(2, 6, columns // 2 + 1)).astype(np.float32)
    result = spectral.filter_spectrum(jnp.asarray(affinity), jnp.asarray(gains))
    assert result.dtype == jnp.float32
    expected = np.fft.irfft2(np.fft.rfft2(affinity) * gains, s=affinity.shape[1:])
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_band_pass_removes_the_other_band():
    rows, columns = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    low = np.cos(2 * np.pi * (rows + columns) / 16)
    high = np.cos(2 * np.pi * 6 * columns / 16)
    coordinates = np.asarray(spectral.frequency_coordinates(16, 16))
    keep_low = (np.abs(coordinates).max(-1) < 0.5).astype(np.float32)
    mixed = jnp.asarray((low + high)[None], jnp.float32)
    result = spectral.filter_spectrum(mixed, jnp.asarray(keep_low)[None])
    np.testing.assert_allclose(result[0], low, atol=1e-5)


def test_filter_starts_near_all_pass_and_follows_the_step():
    nbp = spectral.NBPFilter(features=8, blocks=6)
    embedding = jax.random.normal(jax.random.key(0), (2, 16))
    params = nbp.init(jax.random.key(1), embedding, 10, 10)["params"]
    gains = nbp.apply({"params": params}, embedding, 10, 10)
    assert gains.shape == (2, 10, 6)
    assert 0.9 < float(gains.min()) and float(gains.max()) < 0.99
    moved = nbp.apply({"params": randomized(params, scale=0.5)}, embedding, 10, 10)
    assert float(jnp.abs(moved[0] - moved[1]).max()) > 1e-3


def test_filter_in_bfloat16_is_that_of_float32_up_to_rounding():
    embedding = jax.random.normal(jax.random.key(0), (2, 16))
    exact, rounded = (spectral.NBPFilter(8, 6, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params = exact.init(jax.random.key(1), embedding, 64, 64)["params"]
    params["gain"] = {"kernel": jnp.linspace(-1.0, 1.0, 8)[:, None], "bias": jnp.zeros(1)}
    expected, gains = (nbp.apply({"params": params}, embedding, 64, 64) for nbp in (exact, rounded))
    assert gains.dtype == jnp.float32 and float(jnp.ptp(expected)) > 0.05
    assert 0 < float(jnp.abs(gains - expected).max()) < 2**-7


def test_fft_is_float32_under_bfloat16():
    nbp = functools.partial(spectral.NBPFilter, 4, 2, jnp.bfloat16)
    attention = spectral.SpectralAttention(8, nbp, jnp.bfloat16)
    tokens = jnp.ones((1, 4, 8), jnp.bfloat16)
    args = (tokens, tokens, jnp.ones((1, 6)))
    params = attention.init(jax.random.key(0), *args)
    jaxpr = str(jax.make_jaxpr(lambda: attention.apply(params, *args))())
    assert "c64" in jaxpr and "fft[" in jaxpr


# --- U-SA -------------------------------------------------------------------------------------


def test_gate_of_a_lone_pixel_reaches_its_neighbours_only_with_u_sa():
    feature = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4, 0].set(1.0)
    reach = {}
    for uncertain in (False, True):
        gate = uncertain_attention.SpatialGate(uncertain, size=5)
        params = gate.init(jax.random.key(0), feature)["params"]
        params["reduce"] = {"kernel": jnp.ones((1, 1, 1, 1)), "bias": jnp.zeros(1)}
        values = gate.apply({"params": params}, feature)[0, ..., 0]
        np.testing.assert_allclose(values[4, 4], 1 / (1 + np.exp(-1)), rtol=1e-6)
        reach[uncertain] = int((values > 0.5).sum())
    assert reach == {False: 1, True: 25}


# --- layers -----------------------------------------------------------------------------------


def test_group_norm_is_right_far_from_zero():
    x = 1000.0 + jax.random.normal(jax.random.key(0), (1, 32, 32, 8))
    norm = layers.group_norm(8, jnp.float32)
    result = norm.apply(norm.init(jax.random.key(1), x), x)
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    np.testing.assert_allclose(result, expected, atol=5e-3)


def test_upsample_repeats_every_cell():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    expected = np.repeat(np.repeat(np.asarray(x), 2, axis=1), 2, axis=2)
    np.testing.assert_array_equal(layers.upsample(x), expected)


def test_residual_block_starts_as_identity():
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 8))
    block = layers.ResBlock(8)
    variables = block.init(jax.random.key(1), x, jnp.ones((1, 4)))
    np.testing.assert_array_equal(block.apply(variables, x, jnp.ones((1, 4))), x)


# --- assembly ---------------------------------------------------------------------------------


def test_encode_once_equals_recompute_and_scalar_step_equals_vector_step(tiny):
    model, params, network = tiny
    image, x_t, _ = inputs()
    together, _ = network(image, x_t, jnp.full((3,), 300))

    @jax.jit
    def apart(t):
        condition = model.apply({"params": params}, image, method="encode")
        return model.apply({"params": params}, x_t, t, condition, method="denoise")

    np.testing.assert_allclose(apart(jnp.asarray(300)), together, atol=1e-5)


def test_output_depends_on_image_step_and_mask_and_on_no_other_case(tiny):
    _, _, network = tiny
    image, x_t, t = inputs()
    output = np.asarray(network(image, x_t, t)[0])
    assert output.shape == (3, SIZE, SIZE, 1) and output.dtype == np.float32
    changes = {
        "image": (image.at[0].add(1.0 * image[1]), x_t, t),
        "mask": (image, x_t.at[0].multiply(-1), t),
        "step": (image, x_t, t.at[0].set(700)),
    }
    for name, args in changes.items():
        changed = np.asarray(network(*args)[0])
        assert np.abs(changed[0] - output[0]).max() > 1e-3, name
        np.testing.assert_allclose(changed[1:], output[1:], atol=1e-5, err_msg=name)


def test_every_parameter_gets_a_gradient(tiny):
    model, params, _ = tiny
    image, x_t, t = inputs()

    def loss(params):
        output, condition = model.apply({"params": params}, image, x_t, t)
        return jnp.sum(jnp.sin(output)) + jnp.sum(jnp.sin(condition.logits))

    gradients = jax.jit(jax.grad(loss))(params)
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not float(jnp.abs(leaf).max()) > 0
    ]
    assert dead == []


@pytest.mark.parametrize(
    ("anchor", "semantic", "reached"),
    [("none", "none", False), ("u_sa", "none", True), ("none", "ss_former", True)],
)
def test_the_diffusion_loss_reaches_the_condition_model_by_the_conditions(
    anchor, semantic, reached
):
    config = base.get_config("default,tiny").model
    config.update(anchor=anchor, semantic=semantic, semantic_blocks=1)
    model = networks.build(config, BINARY, SIZE)
    args = inputs()
    params = random_params(model, args)
    gradients = jax.jit(
        jax.grad(lambda params: jnp.sum(jnp.sin(model.apply({"params": params}, *args)[0])))
    )(params)
    stem = gradients["condition_model"]["stem"]["kernel"]
    assert bool(jnp.abs(stem).max() > 0) is reached


def test_bfloat16_keeps_parameters_and_outputs_float32_and_stays_close(tiny):
    model, params, network = tiny
    half = model.clone(dtype=jnp.bfloat16)
    output, condition = jax.jit(half.apply)({"params": params}, *inputs())
    assert output.dtype == condition.logits.dtype == jnp.float32
    exact, _ = network(*inputs())
    assert float(jnp.abs(output - exact).max()) < 0.1 * float(jnp.abs(exact).max())


def test_remat_changes_neither_parameters_nor_results(tiny):
    model, params, network = tiny
    args = inputs()
    again = model.clone(remat=True)
    shapes = jax.eval_shape(again.init, jax.random.key(0), *args)["params"]
    assert jax.tree.structure(shapes) == jax.tree.structure(params)
    result, _ = jax.jit(again.apply)({"params": params}, *args)
    np.testing.assert_allclose(result, network(*args)[0], atol=1e-5)


def test_with_the_condition_prior_an_untrained_network_answers_like_its_condition_model():
    config = base.get_config("default,tiny").model
    assert config.condition_prior
    model = networks.build(config, BINARY, SIZE)
    args = inputs()
    params = random_params(model, args)
    params["head"] = jax.tree.map(jnp.zeros_like, params["head"])  # as initialised
    output, condition = jax.jit(model.apply)({"params": params}, *args)
    np.testing.assert_array_equal(output, condition.logits)
    without = model.clone(condition_prior=False)
    np.testing.assert_array_equal(jax.jit(without.apply)({"params": params}, *args)[0], 0.0)


def test_evidence_is_zero_where_the_condition_model_is_sure_and_adds_up_where_it_is_not():
    rng = np.random.default_rng(0)
    probability = np.zeros((1, 8, 8, 1))
    probability[0, 2:6, 3, 0] = (0.5, 0.9, 0.5, 0.1)  # doubts 1, 0.36, 1, 0.36
    x_t = rng.normal(size=(1, 8, 8, 1))
    noisy, known = (np.asarray(maps) for maps in evidence.evidence_maps(x_t, probability))
    np.testing.assert_array_equal(noisy[..., :1], x_t.astype(np.float32))
    weighed, doubt, matched = noisy[0, ..., 1], known[0, ..., 0], known[0, ..., 1]
    np.testing.assert_allclose(doubt[2:6, 3], (1, 0.36, 1, 0.36), rtol=1e-6)
    elsewhere = np.ones((8, 8), bool)
    elsewhere[2:6, 3] = False
    assert not weighed[elsewhere].any() and not doubt[elsewhere].any()
    expected = x_t[0, 2:6, 3, 0] @ (1, 0.36, 1, 0.36) / np.sqrt(1 + 2 + 2 * 0.36**2)
    np.testing.assert_allclose(matched, expected, rtol=1e-5)


def test_noise_keeps_its_variance_at_every_level_of_the_evidence():
    module = evidence.Evidence((1, 1, 1))
    x_t, probability = (
        jax.random.normal(jax.random.key(0), (4, 64, 64, 1)),
        jnp.full((4, 64, 64, 1), 0.5),
    )
    params = module.init(jax.random.key(1), x_t, probability)["params"]
    only_x_t = jnp.zeros((4, 1)).at[0].set(1.0)
    for level in ("level_1", "level_2"):
        params[level] = {"kernel": only_x_t[None, None], "bias": jnp.zeros(1)}
    _, half, quarter = module.apply({"params": params}, x_t, probability)
    assert half.shape == (4, 32, 32, 1) and quarter.shape == (4, 16, 16, 1)
    assert 0.95 < float(jnp.std(half)) < 1.05 and 0.9 < float(jnp.std(quarter)) < 1.1
    np.testing.assert_allclose(half[0, 0, 0, 0], x_t[0, :2, :2].sum() / 2, rtol=1e-5)


@pytest.mark.parametrize(("task", "same"), [(THREE, True), (BINARY, False)])
def test_evidence_takes_exclusive_channels_as_such(task, same):
    model = networks.build(base.get_config("default,tiny").model, task, SIZE)
    model = model.clone(condition_prior=False)
    image, x_t, t = inputs(task)
    params = random_params(model, (image, x_t, t))
    condition = model.apply({"params": params}, image, method="encode")
    # Softmax does not see what all channels have in common; a sigmoid does.
    shifted = condition.replace(logits=condition.logits + 2.0)
    denoise = jax.jit(lambda c: model.apply({"params": params}, x_t, t, c, method="denoise"))
    difference = float(jnp.abs(denoise(shifted) - denoise(condition)).max())
    assert (difference < 1e-3) is same


def test_one_hot_task_has_a_channel_per_class_and_background():
    model = networks.build(base.get_config("default,tiny").model, THREE, SIZE)
    args = inputs(THREE)
    shapes = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), *args)[0])
    assert shapes[0].shape == shapes[1].logits.shape == (3, SIZE, SIZE, 3)


def test_the_plain_unet_is_the_condition_model():
    config = base.get_config("unet,tiny").model
    plain = networks.build(config, BINARY, SIZE)
    args = inputs()
    params = jax.eval_shape(plain.init, jax.random.key(0), *args)["params"]
    config.name = "medsegdiff_v2"
    full = networks.build(config, BINARY, SIZE)
    inside = jax.eval_shape(full.init, jax.random.key(0), *args)["params"]["condition_model"]
    assert jax.tree.map(jnp.shape, params["condition_model"]) == jax.tree.map(jnp.shape, inside)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "unet3d"), ("anchor", "max"), ("semantic", "fft"), ("dtype", "float16")],
)
def test_unknown_choices_name_their_field(field, value):
    config = base.get_config("default,tiny").model
    config[field] = value
    with pytest.raises(InputError, match=f"model.{field}.*{value}"):
        networks.build(config, BINARY, SIZE)


def test_size_that_the_levels_cannot_halve_is_refused():
    with pytest.raises(InputError, match="data.image_size: 20"):
        networks.build(base.get_config("default,small").model, BINARY, 20)


def test_only_tokens_need_whole_patches():
    config = base.get_config("default,tiny").model
    config.update(semantic_patch=2)
    side = 2 ** (len(config.widths) - 1) * 3
    with pytest.raises(InputError, match=f"data.image_size: {side}"):
        networks.build(config, BINARY, side)
    config.semantic = "none"
    assert networks.build(config, BINARY, side).semantic == "none"


def test_levels_must_meet():
    config = base.get_config("default,tiny").model
    config.widths = config.widths[:-1]
    with pytest.raises(InputError, match=r"model\.widths and model\.condition_widths differ"):
        networks.build(config, BINARY, SIZE)


@pytest.mark.parametrize("shape", [(3, 3, 8, 16), (2, 5, 1, 4), (7, 3)])
def test_initial_kernels_are_those_of_flax(shape):
    key = jax.random.key(3)
    np.testing.assert_array_equal(
        layers.kernel_init(key, shape), nn.initializers.lecun_normal()(key, shape)
    )
