"""The comparison models: closed forms of their parts, and the interface that all networks share."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from medsegdiff_jax import denoiser, evaluator, losses, networks, process
from medsegdiff_jax.networks import layers, medsegdiff_v1, segdiff, swin_unetr, transformer
from medsegdiff_jax.partitioning import sampling_mesh
from medsegdiff_jax.types import InputError, Task

BINARY = Task(("lesion",), (1,), True, 3)
THREE = Task(("a", "b"), (1, 2), True, 1)
SIZE = 16
COMPARISON = sorted(set(networks.NETWORKS) - {"medsegdiff_v2", "unet"})


def build(name, task=BINARY):
    """The tiny network with this name."""
    return networks.build(base.get_config(f"{name},tiny").model, task, SIZE)


def inputs(task=BINARY):
    """Image, noisy mask and steps of three cases."""
    keys = jax.random.split(jax.random.key(3), 2)
    image = jax.random.normal(keys[0], (3, SIZE, SIZE, task.image_channels))
    x_t = jax.random.normal(keys[1], (3, SIZE, SIZE, task.mask_channels))
    return image, x_t, jnp.array([1, 500, 1000])


def random_like(shapes):
    """Values that are nowhere zero, in the shapes of a tree."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.2, size=leaf.shape), jnp.float32), shapes
    )


@functools.cache
def randomized(name):
    """The tiny network, random parameters, and the whole network as one compiled function."""
    model = build(name)
    params = random_like(jax.eval_shape(model.init, jax.random.key(0), *inputs())["params"])
    return model, params, jax.jit(lambda params, *args: model.apply({"params": params}, *args))


# --- interface --------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [BINARY, THREE], ids=["binary", "one_hot"])
@pytest.mark.parametrize("name", COMPARISON)
def test_outputs_have_the_shape_of_the_mask(name, task):
    model, args = build(name, task), inputs(task)
    (output, condition), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), *args)
    assert (output is not None) is model.generative is (name in base.DIFFUSION)
    assert (condition.logits is not None) is model.encode_segments
    for logits in (output, condition.logits):
        if logits is not None:
            assert logits.shape == args[1].shape and logits.dtype == jnp.float32


@pytest.mark.parametrize("name", base.DIFFUSION)
def test_encode_once_equals_recompute_and_scalar_step_equals_vector_step(name):
    model, params, network = randomized(name)
    image, x_t, _ = inputs()
    together, _ = network(params, image, x_t, jnp.full((3,), 300))

    @jax.jit
    def apart(t):
        condition = model.apply({"params": params}, image, method="encode")
        return model.apply({"params": params}, x_t, t, condition, method="denoise")

    np.testing.assert_allclose(apart(jnp.asarray(300)), together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", COMPARISON)
def test_every_parameter_gets_a_gradient_and_bfloat16_stays_finite(name):
    model, params, _ = randomized(name)
    args = inputs()

    def loss(params):
        output, condition = model.clone(dtype=jnp.bfloat16).apply({"params": params}, *args)
        answer = jnp.stack([x for x in (output, condition.logits) if x is not None])
        return jnp.sum(jnp.sin(answer)), answer

    gradients, answer = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert answer.dtype == jnp.float32 and bool(jnp.isfinite(answer).all())
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not 0 < float(jnp.abs(leaf).max()) < np.inf
    ]
    assert dead == []


@pytest.mark.parametrize("name", base.DIFFUSION)
def test_a_sample_depends_on_its_own_image_and_on_no_other(name):
    model, params, _ = randomized(name)
    diffusion = process.build(base.get_config(name).diffusion, BINARY.one_hot)
    settings = {"steps": 2, "sampler": "ddpm", "member_chunk": 1, "mirror": True}
    ensemble = denoiser.make_members_fn(model, diffusion, **settings)
    segment = denoiser.compile_segment_fn(ensemble, sampling_mesh(3, jax.devices()), members=1)
    image, case = inputs()[0], jnp.arange(3, dtype=jnp.uint32)
    others = (case, np.uint32(0), jnp.array([0, 2, 4], jnp.int32))
    drawn = segment(params, image, *others)
    first = np.asarray(drawn.members)
    assert (drawn.condition_probability is not None) is model.encode_segments
    changed = np.asarray(segment(params, image.at[0].multiply(-1), *others).members)
    assert np.abs(changed[:, 0] - first[:, 0]).max() > 1e-3
    np.testing.assert_allclose(changed[:, 1:], first[:, 1:], atol=1e-5)


@pytest.mark.parametrize("name", ["transunet", "swin_unetr"])
def test_a_segmentation_depends_on_its_own_image_and_on_no_other(name):
    _, params, network = randomized(name)
    image, x_t, t = inputs()
    first = np.asarray(network(params, image, x_t, t)[1].logits)
    changed = np.asarray(network(params, image.at[0].multiply(-1), x_t, t)[1].logits)
    assert np.abs(changed[0] - first[0]).max() > 1e-3
    np.testing.assert_allclose(changed[1:], first[1:], atol=1e-5)


def test_without_condition_logits_only_the_denoising_is_trained():
    _, params, network = randomized("ensdiff")
    image, x_t, t = inputs()
    output, condition = network(params, image, x_t, t)
    diffusion = process.build(base.get_config("ensdiff").diffusion, BINARY.one_hot)
    objective = losses.Objective(condition_every=1, condition_ce_weight=1.0)
    mask = (x_t > 0).astype(jnp.float32)
    terms = objective(diffusion, output, condition, mask, x_t, t)
    assert set(terms) == {"total", "denoising_dice", "denoising_ce"}
    np.testing.assert_allclose(terms["total"], terms["denoising_dice"] + terms["denoising_ce"])


def test_zero_steps_need_condition_logits():
    diffusion = process.build(base.get_config("segdiff").diffusion, BINARY.one_hot)
    settings = {"steps": 0, "sampler": "ddim", "member_chunk": 1}
    with pytest.raises(InputError, match="steps: 0 asks for"):
        denoiser.make_members_fn(build("segdiff"), diffusion, **settings)


@pytest.mark.parametrize(
    ("name", "scored"),
    [("default", True), ("ensdiff", False), ("transunet", False)],
)
def test_validation_scores_the_condition_model_only_where_there_is_one(name, scored):
    config = base.get_config(f"{name},tiny")
    dataset = types.SimpleNamespace(name="none", sources={"validation": [0]}, task=BINARY)
    diffusion = process.build(config.diffusion, BINARY.one_hot)
    validation = evaluator.Validation(config, dataset, build(name), diffusion)
    assert validation._scores_condition == scored


def test_validation_of_a_blend_needs_a_condition_model_that_segments():
    config = base.get_config("ensdiff,tiny")
    config.validation.fusion = "blend"
    dataset = types.SimpleNamespace(name="none", sources={"validation": [0]}, task=BINARY)
    diffusion = process.build(config.diffusion, BINARY.one_hot)
    with pytest.raises(InputError, match="fusion: a blend needs"):
        evaluator.Validation(config, dataset, build("ensdiff"), diffusion)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("swin_unetr", {"condition_widths": (8, 16)}, "model.condition_widths"),
        ("swin_unetr", {"window": 0}, "model.window"),
        ("medsegdiff_v1", {"widths": (8,)}, "model.widths"),
    ],
)
def test_impossible_sizes_name_their_field(name, fields, words):
    config = base.get_config(f"{name},tiny").model
    config.update(fields)
    with pytest.raises(InputError, match=words):
        networks.build(config, BINARY, SIZE)


# --- MedSegDiff-V1 ----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [8, 9])
def test_ff_parser_starts_as_identity_and_any_map_leaves_it_real(width):
    features = jax.random.normal(jax.random.key(0), (2, 6, width, 3))
    parser = medsegdiff_v1.FFParser()
    variables = parser.init(jax.random.key(1), features)
    np.testing.assert_allclose(parser.apply(variables, features), features, atol=1e-6)
    pairs = random_like(variables)["params"]["map"]
    result = parser.apply({"params": {"map": pairs}}, features)
    assert result.dtype == jnp.float32
    gain = np.asarray(pairs[..., 0] + 1j * pairs[..., 1]).transpose(1, 2, 0)
    spectrum = np.fft.rfft2(np.asarray(features), axes=(1, 2)) * gain
    expected = np.fft.irfft2(spectrum, s=(6, width), axes=(1, 2))
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_ff_parser_computes_in_float32():
    features = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
    parser = medsegdiff_v1.FFParser()
    variables = parser.init(jax.random.key(0), features)
    assert parser.apply(variables, features).dtype == jnp.bfloat16
    assert "c64" in str(jax.make_jaxpr(parser.apply)(variables, features))


def test_fusion_is_the_product_of_the_normalised_features_and_the_images():
    of_image, of_mask = jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 8))
    fusion = medsegdiff_v1.AttentiveFusion()
    result, _ = jax.jit(fusion.init_with_output)(jax.random.key(1), of_image, of_mask)

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    a, b = np.asarray(of_image), np.asarray(of_mask)
    np.testing.assert_allclose(result, norm(a) * norm(b) * a, atol=1e-5)


def test_of_four_levels_the_middle_two_are_fused_and_the_first_two_are_cached():
    model = networks.build(base.get_config("medsegdiff_v1,small").model, BINARY, SIZE)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs())["params"]
    maps = [shapes[f"fusions_{index}"]["ff_parser"]["map"].shape for index in range(2)]
    assert maps == [(48, 8, 5, 2), (96, 4, 3, 2)] and "fusions_2" not in shapes
    encode = functools.partial(model.apply, method="encode")
    condition = jax.eval_shape(encode, {"params": shapes}, inputs()[0])
    assert [leaf.shape for leaf in condition.embedding] == [(3, 16, 16, 24), (3, 8, 8, 48)]


# --- SegDiff ----------------------------------------------------------------------------------


def test_an_rrdb_without_its_last_convolutions_is_known():
    # Dense blocks whose joining convolution is zero are identities: x + 0.2 x.
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 4))
    block = segdiff.RRDB()
    params = random_like(jax.eval_shape(block.init, jax.random.key(1), x)["params"])
    for dense in params.values():
        dense["Conv_4"] = jax.tree.map(jnp.zeros_like, dense["Conv_4"])
    result = jax.jit(block.apply)({"params": params}, x)
    np.testing.assert_allclose(result, 1.2 * x, rtol=1e-6)


# --- transformers -----------------------------------------------------------------------------


def test_patches_go_back_where_they_came_from():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    patches = x.reshape(2, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 12)
    np.testing.assert_array_equal(layers.patches_to_map(patches, 2, 3, 2), x)


@pytest.mark.parametrize(("features", "heads"), [(768, 12), (160, 2), (16, 1), (200, 2)])
def test_heads_share_the_width_evenly(features, heads):
    assert transformer.count_heads(features, 64) == heads


def test_windows_are_cut_and_joined_exactly():
    x = jnp.arange(2 * 6 * 4 * 3.0).reshape(2, 6, 4, 3)
    windows = swin_unetr.to_windows(x, 2)
    assert windows.shape == (2, 6, 4, 3)
    np.testing.assert_array_equal(windows[1, 3], x[1, 2:4, 2:4].reshape(4, 3))
    np.testing.assert_array_equal(swin_unetr.from_windows(windows, 6, 4), x)


@pytest.mark.parametrize(
    ("shape", "shifted"), [((7, 5), False), ((8, 8), True), ((7, 5), True), ((3, 3), True)]
)
def test_a_swin_block_mixes_the_tokens_of_a_window_and_no_others(shape, shifted):
    x = jax.random.normal(jax.random.key(0), (1, *shape, 16))
    block = swin_unetr.SwinBlock(window=4, shifted=shifted)
    params = random_like(jax.eval_shape(block.init, jax.random.key(1), x)["params"])
    jacobian = jax.jit(jax.jacrev(lambda x: block.apply({"params": params}, x).sum((0, -1))))(x)
    mixed = np.abs(jacobian).max(axis=(2, 5)) > 0
    # Windows of the plane itself, from its border or from half a window before it.
    shift = 2 if shifted and shape != (3, 3) else 0
    row, column = ((np.arange(side) - shift) // 4 for side in shape)
    same_row, same_column = (band[:, None] == band[None, :] for band in (row, column))
    np.testing.assert_array_equal(mixed, same_row[:, None, :, None] & same_column[None, :, None, :])


@pytest.mark.parametrize("shift", [0, 2])
def test_no_pixel_attends_to_padding(shift):
    inside = np.zeros((8, 8), bool)
    inside[:7, :5] = True
    moved = np.roll(inside, (-shift, -shift), axis=(0, 1))[None, :, :, None]
    inside = swin_unetr.to_windows(moved, 4)[0, :, :, 0]
    mask = swin_unetr.attention_mask(7, 5, 4, shift)
    assert not (mask & inside[:, :, None] & ~inside[:, None, :]).any()
    assert mask.diagonal(axis1=1, axis2=2).all()  # softmax is over something


@pytest.mark.parametrize("shape", [(8, 8), (7, 5)])
def test_the_shift_is_undone_exactly(shape):
    x = jax.random.normal(jax.random.key(0), (2, *shape, 16))
    block = swin_unetr.SwinBlock(window=4, shifted=True)
    params = random_like(jax.eval_shape(block.init, jax.random.key(1), x)["params"])
    inner = params["block"]
    inner["attention"]["output"] = jax.tree.map(jnp.zeros_like, inner["attention"]["output"])
    inner["mlp_out"] = jax.tree.map(jnp.zeros_like, inner["mlp_out"])
    np.testing.assert_array_equal(jax.jit(block.apply)({"params": params}, x), x)


def test_relative_positions_are_one_index_per_offset():
    index = swin_unetr.relative_positions(3)
    cells = [(row, column) for row in range(3) for column in range(3)]
    offsets = {}
    for i, (row, column) in enumerate(cells):
        for j, (other_row, other_column) in enumerate(cells):
            offsets.setdefault((row - other_row, column - other_column), set()).add(index[i, j])
    assert len(offsets) == 25 and all(len(found) == 1 for found in offsets.values())
    assert set().union(*offsets.values()) == set(range(25)) and offsets[0, 0] == {12}
