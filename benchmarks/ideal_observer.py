"""Does a denoiser see which rater's mask was noised? Trained models beside the ideal observer.

    python -m benchmarks.ideal_observer --checkpoint=runs/demo --output=FILE --figure=PNG

Samples can only differ like raters if the network, given x_t made from one rater's mask, tells that
rater from the others: on phantoms mostly by how far out he draws the border, which x_t shows at all
its pixels together long before it shows at any of them. For test phantoms and fresh raters the
command prints, at several t,

    following   slope of the predicted area (sum of the predicted probabilities) on the rater's own
                area, both as differences from their means over the case's raters:
                0 = the same answer for everyone, 1 = everyone's own mask
    CE          cross-entropy of the predicted probabilities with the rater's mask, nats per pixel

and the same of the ideal observer, who knows how raters are distributed (`data/phantom`): the mean
of OTHERS further raters' masks, each weighted by its likelihood p(x_t | mask). Where x_t shows
much, none of these is close enough, and what is printed is below what is possible.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.provenance import write
from data.phantom import appearance, model
from medsegdiff_jax import checkpoint, cli, denoiser, imaging, networks, plots, process
from medsegdiff_jax.types import Array, InputError

CASES, RATERS, OTHERS = 8, 16, 400
CLIPPED = 0.002
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5)  # of the figure, signal to noise
THOUSANDTHS = (1000, 900, 800, 700, 600, 500, 400, 300, 200, 100)  # of T


class Observer:
    """A trained model's answers to noisy masks of the test phantoms."""

    def __init__(self, path: str):
        """Raises InputError unless the model was trained on binary phantoms."""
        loaded = checkpoint.load_model(path)
        data = loaded.config.data
        if data.name != "phantom" or loaded.task != model.TASKS["binary"]:
            raise InputError(f"{path}: was not trained on binary phantoms")
        self.side, self.params = data.image_size, loaded.params
        self.description = loaded.description
        self.process = process.build(loaded.config.diffusion, loaded.task.one_hot)
        self._network = networks.build(loaded.config.model, loaded.task, self.side)
        images = [appearance.render(case) for case in _cases()]
        images = [imaging.resize_image(image, (self.side, self.side)) for image in images]
        images = [imaging.normalize(imaging.to_unit(image), loaded.task) for image in images]
        encode = jax.jit(lambda p, x: self._network.apply({"params": p}, x, method="encode"))
        self._condition = encode(self.params, jnp.asarray(np.stack(images)))
        self._answer = jax.jit(self._answer_of)

    def _answer_of(self, params: Any, condition: Any, x_t: Array, t: Array) -> Array:
        denoise = denoiser.bind(self._network, self.process, params, condition)
        return self.process.x0_to_mask(denoise(x_t, t).x0)

    def __call__(self, x_t: np.ndarray, t: int) -> np.ndarray:
        """x_t: [CASES, S, S] -> probabilities [CASES, S, S]."""
        x_t = jnp.asarray(x_t[..., None], jnp.float32)
        return np.asarray(self._answer(self.params, self._condition, x_t, jnp.int32(t)))[..., 0]


def _cases() -> list[str]:
    return [model.case_id("binary", "test", number) for number in range(CASES)]


def raters(side: int, count: int, seed: int) -> np.ndarray:
    """Masks [CASES, count, S, S] in {0, 1} of fresh raters of the test phantoms."""
    return np.stack(
        [
            [imaging.resize_labels(one, (side, side)) for one in one_case]
            for one_case in (model.fresh_raters(case, count, seed) for case in _cases())
        ]
    ).astype(np.float32)


def ideal(x_t: np.ndarray, x_0: np.ndarray, masks: np.ndarray, sigma: float) -> np.ndarray:
    """Posterior mean of the mask if it is one of `masks`, all equally probable.

    Args:
      x_t: [CASES, S, S].
      x_0: [CASES, n, S, S] alpha_t times the clean sample of every mask.
      masks: [CASES, n, S, S].
      sigma: of the noise.
    """
    logs = -np.square(x_t[:, None] - x_0).sum(axis=(2, 3)) / (2 * sigma**2)
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("cn,cnyx->cyx", weights, masks)


def following(predicted: np.ndarray, areas: np.ndarray) -> float:
    """Slope of predicted areas on the raters' own, both [raters, CASES]."""
    own = areas - areas.mean(axis=0)
    return float((own * (predicted - predicted.mean(axis=0))).sum() / np.square(own).sum())


def cross_entropy(probability: np.ndarray, mask: np.ndarray) -> float:
    """Mean over all pixels in nats; probabilities are kept CLIPPED away from 0 and 1."""
    probability = np.clip(probability, CLIPPED, 1 - CLIPPED)
    return float(-np.where(mask > 0, np.log(probability), np.log(1 - probability)).mean())


def measure(observer: Observer) -> list[dict[str, float]]:
    """A row per t."""
    masks, others = raters(observer.side, RATERS, 1), raters(observer.side, OTHERS, 2)
    noised, rng, rows = observer.process, np.random.default_rng(0), []
    for t in (n * noised.schedule.num_steps // 1000 for n in THOUSANDTHS):
        alpha, sigma = (float(table[t]) for table in (noised.schedule.alpha, noised.schedule.sigma))
        x_0 = alpha * np.asarray(noised.mask_to_x0(others))
        answers: dict[str, list[np.ndarray]] = {"model": [], "ideal": []}
        for rater in masks.swapaxes(0, 1):
            x_t = alpha * np.asarray(noised.mask_to_x0(rater))
            x_t = x_t + sigma * rng.standard_normal(x_t.shape)
            answers["model"].append(observer(x_t, t))
            answers["ideal"].append(ideal(x_t, x_0, others, sigma))
        row = {"t": t, "signal_to_noise": alpha * noised.input_scale / sigma}
        areas = masks.sum(axis=(2, 3)).T
        for who, found in answers.items():
            probability = np.stack(found)
            row[f"{who}_following"] = following(probability.sum(axis=(2, 3)), areas)
            row[f"{who}_ce"] = cross_entropy(probability, masks.swapaxes(0, 1))
        rows.append(row)
    return rows


def draw(path: Path, results: dict[str, list[dict[str, float]]]) -> None:
    """Following against the signal-to-noise ratio of one pixel."""
    figure = plots.new_figure(5.0, 3.6)
    axes = figure.add_subplot()
    ideals: set[tuple[float, ...]] = set()
    for label, rows in results.items():
        ratio = [row["signal_to_noise"] for row in rows]
        (line,) = axes.plot(ratio, [row["model_following"] for row in rows], "o-", ms=3)
        line.set_label(label)
        best = tuple(row["ideal_following"] for row in rows)
        if best not in ideals:  # models of one process have one ideal
            axes.plot(ratio, best, "k--", lw=1, label="ideal observer" if not ideals else None)
        ideals.add(best)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
    axes.minorticks_off()
    axes.set_xlabel("signal to noise of one pixel")
    axes.set_ylabel("following of the rater")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False)
    plots.write_figure(path, figure)


def main(argv: list[str]) -> None:
    """Measures every model, prints, writes --output and --figure."""
    del argv
    if not _CHECKPOINTS.value:
        raise InputError("--checkpoint: name at least one model")
    results: dict[str, list[dict[str, float]]] = {}
    described: dict[str, str] = {}
    for item in _CHECKPOINTS.value:
        label, _, path = item.rpartition("=")
        observer = Observer(path)
        rows = results[label or Path(path).name] = measure(observer)
        described[label or Path(path).name] = observer.description
        print(f"{label or path}\n    t  signal/noise  following: model  ideal   CE: model   ideal")
        for row in rows:
            print(f"{row['t']:5d}  {row['signal_to_noise']:12.3f}  {row['model_following']:16.3f}"
                  f"  {row['ideal_following']:5.3f}  {row['model_ce']:10.4f}  "
                  f"{row['ideal_ce']:6.4f}", flush=True)  # fmt: skip
    if _OUTPUT.value:
        how = {"cases": CASES, "raters": RATERS, "others": OTHERS, "checkpoints": described}
        write(_OUTPUT.value, **how, models=results)
    if _FIGURE.value:
        draw(Path(_FIGURE.value), results)


if __name__ == "__main__":
    # Here, so that tests can import this beside another benchmark with flags of the same names.
    _CHECKPOINTS = flags.DEFINE_multi_string(
        "checkpoint", [], "[LABEL=]MODEL trained on binary phantoms; repeatable."
    )
    _OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
    _FIGURE = flags.DEFINE_string("figure", None, "PNG to write: following against the noise.")
    cli.run(main)
