"""Speed, arithmetic and memory of training and sampling, for one config.

    python -m benchmarks.throughput --config=configs/folder.py:default,paper --batch=32 \
        --peak_tflops=989 --output=benchmarks/results/throughput.json

Inputs are noise on the devices, so the input pipeline is left out (input_pipeline.py measures it).
FLOPs are those that the compiler counts in the program of one device; utilisation (MFU) is their
rate over --peak_tflops. It counts the body of a loop once, so sampling has no such figure.
--against names a Python file with `make(config, batch, channels)` that returns functions which do
the same work in another implementation, {"train": one training step, "denoise": one denoising
step}; they run in the same call. --naive times the ensemble as a loop, too: one member after the
other, condition and network together at every step.
"""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from benchmarks.programs import binary_task, compiled, ensemble, state_init, training_step
from benchmarks.provenance import write
from medsegdiff_jax import cli, denoiser, networks, process, samplers, schedules
from medsegdiff_jax.partitioning import compiler_options, on_batch, replicated, state_shardings
from medsegdiff_jax.types import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.")
_BATCH = flags.DEFINE_integer("batch", 16, "Images per training step, cases per sampling call.")
_CHANNELS = flags.DEFINE_integer("channels", 3, "Channels of the images.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed calls, after one that warms up.")
_PEAK = flags.DEFINE_float(
    "peak_tflops", None, "Of one device in the config's model.dtype, for MFU."
)
_AGAINST = flags.DEFINE_string("against", None, "Python file with make(config, batch, channels).")
# Of --against=benchmarks/torch_v2.py, which is imported after the flags were read.
flags.DEFINE_bool("torch_compile", False, "The other implementation uses torch.compile.")
_NAIVE = flags.DEFINE_bool("naive", False, "Also time the ensemble as a plain loop.")
_ONLY = flags.DEFINE_list("only", "train,denoise,segment", "What to measure.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def timed(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Seconds of a call: median and quartiles, after one call that warms up."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    low, _, high = statistics.quantiles(seconds, n=4)
    return {"median_s": statistics.median(seconds), "low_s": low, "high_s": high}


class Subject:
    """The network of a config with inputs of noise on all devices."""

    def __init__(self, config: Any, batch: int, channels: int):
        self.config, self.batch, self.channels = config, batch, channels
        side, task = config.data.image_size, binary_task(channels)
        self.model = networks.build(config.model, task, side)
        self.process = process.build(config.diffusion, task.one_hot)
        self.training = training_step(config, batch, jax.devices(), channels)
        self.mesh = self.training.mesh
        self.split = on_batch(self.mesh)
        shardings = state_shardings(self.mesh, self.training.arguments[0])
        init = jax.jit(state_init(config, channels), out_shardings=shardings)
        self.state = init(jax.random.key(0))
        rng = np.random.default_rng(0)
        self.image = rng.standard_normal((batch, side, side, channels), np.float32)
        self.mask = (rng.random((batch, side, side, 1)) < 0.2).astype(np.float32)

    def train(self, repeats: int) -> dict[str, Any]:
        """One update of the whole batch."""
        program, facts = compiled(self.training.lower())
        batch = jax.device_put({"image": self.image, "mask": self.mask}, self.split)

        def update() -> Any:
            self.state, terms = program(self.state, batch)  # the old state is overwritten
            return terms

        return self._row(facts, timed(update, repeats))

    def denoise(self, repeats: int) -> dict[str, Any]:
        """One denoising step of the whole batch, the condition given."""

        def encode(params: Any, image: Any) -> Any:
            return self.model.apply({"params": params}, image, method="encode")

        def step(params: Any, x_t: Any, condition: Any) -> Any:
            t = jnp.int32(self.process.schedule.num_steps // 2)
            bound = denoiser.bind(self.model, self.process, params, condition)
            return bound(x_t, t).x0

        params = self._params()
        with jax.set_mesh(self.mesh):
            image, x_t = jax.device_put((self.image, self.mask), self.split)
            condition = jax.jit(encode, out_shardings=self.split)(params, image)
            one_step = jax.jit(step, compiler_options=compiler_options(self.mesh))
            program, facts = compiled(one_step.lower(params, x_t, condition))
            return self._row(facts, timed(lambda: program(params, x_t, condition), repeats))

    def _params(self) -> Any:
        """The averaged parameters, whole on every device."""
        whole = replicated(self.mesh)
        return jax.jit(lambda tree: tree, out_shardings=whole)(self.state.ema_params)

    def segment(self, repeats: int) -> dict[str, Any]:
        """The whole ensemble of the config's `sampling`; it is long, so it is repeated less."""
        repeats, sampling = max(2, repeats // 5), self.config.sampling
        segment = ensemble(self.config, self.batch, jax.devices(), self.channels)
        program, facts = compiled(segment.lower(), in_loops=True)
        case, first = np.arange(self.batch, dtype=np.uint32), np.zeros(self.batch, np.int32)
        given = (self._params(), self.image, case, np.uint32(0), first)
        shardings = jax.tree.map(lambda shape: shape.sharding, segment.arguments)
        arguments = jax.device_put(given, shardings)
        row = self._row(facts, timed(lambda: program(*arguments), repeats))
        return {"members": sampling.members, "steps": sampling.steps, **row}

    def segment_naively(self, repeats: int) -> dict[str, Any]:
        """The same ensemble member by member and step by step, the condition computed each time."""
        sampling, schedule = self.config.sampling, self.process.schedule
        path = schedules.trajectory(schedule.num_steps, sampling.steps)
        params = self._params()

        @functools.partial(jax.jit, compiler_options=compiler_options(self.mesh))
        def step(x_t: Any, image: Any, t: Any, s: Any, key: Any) -> Any:
            x_in = self.process.network_input(x_t, t)
            output, _ = self.model.apply({"params": params}, image, x_in, t)
            noise = jax.random.normal(key, x_t.shape)
            prediction = self.process.predict(output, x_t, t)
            return samplers.SAMPLERS[sampling.sampler].step(schedule, prediction, x_t, t, s, noise)

        def loop() -> Any:
            members = []
            for member in range(sampling.members):
                keys = jax.random.split(jax.random.key(member), len(path))
                x_t = jax.random.normal(keys[-1], self.mask.shape)
                for key, t, s in zip(keys, path[:-1], path[1:], strict=False):
                    x_t = step(x_t, self.image, jnp.int32(t), jnp.int32(s), key)
                members.append(x_t)
            return members

        facts = {"compile_s": float("nan"), "gflops": float("nan")}
        return self._row(facts, timed(loop, repeats))

    def _row(self, facts: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
        rate = self.batch / seconds["median_s"]
        # The compiler counts the program of one device.
        flops = facts["gflops"] * 1e9 / seconds["median_s"]
        return {
            "images_per_s": round(rate, 3),
            **facts,
            **seconds,
            "tflops": round(flops / 1e12, 4),
        }


def _ratio(rows: dict[str, Any], one: str, other: str) -> float:
    ratio = rows[one]["images_per_s"] / rows[other]["images_per_s"]
    print(f"{one} is {ratio:.2f} times as fast as {other}")
    return round(ratio, 3)


def against(path: str, config: Any, batch: int, channels: int, repeats: int) -> dict[str, Any]:
    """Images/s of another implementation, by what it does ("train", "denoise").

    Raises:
      InputError: no such file, or no `make` in it.
    """
    spec = importlib.util.spec_from_file_location("adapter", path)
    if spec is None or not Path(path).is_file():
        raise InputError(f"--against: no Python file at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "make"):
        raise InputError(f"--against: {path} has no function make(config, batch, channels)")
    rows = {}
    for name, call in module.make(config, batch, channels).items():
        seconds = timed(call, repeats)
        rows[name] = {"images_per_s": round(batch / seconds["median_s"], 3), **seconds}
    return rows


def main(argv: list[str]) -> None:
    """Measures, prints a table, writes --output."""
    del argv
    subject = Subject(_CONFIG.value, _BATCH.value, _CHANNELS.value)
    measured = [name for name in _ONLY.value if name != "denoise" or subject.model.generative]
    rows = {name: getattr(subject, name)(_REPEATS.value) for name in measured}
    ratios = {}
    if _NAIVE.value and subject.model.generative:
        rows["segment, naive"] = subject.segment_naively(2)
        ratios["naive"] = _ratio(rows, "segment", "segment, naive")
    if _AGAINST.value:
        arguments = (_CONFIG.value, _BATCH.value, _CHANNELS.value, _REPEATS.value)
        for name, row in against(_AGAINST.value, *arguments).items():
            rows[f"against: {name}"] = row
            ratios[name] = _ratio(rows, name, f"against: {name}")
    print(f"{'':14}  images/s  compile s   GFLOP  TFLOP/s    MFU  program GiB")
    for name, row in rows.items():
        if _PEAK.value and "tflops" in row:
            row["mfu"] = round(row["tflops"] / _PEAK.value, 4)
        cells = [row.get(key, float("nan")) for key in ("compile_s", "gflops", "tflops", "mfu")]
        print(
            f"{name:14}  {row['images_per_s']:8.2f}  {cells[0]:9.1f}  {cells[1]:6.1f}  "
            f"{cells[2]:7.3f}  {cells[3]:5.3f}  {row.get('program_GiB', float('nan')):11.3f}"
        )
    memory = jax.local_devices()[0].memory_stats() or {}
    if _OUTPUT.value:
        write(
            _OUTPUT.value,
            config=_CONFIG.value.to_dict(),
            batch=_BATCH.value,
            dtype=_CONFIG.value.model.dtype,
            devices=jax.device_count(),
            peak_GiB=round(memory.get("peak_bytes_in_use", 0) / 2**30, 3) or None,
            ratios=ratios,
            rows=rows,
        )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    cli.run(main)
