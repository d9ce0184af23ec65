"""The two programs of a config, and what the compiler says of a program.

They are lowered from shapes, not arrays, so that their devices need not be at hand
(`accelerator_programs.py`). The task is binary.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medsegdiff_jax import denoiser, losses, networks, process, train_state, train_step
from medsegdiff_jax.partitioning import on_data, replicated, sampling_mesh, training_mesh
from medsegdiff_jax.types import Task

_COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.+?) ([\w-]+)\((.*)")
_NAME = re.compile(r"%([\w.-]+)")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_BYTES = {"f64": 8, "c64": 8, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}  # others: 4


class Program(NamedTuple):
    """A jitted function, the shapes of its arguments, and the mesh of its devices."""

    function: Any
    arguments: tuple[Any, ...]
    mesh: Mesh

    def lower(self) -> jax.stages.Lowered:
        """In its mesh; the result counts FLOPs and compiles."""
        with jax.set_mesh(self.mesh):
            return self.function.lower(*self.arguments)


def binary_task(channels: int = 3) -> Task:
    """One structure in images of so many channels."""
    return Task(("lesion",), (1,), True, channels)


def state_init(
    config: ConfigDict, channels: int = 3
) -> Callable[[jax.Array], train_state.TrainState]:
    """Key -> the state before the first update."""
    side = config.data.image_size
    model = networks.build(config.model, binary_task(channels), side)
    optimizer = train_state.build_optimizer(config.optim, config.num_steps)
    return lambda key: train_state.init(model, optimizer, (side, side, channels), key)


def training_step(
    config: ConfigDict, batch: int, devices: Sequence[jax.Device], channels: int = 3
) -> Program:
    """One update of a batch over all devices: (state, batch) -> (state, terms)."""
    side, task = config.data.image_size, binary_task(channels)
    mesh = training_mesh(config.model_shards, devices)
    model = networks.build(config.model, task, side)
    optimizer = train_state.build_optimizer(config.optim, config.num_steps)
    diffusion, objective = process.build(config.diffusion, task.one_hot), losses.build(config.loss)
    step = train_step.make_train_step(model, diffusion, objective, optimizer, config)
    state = jax.eval_shape(state_init(config, channels), jax.random.key(0))
    image, mask = _images(batch, side, channels), _images(batch, side, 1)
    arguments = (state, {"image": image, "mask": mask})
    return Program(train_step.compile_train_step(step, mesh, state), arguments, mesh)


def ensemble(
    config: ConfigDict, batch: int, devices: Sequence[jax.Device], channels: int = 3
) -> Program:
    """All members of a batch of cases, as the config's `sampling` says: a `SegmentFn`."""
    side, sampling, task = config.data.image_size, config.sampling, binary_task(channels)
    mesh = sampling_mesh(batch, devices)
    model = networks.build(config.model, task, side)
    names = ("steps", "sampler", "member_chunk", "mirror")
    diffusion = process.build(config.diffusion, task.one_hot)
    draw = denoiser.make_members_fn(model, diffusion, **{name: sampling[name] for name in names})
    whole, split = replicated(mesh), on_data(mesh)
    one, x_t = _images(1, side, channels), _images(1, side, 1)
    params = jax.eval_shape(model.init, jax.random.key(0), one, x_t, 0)["params"]
    arguments = (
        jax.tree.map(lambda leaf: _shape(leaf.shape, leaf.dtype, whole), params),
        _images(batch, side, channels, split),
        _shape((batch,), "uint32", split),
        _shape((), "uint32", whole),
        _shape((batch,), "int32", split),
    )
    return Program(denoiser.compile_segment_fn(draw, mesh, sampling.members), arguments, mesh)


def compiled(
    lowered: jax.stages.Lowered, *, in_loops: bool = False
) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """The program of a lowered function, and what the compiler says of it.

    Args:
      lowered: what to compile.
      in_loops: most of what it does stands in loops, as in `ensemble`. What a loop does counts
        once, so FLOPs and bytes moved are NaN.
    """
    began = time.perf_counter()
    program = lowered.compile()
    facts = {"compile_s": round(time.perf_counter() - began, 2)}
    text = program.as_text()
    facts["gflops"] = facts["moved_GiB"] = float("nan")
    if not in_loops:
        cost = program.cost_analysis() or {}
        facts["gflops"] = round(cost.get("flops", float("nan")) / 1e9, 3)
        facts["moved_GiB"] = round(moved(text) / 2**30, 3)
    memory = program.memory_analysis()
    if memory is not None:
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        total = held - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        facts["program_GiB"] = round(total / 2**30, 4)
    facts["collectives"] = collectives(text)
    return program, facts


def moved(program: str) -> int:
    """Bytes that go through memory: operands and results of a compiled program's kernels.

    Of its entry alone: what a loop or a conditional does in itself is left out. An operand counts
    as a whole where only a part of it is read.
    """
    entry = program[program.index("\nENTRY ") :]
    total, size_of = 0, {}
    for name, types, kind, rest in _INSTRUCTION.findall(entry):
        size_of[name] = _size(types)
        if kind not in _FREE and not kind.endswith("-done"):
            operands = _NAME.findall(rest.split("), ")[0])
            total += size_of[name] + sum(size_of.get(operand, 0) for operand in operands)
    return total


def collectives(program: str) -> dict[str, dict[str, int]]:
    """Kind -> how many there are in a compiled program's text, and the bytes of their results.

    What stands in a loop counts once, and so does a channel: TPUs send in pieces, beside other
    work, and every such piece of a program repeats the line of its collective.
    """
    found: dict[str, dict[str, int]] = {}
    channels = set()
    for line in program.splitlines():
        match, channel = _COLLECTIVE.search(line), _CHANNEL.search(line)
        if not match or (channel and channel[1] in channels):
            continue
        if channel:
            channels.add(channel[1])
        entry = found.setdefault(match[2], {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += _size(match[1])
    return found


def _size(types: str) -> int:
    """Bytes of an array, or of a tuple of them, as a program's text names its types."""
    return sum(
        math.prod(int(n) for n in shape.split(",") if n) * _BYTES.get(dtype, 4)
        for dtype, shape in _ARRAY.findall(types)
    )


def messages(found: dict[str, dict[str, int]]) -> str:
    """`collectives` in words."""
    said = (f"{kind} {one['count']}x {one['bytes']} B" for kind, one in found.items())
    return ", ".join(said) or "none"


def _images(batch: int, side: int, channels: int, sharding: Any = None) -> jax.ShapeDtypeStruct:
    return _shape((batch, side, side, channels), "float32", sharding)


def _shape(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
