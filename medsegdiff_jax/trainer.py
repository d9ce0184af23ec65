"""The training loop."""

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from clu import parameter_overview
from jax.sharding import Mesh

from medsegdiff_jax import (
    atomic,
    decision,
    denoiser,
    fusion,
    hosts,
    input_pipeline,
    losses,
    networks,
    process,
    train_state,
)
from medsegdiff_jax.checkpoint import Checkpoints, LoadedModel, digest, has_checkpoint
from medsegdiff_jax.evaluator import Validation
from medsegdiff_jax.fine_tuning import load_start, start_from
from medsegdiff_jax.input_pipeline import Dataset
from medsegdiff_jax.partitioning import (
    check_batch_size,
    on_batch,
    shard_batch,
    state_shardings,
    training_mesh,
)
from medsegdiff_jax.train_state import TrainState
from medsegdiff_jax.train_step import StepFn, compile_train_step, make_train_step
from medsegdiff_jax.types import Array, InputError, check_at_least
from medsegdiff_jax.workdir import prepare_workdir
from medsegdiff_jax.writer import MetricWriter, NoWriter, Progress

_log = logging.getLogger("medsegdiff_jax")

_STEPS_AHEAD = 2  # that may wait for the devices beside the one that runs


class LossWindow:
    """Averages loss terms between two reports, and finds the first step that went wrong."""

    def __init__(self):
        """Starts empty."""
        self._running: list[tuple[int, dict[str, Array]]] = []
        self._means: list[dict[str, float]] = []

    def add(self, step: int, terms: dict[str, Array]) -> None:
        """Adds the terms [B] and the gradient norm of one step, without waiting for its end."""
        self._running.append((step, terms))
        # Without end, the batches of all steps up to the next report could lie on the devices.
        if len(self._running) > _STEPS_AHEAD:
            jax.block_until_ready(self._running[-1 - _STEPS_AHEAD])

    def check(self) -> None:
        """Waits for the steps so far; to be called before their parameters are saved.

        Raises:
          FloatingPointError: a loss or a gradient was not finite; names the step.
        """
        for step, terms in jax.device_get(self._running):
            for name, term in (("loss", "total"), ("gradient", "grad_norm")):
                if not np.isfinite(terms[term]).all():
                    raise FloatingPointError(
                        f"the {name} is not finite at step {step}; the last checkpoint is kept "
                        "(a smaller optim.learning_rate or optim.grad_clip_norm usually helps)"
                    )
            self._means.append({name: float(np.mean(values)) for name, values in terms.items()})
        self._running = []

    def empty(self) -> dict[str, float]:
        """Means since the last call; raises what `check` does."""
        self.check()
        means, self._means = self._means, []
        columns = {name: float(np.mean([one[name] for one in means])) for name in means[0]}
        return {
            name if name == "grad_norm" else f"loss/{name}": mean for name, mean in columns.items()
        }


def train(config: Any, workdir: str) -> TrainState:
    """Trains, validates and checkpoints until `config.num_steps`; resumes if `workdir` has a run.

    SIGTERM saves a checkpoint and returns after the running step, or the running batch of a
    validation (but for the last one, which is finished); with several processes, when any of them
    has got it by the next `log_every_steps`. Process 0 writes.

    Args:
      config: the tree of `configs/base.py`.
      workdir: gets config.json, parameters.txt (a line per array), metrics.jsonl and
        learning_curve.png (drawn at each validation), TensorBoard events and checkpoints/.

    Returns:
      The final state.

    Raises:
      InputError: wrong config or data, or a workdir of another run.
      FloatingPointError: the loss is not finite.
    """
    check_config(config)
    begins = bool(config.init_from) and not has_checkpoint(workdir)
    start = load_start(config.init_from, config) if begins else None
    mesh = training_mesh(config.model_shards, jax.devices())
    dataset = input_pipeline.load(config.data)
    _log.info("%s", dataset.report)
    model = networks.build(config.model, dataset.task, config.data.image_size)
    diffusion = process.build(config.diffusion, dataset.task.one_hot)
    objective = losses.build(config.loss)
    optimizer = train_state.build_optimizer(config.optim, config.num_steps)
    validation = Validation(config, dataset, model, diffusion)
    first = digest(start.params) if start else ""
    metadata = prepare_workdir(config, dataset, Path(workdir), first)
    # SIGTERM is also waited for while the last checkpoint is still being written.
    with (
        termination() as terminated,
        Checkpoints(workdir, metadata) as checkpoints,
        jax.set_mesh(mesh),
    ):
        state = initial_state(config, dataset, model, optimizer, mesh, checkpoints, start)
        if hosts.is_first():
            table = parameter_overview.get_parameter_overview(state.params, include_stats=False)
            atomic.write_text(Path(workdir) / "parameters.txt", table + "\n")
        step_fn = make_train_step(model, diffusion, objective, optimizer, config)
        train_step = compile_train_step(step_fn, mesh, state)
        writer = MetricWriter(workdir, int(state.step)) if hosts.is_first() else NoWriter()
        with closing(writer):
            batches = batches_after(int(state.step), config, dataset, mesh)
            return run_loop(
                config, state, batches, train_step, validation, checkpoints, writer, terminated
            )


def batches_after(
    step: int, config: Any, dataset: Dataset, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """The batches of the steps that follow `step`, without end, on the devices of the mesh."""
    batches = input_pipeline.train_batches(
        dataset,
        config.data,
        batch_size=config.batch_size // jax.process_count(),
        seed=config.seed,
        start_step=step,
    )
    return (shard_batch(on_batch(mesh), batch) for batch in batches)


def run_loop(
    config: Any,
    state: TrainState,
    batches: Iterator[dict[str, jax.Array]],
    train_step: StepFn,
    validation: Validation,
    checkpoints: Checkpoints,
    writer: MetricWriter | NoWriter,
    terminated: Callable[[], bool],
) -> TrainState:
    """The loop itself; arguments as made by `train`."""
    start, last = int(state.step), config.num_steps
    if start >= last:
        _log.info("nothing left to train: step %d of %d (num_steps)", start, last)
    else:
        _log.info("compiling the training step")
    window = LossWindow()

    def any_terminated() -> bool:
        return hosts.any_process(terminated())

    with closing(Progress(start, last, config.batch_size)) as progress:
        for step in range(start + 1, last + 1):
            state, terms = train_step(state, next(batches))
            window.add(step, terms)
            progress.step()
            # Asking the other processes each time would make every step wait for them.
            ask = jax.process_count() == 1 or step % config.log_every_steps == 0
            interrupted = ask and any_terminated()
            stop = step == last or interrupted
            if stop or step % config.log_every_steps == 0:
                scalars = window.empty()
                scalars["images_per_second"] = progress.report(
                    step, {"loss": scalars["loss/total"], "grad norm": scalars["grad_norm"]}
                )
                writer.write_scalars(step, scalars)
            dice = None
            validates = step == last or (step % config.eval_every_steps == 0 and not interrupted)
            if stop or validates or step % config.checkpoint_every_steps == 0:
                window.check()  # what is saved takes the place of an earlier checkpoint
                if validates:
                    # Nothing would make up for the last one.
                    until = any_terminated if step < last else lambda: False
                    with progress.paused():
                        dice = validate(step, state, validation, writer, until)
                    stop = stop or dice is None
                checkpoints.save(state, dice)
            if stop:
                if step < last:
                    _log.info("SIGTERM: saved step %d; the same command resumes", step)
                break
    return state


def validate(
    step: int,
    state: TrainState,
    validation: Validation,
    writer: MetricWriter | NoWriter,
    interrupted: Callable[[], bool],
) -> float | None:
    """Validates the averaged parameters, writes what it finds, returns the Dice.

    If `interrupted` meanwhile, it writes nothing and returns None.
    """
    found = validation.run(state.ema_params, interrupted)
    if found is None:
        _log.info("step %d  validation left off", step)
        return None
    scalars, images = found
    writer.write_scalars(step, {f"validation/{name}": value for name, value in scalars.items()})
    writer.write_images(step, images)
    writer.flush()
    text = "  ".join(f"{name} {value:.4f}" for name, value in scalars.items())
    _log.info("step %d  validation  %s", step, text)
    return scalars["dice"]


def check_config(config: Any) -> None:
    """Raises InputError for values that cannot work, with their field."""
    for field in ("num_steps", "log_every_steps", "eval_every_steps", "checkpoint_every_steps"):
        check_at_least(f"config field {field}", config[field])
    if not 0 <= config.ema_decay < 1:
        raise InputError(f"config field ema_decay: {config.ema_decay} is not in [0, 1)")
    input_pipeline.check(config.data)
    networks.check(config.model, config.data.image_size)
    diffusion = process.build(config.diffusion, one_hot=False)
    if networks.has_prior(config.model) and diffusion.prediction != "x0":
        raise InputError(
            "config field model.condition_prior: needs diffusion.prediction='x0', "
            f"not {diffusion.prediction!r}"
        )
    losses.build(config.loss)
    train_state.build_optimizer(config.optim, config.num_steps)
    check_batch_size(config.batch_size, config.accumulate_steps)
    check_sampling(config, diffusion.schedule.num_steps)
    if config.validation.max_cases < 0:
        raise InputError("config field validation.max_cases: is negative; 0 means all")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"config field seed: {config.seed} is not in 0..2^32-1")


def check_sampling(config: Any, num_timesteps: int) -> None:
    """Raises InputError for values of config.validation or config.sampling that cannot work.

    Training does not use the second; who samples with its result would find out too late.
    """
    network = networks.NETWORKS[config.model.name]
    for node in ("validation", "sampling"):
        settings = config[node]
        how = {name: settings[name] for name in ("steps", "sampler", "member_chunk")}
        try:
            check_at_least("members", settings.members)
            check_at_least("batch_size", settings.batch_size)
            denoiser.check_settings(network, num_timesteps, **how)
            fusion.check_method(settings.fusion, network.encode_segments)
            decision.check_method(settings.get("decision", "probable"))  # validation has no choice
        except InputError as error:
            raise InputError(f"config field {node}.{error}") from error


def initial_state(
    config: Any,
    dataset: Dataset,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: Checkpoints,
    start: LoadedModel | None,
) -> TrainState:
    """The latest checkpoint's state, or a fresh one, placed on the mesh.

    A fresh one has the weights of `start`, if there is one.
    """

    def init(key: Array) -> TrainState:
        return train_state.init(model, optimizer, dataset.image_shape, key)

    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(init, key)
    shardings = state_shardings(mesh, shapes)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract.params))
    _log.info("%s: %.2f M parameters", config.model.name, count / 1e6)
    state = checkpoints.restore_latest(abstract)
    if state is None:
        _log.info("compiling and drawing the initial state")
        state = jax.jit(init, out_shardings=shardings)(key)
        state = start_from(state, start) if start else state
    else:
        _log.info("resuming at step %d", int(state.step))
    return state


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Within it, SIGTERM only sets a flag, which the yielded function reads.

    Python lets the main thread alone do that; in another, SIGTERM is left as it was.
    """
    received = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)
