"""Round trips between mask, x_0, x_t, eps and v at any timestep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsegdiff_jax import process, schedules

T = 1000
SCHEDULES = {
    (kind, zero): schedules.build(kind, T, zero)
    for kind in ("linear", "cosine")
    for zero in (False, True)
}
scales = st.sampled_from([0.1, 0.3, 1.0])
kinds = st.sampled_from(sorted(SCHEDULES))
examples = settings(max_examples=40)


def make(prediction, kind=("linear", True), scale=0.3, one_hot=False):
    return process.Process(SCHEDULES[kind], scale, prediction, one_hot)


def draw(seed, channels=1):
    """A mask, and noise, [3, 4, 4, channels]."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (3, 4, 4, channels)).astype(np.float32)
    return jnp.asarray(mask), jnp.asarray(rng.normal(size=mask.shape), jnp.float32)


@examples
@given(st.integers(0, 2**31), scales)
def test_mask_to_x0_and_back(seed, scale):
    p = make("x0", scale=scale)
    mask, eps = draw(seed)
    x_0 = p.mask_to_x0(mask)
    np.testing.assert_allclose(np.unique(np.abs(x_0)), scale, rtol=1e-6)
    np.testing.assert_allclose(p.x0_to_mask(x_0), mask, atol=1e-6)
    probability = jax.nn.sigmoid(eps)
    np.testing.assert_allclose(p.x0_to_mask(p.mask_to_x0(probability)), probability, atol=1e-6)
    clipped = p.x0_to_mask(5 * scale * eps)
    assert float(clipped.min()) >= 0 and float(clipped.max()) <= 1


@examples
@given(st.integers(0, 2**31), kinds, scales, st.lists(st.integers(1, T), min_size=3, max_size=3))
def test_v_round_trip(seed, kind, scale, t):
    p = make("v", kind, scale)
    mask, eps = draw(seed)
    x_0, t = p.mask_to_x0(mask), jnp.asarray(t)
    prediction = p.predict(p.target(x_0, eps, t), p.corrupt(x_0, eps, t), t)
    np.testing.assert_allclose(prediction.x0, x_0, atol=2e-6)
    # eps = (x_t - alpha x_0) / sigma; sigma >= 0.0064 magnifies float32 rounding.
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-3)


@examples
@given(st.integers(0, 2**31), scales, st.lists(st.integers(1, 900), min_size=3, max_size=3))
def test_eps_round_trip(seed, scale, t):
    p = make("eps", ("linear", False), scale)
    mask, eps = draw(seed)
    x_0, t = p.mask_to_x0(mask), jnp.asarray(t)
    np.testing.assert_array_equal(p.target(x_0, eps, t), eps)
    prediction = p.predict(eps, p.corrupt(x_0, eps, t), t)
    # Divided by alpha >= 0.016 (t = 900).
    np.testing.assert_allclose(prediction.x0, x_0, atol=5e-5)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-3)


@examples
@given(st.integers(0, 2**31), kinds, scales, st.lists(st.integers(1, T), min_size=3, max_size=3))
def test_x0_logits_round_trip(seed, kind, scale, t):
    mask, eps = draw(seed)
    p = make("x0", kind, scale)
    x_0, t = p.mask_to_x0(mask), jnp.asarray(t)
    x_t = p.corrupt(x_0, eps, t)
    prediction = p.predict(jnp.where(mask > 0, 40.0, -40.0), x_t, t)
    np.testing.assert_allclose(prediction.x0, x_0, atol=1e-6)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-3)


@examples
@given(
    st.integers(0, 2**31),
    st.sampled_from(["x0", "eps", "v"]),
    st.lists(st.integers(1, T), min_size=3, max_size=3),
)
def test_both_faces_agree_with_x_t_and_stay_in_range(seed, prediction_type, t):
    # Any output, also of a network that is plain wrong, and where x_0 had to be clipped.
    p = make(prediction_type, ("linear", False), 0.3)
    _, x_t = draw(seed)
    _, output = draw(seed + 1)
    t = jnp.asarray(t)
    prediction = p.predict(3 * output, x_t, t)
    assert np.isfinite(prediction.eps).all()
    assert float(jnp.abs(prediction.x0).max()) <= 0.3 + 1e-6
    alpha, sigma = process.coefficients(p.schedule, t, x_t)
    np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, x_t, atol=2e-6)


def test_v_says_x0_where_no_signal_is_left():
    p = make("v", ("linear", True))
    mask, eps = draw(0)
    x_0 = p.mask_to_x0(mask)
    np.testing.assert_array_equal(p.corrupt(x_0, eps, T), eps)
    np.testing.assert_array_equal(p.target(x_0, eps, T), -x_0)
    np.testing.assert_allclose(p.predict(-x_0, eps, T).x0, x_0)


def test_one_hot_x0_is_a_softmax():
    logits = jnp.log(jnp.asarray([[[[0.2, 0.5, 0.3]]]]))
    prediction = make("x0", one_hot=True, scale=0.5).predict(logits, jnp.zeros((1, 1, 1, 3)), 500)
    np.testing.assert_allclose(prediction.x0[0, 0, 0], [-0.3, 0.0, -0.2], atol=1e-6)
    independent = make("x0", scale=0.5).predict(
        jnp.asarray([[[[0.0, np.log(3.0)]]]]), jnp.zeros((1, 1, 1, 2)), 500
    )
    np.testing.assert_allclose(independent.x0[0, 0, 0], [0.0, 0.25], atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("t", [1, 100, 500, 1000])
def test_network_input_has_unit_second_moment(t, scale):
    p = make("v", scale=scale)
    rng = np.random.default_rng(5)
    x_0 = p.mask_to_x0(jnp.asarray(rng.integers(0, 2, (4, 64, 64, 1))))
    eps = jnp.asarray(rng.normal(size=x_0.shape), jnp.float32)
    moment = float(jnp.mean(p.network_input(p.corrupt(x_0, eps, t), t) ** 2))
    assert moment == pytest.approx(1, abs=5 * np.sqrt(2 / eps.size))


@pytest.mark.parametrize("prediction_type", ["x0", "eps", "v"])
def test_scalar_and_per_case_t_agree(prediction_type):
    p = make(prediction_type, ("linear", False))
    mask, eps = draw(2, channels=2)
    x_0, t, each = p.mask_to_x0(mask), jnp.int32(321), jnp.full(3, 321)
    x_t = p.corrupt(x_0, eps, t)
    np.testing.assert_array_equal(x_t, p.corrupt(x_0, eps, each))
    np.testing.assert_array_equal(p.network_input(x_t, t), p.network_input(x_t, each))
    one, other = p.predict(eps, x_t, t), p.predict(eps, x_t, each)
    np.testing.assert_array_equal(one.x0, other.x0)
    np.testing.assert_array_equal(one.eps, other.eps)


def test_output_is_float32_for_a_bfloat16_network():
    prediction = make("x0").predict(
        jnp.ones((1, 2, 2, 1), jnp.bfloat16), jnp.zeros((1, 2, 2, 1)), 10
    )
    assert prediction.x0.dtype == prediction.eps.dtype == jnp.float32


@examples
@given(kinds, st.integers(1, T), st.integers(0, T - 1), st.integers(0, 2**31))
def test_posterior_composes_to_the_forward_process(kind, t, s, seed):
    # Averaging q(x_s | x_t, x_0) over q(x_t | x_0) must give q(x_s | x_0): mean alpha_s x_0 and
    # variance sigma_s^2. The mean is affine in x_t, so two evaluations say its slope.
    s = min(s, t - 1)
    p = make("v", kind)
    mask, _ = draw(seed)
    x_0 = p.mask_to_x0(mask)
    alpha_t, sigma_t = process.coefficients(p.schedule, t, x_0)
    alpha_s, sigma_s = process.coefficients(p.schedule, s, x_0)
    center, std = process.posterior(p.schedule, x_0, alpha_t * x_0, t, s)
    above, _ = process.posterior(p.schedule, x_0, alpha_t * x_0 + sigma_t, t, s)
    np.testing.assert_allclose(center, alpha_s * x_0, atol=1e-6)
    variance = (above - center) ** 2 + std**2
    np.testing.assert_allclose(variance, sigma_s**2, rtol=1e-5, atol=2e-6)


def test_posterior_ends_at_x0():
    p = make("x0")
    mask, x_t = draw(9)
    mean, std = process.posterior(
        p.schedule, p.mask_to_x0(mask), x_t, jnp.asarray([1, 500, 1000]), jnp.zeros(3, int)
    )
    np.testing.assert_array_equal(mean, p.mask_to_x0(mask))
    np.testing.assert_array_equal(std, 0.0)
