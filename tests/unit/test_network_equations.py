"""Parts of the V2 network against NumPy, with parameters that are nowhere zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from configs import base
from medsegdiff_jax import networks
from medsegdiff_jax.networks import layers, spectral, uncertain_attention
from medsegdiff_jax.types import Task

RNG = np.random.default_rng(11)


def random_params(module, *args):
    """As `module.init` would shape them."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    return jax.tree.map(lambda leaf: RNG.normal(scale=0.4, size=leaf.shape), shapes)


def dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0.0)


def silu(x):
    return x / (1 + np.exp(-x))


def normalized(x, epsilon=1e-5):
    """Mean 0 and variance 1 over the last axis."""
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon)


def layer_norm(params, x):
    return normalized(x) * params["scale"] + params["bias"]


def spectral_module(params, stream, query, key_value):
    """A module without filter: what the docstring of `spectral` says of it."""
    attention = params["attention"]
    query, key_value = (
        layer_norm(params[f"LayerNorm_{index}"], tokens)
        for index, tokens in enumerate((query, key_value))
    )
    q, k, v = (
        dense(attention[name], tokens)
        for name, tokens in (("query", query), ("key", key_value), ("value", key_value))
    )
    affinity = q @ k.T / (np.sqrt(q.shape[-1]) * len(k))
    stream = stream + dense(params["output"], affinity @ v)
    hidden = dense(params["mlp_in"], layer_norm(params["LayerNorm_2"], stream))
    return stream + dense(params["mlp_out"], np.asarray(jax.nn.gelu(hidden)))


def test_a_block_of_ss_former_reads_c_by_e_and_then_e_by_what_came_of_it():
    former = spectral.SSFormer(features=6, blocks=1, patch=1, spectrum_filter=None)
    e, c = RNG.normal(size=(1, 2, 3, 4)), RNG.normal(size=(1, 2, 3, 5))
    embedding = jnp.zeros((1, 7))
    params = random_params(former, e, c, embedding)
    tokens = {
        name: x.reshape(6, -1) @ params[f"patchify_{name}"]["kernel"][0, 0]
        + params[f"patchify_{name}"]["bias"]
        for name, x in (("e", e), ("c", c))
    }
    refined = spectral_module(params["block_0_read_c"], tokens["c"], tokens["e"], tokens["c"])
    result = spectral_module(params["block_0_read_e"], refined, refined, tokens["e"])
    expected = dense(params["unpatchify"], result).reshape(e.shape)
    found = former.apply({"params": params}, e, c, embedding)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_smoothing_is_a_depthwise_correlation_with_a_gaussian_of_each_channel():
    module = uncertain_attention.GaussianSmoothing(size=5)
    features = RNG.normal(size=(1, 9, 11, 2)).astype(np.float32)
    params = {"mean": np.array([[0.4, -0.7], [0.0, 1.2]]), "width": np.array([0.3, 1.5])}
    found = module.apply({"params": params}, features)
    for channel, width in enumerate(np.log1p(np.exp(params["width"]))):  # softplus
        offsets = np.arange(-2, 3)[:, None] - params["mean"][:, channel]
        rows, columns = np.exp(-0.5 * (offsets / width) ** 2).T
        kernel = np.outer(rows, columns) / (rows.sum() * columns.sum())
        expected = ndimage.correlate(features[0, ..., channel], kernel, mode="constant")
        np.testing.assert_allclose(found[0, ..., channel], expected, atol=1e-5)


def test_equation_5_keeps_the_feature_that_it_gates():
    """f_d (1 + g) with a constant g is the answer of a stem whose parameters are 1 + g as large."""
    config = base.get_config("default,tiny").model
    config.update(anchor="u_sa", semantic="none", evidence=False)
    model = networks.build(config, Task(("lesion",), (1,), True, 3), 8)
    image, x_t = RNG.normal(size=(1, 8, 8, 3)), RNG.normal(size=(1, 8, 8, 1))
    params = random_params(model, image, x_t, jnp.ones((1,), jnp.int32))

    @jax.jit
    def denoise(params, gate):
        condition = model.apply({"params": params}, image, method="encode")
        condition = condition.replace(anchor=jnp.full((1, 8, 8, 1), gate))
        return model.apply({"params": params}, x_t, jnp.asarray(3), condition, method="denoise")

    larger = params | {"stem": jax.tree.map(lambda leaf: 1.4 * leaf, params["stem"])}
    np.testing.assert_allclose(denoise(params, 0.4), denoise(larger, 0.0), atol=1e-4)
    assert np.abs(denoise(params, 0.4) - denoise(params, 0.0)).max() > 1e-2


@pytest.mark.parametrize("t", [3, np.array([3, 250])])
def test_the_step_is_embedded_as_sines_and_cosines_of_geometric_frequencies(t):
    angles = np.atleast_1d(t)[:, None] / np.array([1.0, 10.0, 100.0, 1000.0])
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    np.testing.assert_allclose(layers.sinusoidal_embedding(t, 8), expected, atol=1e-5)


def test_a_residual_block_is_scaled_and_shifted_by_the_embedding():
    """On a map of one pixel a convolution is the middle of its kernel."""
    block = layers.ResBlock(features=8)
    x, embedding = RNG.normal(size=(1, 1, 1, 4)), RNG.normal(size=(1, 5))
    params = random_params(block, x, embedding)

    def conv(name, x):
        kernel = params[name]["kernel"]
        return x @ kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] + params[name]["bias"]

    def norm(name, x):  # both widths make a single group
        return normalized(x) * params[name]["scale"] + params[name]["bias"]

    pixel = x[0, 0, 0]
    h = conv("Conv_0", silu(norm("GroupNorm_0", pixel)))
    scale, shift = np.split(dense(params["Dense_0"], silu(embedding[0])), 2)
    h = silu(norm("GroupNorm_1", h) * (1 + scale) + shift)
    expected = conv("shortcut", pixel) + conv("Conv_1", h)
    found = block.apply({"params": params}, x, embedding)
    np.testing.assert_allclose(found[0, 0, 0], expected, atol=1e-4)
