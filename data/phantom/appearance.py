"""How a phantom looks: a skin lesion under a dermatoscope, or a mass in ultrasound."""

import numpy as np
from scipy import ndimage
from scipy.special import expit

from data.phantom.model import NATIVE_SIZE, Anatomy, anatomy, image_generator, smooth_field

_SKIN = np.array([0.80, 0.61, 0.52])
_PIGMENT = np.array([0.40, 0.25, 0.19])
_REDNESS = np.array([0.05, -0.06, -0.05])


def render(case: str) -> np.ndarray:
    """The image of a case: uint8 [N, N, 3] for "binary", [N, N, 1] for "multiclass"."""
    shape = anatomy(case)
    rng = image_generator(case)
    image = _dermoscopy(shape, rng) if shape.variant == "binary" else _ultrasound(shape, rng)
    return np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)


def _texture(rng: np.random.Generator, weights: dict[float, float]) -> np.ndarray:
    """Sum of smooth fields: correlation length in pixels -> amplitude."""
    return sum(weight * smooth_field(rng, length) for length, weight in weights.items())


def _membership(distance: np.ndarray, ambiguity: float) -> np.ndarray:
    """1 inside, 0 outside, with a border as soft as the raters are unsure."""
    return expit(distance / (0.35 + 0.6 * ambiguity))


def _coordinates() -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns in [-1, 1], [N, N] each."""
    axis = (np.arange(NATIVE_SIZE) + 0.5) / NATIVE_SIZE * 2 - 1
    return np.meshgrid(axis, axis, indexing="ij")


def _hairs(rng: np.random.Generator) -> np.ndarray:
    """Opacity [N, N] in [0, 1] of a few bent dark hairs."""
    canvas = np.zeros((NATIVE_SIZE, NATIVE_SIZE))
    along = np.linspace(0.0, 1.0, 4 * NATIVE_SIZE)[:, None]
    for _ in range(rng.integers(2, 10)):
        start, bend, end = rng.uniform(-0.2, 1.2, size=(3, 2)) * NATIVE_SIZE
        middle = (start + end) / 2 + 0.25 * (bend - (start + end) / 2)
        curve = (1 - along) ** 2 * start + 2 * along * (1 - along) * middle + along**2 * end
        pixels = np.floor(curve).astype(int)
        pixels = pixels[((pixels >= 0) & (pixels < NATIVE_SIZE)).all(axis=1)]
        line = np.zeros_like(canvas)
        line[pixels[:, 0], pixels[:, 1]] = 1.0
        width = rng.uniform(0.4, 0.8)
        canvas = np.maximum(canvas, ndimage.gaussian_filter(line, width) * 2.2 * width)
    return np.clip(canvas, 0.0, 1.0)


def _dermoscopy(shape: Anatomy, rng: np.random.Generator) -> np.ndarray:
    rows, columns = _coordinates()
    skin = _SKIN + rng.normal(0.0, [0.05, 0.04, 0.04])
    pigment = _PIGMENT + rng.normal(0.0, [0.06, 0.05, 0.05])
    strength = rng.uniform(0.3, 0.85)
    # Pigment varies inside the lesion: blotches, and a fine network.
    blotches = 1.0 + _texture(rng, {10.0: 0.18, 4.0: 0.12})
    network = 1.0 + rng.uniform(0.05, 0.25) * np.clip(smooth_field(rng, 1.2), -2, 2)
    opacity = np.clip(_membership(shape.distances[0], shape.ambiguity) * blotches * network, 0, 1.1)
    image = skin + (strength * opacity)[..., None] * (pigment - skin)
    # Redness and uneven light are as strong as a pale lesion, but have no border.
    image += np.clip(smooth_field(rng, 14.0), 0, 2)[..., None] * rng.uniform(0, 1) * _REDNESS
    light = 1.0 + _texture(rng, {24.0: 0.07, 6.0: 0.03, 1.5: 0.025})
    ramp = rng.uniform(-0.12, 0.12, size=2)
    vignette = rng.uniform(0.0, 0.45) * np.clip(np.hypot(rows, columns) - 0.75, 0, None) ** 1.5
    image *= (light + ramp[0] * rows + ramp[1] * columns - vignette)[..., None]
    if rng.random() < 0.5:
        colour = rng.uniform(0.08, 0.25) * np.array([1.0, 0.8, 0.7])
        hair = 0.85 * _hairs(rng)[..., None]
        image = image * (1 - hair) + colour * hair
    return image + rng.normal(0.0, 0.018, size=image.shape)


def _speckle(rng: np.random.Generator) -> np.ndarray:
    """Rayleigh amplitude of mean 1, wider across the beam than along it."""
    parts = rng.standard_normal((2, NATIVE_SIZE, NATIVE_SIZE))
    parts = ndimage.gaussian_filter(parts, (0.0, 0.7, 1.3), mode="wrap")
    amplitude = np.hypot(parts[0], parts[1])
    return amplitude / amplitude.mean()


def _ultrasound(shape: Anatomy, rng: np.random.Generator) -> np.ndarray:
    rows, columns = _coordinates()
    lesion, core = (_membership(d, shape.ambiguity) for d in shape.distances)
    layers = 0.10 * np.sin(rng.uniform(4, 9) * rows + 1.2 * smooth_field(rng, 24.0))
    tissue = np.log(0.45) + layers + _texture(rng, {16.0: 0.18, 5.0: 0.12})
    tissue = tissue - rng.uniform(0.5, 1.0) * lesion
    tissue = tissue + rng.choice([-1.0, 1.0], p=[0.3, 0.7]) * rng.uniform(0.45, 0.8) * core
    tissue = tissue - rng.uniform(0.0, 0.4) * rows
    if rng.random() < 0.4:  # an acoustic shadow: a dark wedge from some depth down
        centre, width = rng.uniform(-0.8, 0.8), rng.uniform(0.05, 0.15)
        depth = expit((rows - rng.uniform(-0.6, 0.4)) / 0.08)
        across = np.exp(-0.5 * ((columns - centre * (1 + 0.2 * rows)) / width) ** 2)
        tissue = tissue - rng.uniform(0.4, 1.0) * depth * across
    amplitude = np.exp(tissue) * _speckle(rng) ** 0.6
    return (amplitude + rng.normal(0.0, 0.015, size=amplitude.shape))[..., None]
