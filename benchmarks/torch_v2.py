"""MedSegDiff-V2 and its plain UNet in PyTorch, with our parameters: what to measure speed against.

    python -m benchmarks.throughput --config=configs/folder.py --against=benchmarks/torch_v2.py

The same arithmetic as `medsegdiff_jax.networks`, written as functions of the same parameter tree,
so that both can be compared output by output (`make` does, and raises if they differ) and then
timed at equal work. It runs on a GPU if PyTorch sees one, in bfloat16 where the config says so, and
compiled with --torch_compile. Needs PyTorch, which nothing else here does.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from absl import flags
from torch.nn import functional as F  # noqa: N812

from medsegdiff_jax import networks, train_state
from medsegdiff_jax.types import Array, InputError, Task

Tree = dict[str, Any]
Tensor = torch.Tensor
TOLERANCE = 1e-3  # of the two outputs in float32, relative to the largest


def to_torch(tree: Tree, device: torch.device) -> Tree:
    """Flax parameters as leaf tensors: convolutions [O, I, h, w], matrices [out, in]."""

    def leaf(value: Array) -> Tensor:
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
        array = np.ascontiguousarray(np.asarray(value).transpose(axes))
        tensor = torch.from_numpy(array.copy()).to(device)
        if tensor.ndim == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
        return tensor.requires_grad_()

    return jax.tree.map(leaf, tree)


def conv(p: Tree, x: Tensor, stride: int = 1) -> Tensor:
    """Zero padded so that stride 1 keeps the size; a patch embedding if the stride is the side."""
    side = p["kernel"].shape[-1]
    padding = 0 if stride == side else (side - 1) // 2
    return F.conv2d(x, p["kernel"], p["bias"], stride, padding)


def dense(p: Tree, x: Tensor) -> Tensor:
    """A linear map of the last axis."""
    return F.linear(x, p["kernel"], p.get("bias"))


def group_norm(p: Tree, x: Tensor) -> Tensor:
    """In groups of 8 channels."""
    return F.group_norm(x, max(1, x.shape[1] // 8), p["scale"], p["bias"], 1e-5)


def layer_norm(p: Tree, x: Tensor) -> Tensor:
    """Over the last axis; `p` may be empty."""
    return F.layer_norm(x, x.shape[-1:], p.get("scale"), p.get("bias"), 1e-5)


def res_block(p: Tree, x: Tensor, embedding: Tensor | None) -> Tensor:
    """`layers.ResBlock`."""
    h = conv(p["Conv_0"], F.silu(group_norm(p["GroupNorm_0"], x)))
    h = group_norm(p["GroupNorm_1"], h)
    if embedding is not None:
        film = dense(p["Dense_0"], F.silu(embedding))
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
    h = conv(p["Conv_1"], F.silu(h))
    return (conv(p["shortcut"], x) if "shortcut" in p else x) + h


def evidence(p: Tree, x_t: Tensor, probability: Tensor) -> list[Tensor]:
    """`evidence.Evidence`."""
    doubt = 4 * probability * (1 - probability)
    weighed = doubt * x_t
    total, power = (one.sum(dim=(2, 3), keepdim=True) for one in (weighed, doubt**2))
    matched = (total / torch.sqrt(1 + power)).expand_as(x_t)
    noisy, known = torch.cat([x_t, weighed], dim=1), torch.cat([doubt, matched], dim=1)
    features = [conv(p["level_0"], torch.cat([noisy, known], dim=1))]
    for level in range(1, len(p)):
        noisy, known = 2 * F.avg_pool2d(noisy, 2), F.avg_pool2d(known, 2)
        features.append(conv(p[f"level_{level}"], torch.cat([noisy, known], dim=1)))
    return features


def encoder(
    p: Tree, x: Tensor, embedding: Tensor | None, entering: list[Tensor], blocks: int
) -> list[Tensor]:
    """`unet.Encoder`; `entering` is as long as there are levels."""
    features = []
    for level, extra in enumerate(entering):
        if level:
            x = conv(p[f"down_{level}"], x, stride=2)
        x = x + extra
        for index in range(blocks):
            x = res_block(p[f"level_{level}_block_{index}"], x, embedding)
        features.append(x)
    return features


def decoder(p: Tree, features: list[Tensor], embedding: Tensor | None, blocks: int) -> Tensor:
    """`unet.Decoder`."""
    x = res_block(p["middle"], features[-1], embedding)
    for level in reversed(range(len(features) - 1)):
        x = F.interpolate(conv(p[f"up_{level}"], x), scale_factor=2, mode="nearest")
        x = torch.cat([x, features[level]], dim=1)
        for index in range(blocks):
            x = res_block(p[f"level_{level}_block_{index}"], x, embedding)
    return F.silu(group_norm(p["norm"], x))


def gate(p: Tree, feature: Tensor) -> Tensor:
    """`uncertain_attention.SpatialGate` with the learned Gaussians."""
    mean, width = p["gaussian"]["mean"], F.softplus(p["gaussian"]["width"])
    mean = mean.T  # to_torch turned it as a matrix
    channels, size = feature.shape[1], 5
    offsets = torch.arange(size, device=feature.device)[:, None] - size // 2
    rows, columns = (
        torch.softmax(-0.5 * ((offsets - mean[axis]) / width) ** 2, dim=0).T for axis in (0, 1)
    )
    smooth = F.conv2d(feature, rows[:, None, :, None], padding=(size // 2, 0), groups=channels)
    smooth = F.conv2d(smooth, columns[:, None, None, :], padding=(0, size // 2), groups=channels)
    return torch.sigmoid(conv(p["reduce"], torch.maximum(smooth, feature)))


def time_embedding(p: Tree, t: Tensor, features: int) -> Tensor:
    """`layers.TimeEmbedding`; t: [1] or [B]."""
    half = features // 2
    steps = torch.arange(half, device=t.device, dtype=torch.float32)
    angles = t.float()[:, None] * torch.exp(-np.log(10_000.0) * steps / half)
    x = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return dense(p["Dense_0"], F.silu(dense(p["Dense_1"], x)))


def nbp_filter(p: Tree, embedding: Tensor, rows: int, columns: int) -> Tensor:
    """`spectral.NBPFilter`."""
    vertical = 2 * torch.fft.fftfreq(rows, device=embedding.device)
    horizontal = 2 * torch.fft.rfftfreq(columns, device=embedding.device)
    x = torch.stack(torch.meshgrid(vertical, horizontal, indexing="ij"), dim=-1)[None]
    embedding = F.silu(embedding)
    for index in range(sum(name.startswith("conv_") for name in p)):
        x = layer_norm({}, dense(p[f"conv_{index}"], x))
        scale, shift = (dense(p[f"{k}_{index}"], embedding) for k in ("scale", "shift"))
        x = F.silu(x * (1 + scale[:, None, None]) + shift[:, None, None])
    return torch.sigmoid(dense(p["gain"], x)[..., 0])


def spectral_module(p: Tree, stream: Tensor, query: Tensor, kv: Tensor, time: Tensor) -> Tensor:
    """`spectral.SpectralModule`."""
    query, kv = layer_norm(p["LayerNorm_0"], query), layer_norm(p["LayerNorm_1"], kv)
    a = p["attention"]
    q, k, v = dense(a["query"], query), dense(a["key"], kv), dense(a["value"], kv)
    affinity = (q @ k.transpose(1, 2)).float() / (q.shape[-1] ** 0.5 * k.shape[1])
    with torch.autocast(affinity.device.type, enabled=False):
        weights = nbp_filter(a["nbp_filter"], time, *affinity.shape[1:])
        affinity = torch.fft.irfft2(torch.fft.rfft2(affinity) * weights, s=affinity.shape[1:])
    stream = stream + dense(p["output"], affinity.to(v.dtype) @ v)
    hidden = dense(p["mlp_in"], layer_norm(p["LayerNorm_2"], stream))
    return stream + dense(p["mlp_out"], F.gelu(hidden, approximate="tanh"))


def ss_former(p: Tree, e: Tensor, c: Tensor, time: Tensor, patch: int) -> Tensor:
    """`spectral.SSFormer`."""
    batch, channels, height, width = e.shape
    rows, columns = height // patch, width // patch
    e = conv(p["patchify_e"], e, stride=patch).flatten(2).transpose(1, 2)
    c = conv(p["patchify_c"], c, stride=patch).flatten(2).transpose(1, 2)
    for index in range(sum(name.endswith("read_c") for name in p)):
        c = spectral_module(p[f"block_{index}_read_c"], c, e, c, time)
        c = spectral_module(p[f"block_{index}_read_e"], c, c, e, time)
    c = dense(p["unpatchify"], c).reshape(batch, rows, columns, patch, patch, channels)
    return c.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


class Network:
    """`MedSegDiffV2` (or `PlainUNet`) as functions of one parameter tree, NCHW."""

    def __init__(self, config: Any, params: Tree, device: torch.device):
        self.config, self.device, self.params = config, device, to_torch(params, device)

    def encode(self, image: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Image -> anchor gate, deepest feature, logits."""
        p, m = self.params["condition_model"], self.config.model
        x = conv(p["stem"], image)
        nothing = [torch.zeros((), device=self.device)] * len(m.condition_widths)
        features = encoder(p["encoder"], x, None, nothing, m.condition_blocks)
        last = decoder(p["decoder"], features, None, m.condition_blocks)
        anchor = gate(self.params["gate"], last.float()) if "gate" in self.params else None
        return anchor, features[-1], conv(p["head"], last.float())

    def denoise(self, x_t: Tensor, t: Tensor, condition: tuple) -> Tensor:
        """One evaluation of the diffusion network, as `MedSegDiffV2.denoise`."""
        p, m = self.params, self.config.model
        anchor, deepest, logits = condition
        time = time_embedding(p["time_embedding"], t, 4 * m.widths[0])
        x = conv(p["stem"], x_t) * (1 + anchor)
        entering = evidence(p["evidence_maps"], x_t, torch.sigmoid(logits.detach()))
        features = encoder(p["encoder"], x, time, entering, m.blocks)
        features[-1] = ss_former(p["ss_former"], features[-1], deepest, time, m.semantic_patch)
        output = conv(p["head"], decoder(p["decoder"], features, time, m.blocks).float())
        return output + logits.detach()


def check_equal(config: Any, model: Any, params: Tree, inputs: dict[str, np.ndarray]) -> None:
    """Raises InputError unless both networks give the same output in float32."""
    network = Network(config, params, torch.device("cpu"))
    image, x_t = (_nchw(inputs[name][:1], network.device) for name in ("image", "mask"))
    t = np.array([500])
    arguments = (inputs["image"][:1], inputs["mask"][:1], t)
    ours, condition = jax.jit(lambda p, *a: model.apply({"params": p}, *a))(params, *arguments)
    with torch.no_grad():
        theirs = network.encode(image)
        pairs = [(condition.logits, theirs[2])]
        if ours is not None:
            pairs.append((ours, network.denoise(x_t, torch.from_numpy(t), theirs)))
    for one, other in pairs:
        difference = np.abs(np.asarray(one).transpose(0, 3, 1, 2) - other.numpy()).max()
        print(f"largest difference of the two outputs: {difference:.2e}")
        if not difference <= TOLERANCE * np.abs(one).max():
            raise InputError("benchmarks/torch_v2.py: is not the network of medsegdiff_jax")


def make(config: Any, batch: int, channels: int) -> dict[str, Callable[[], Any]]:
    """What `benchmarks.throughput --against` times: a training step and a denoising step.

    Raises:
      InputError: a config that is not the default network, or outputs that differ.
    """
    fields = config.model
    bridges = (fields.anchor, fields.semantic) == ("u_sa", "nbp")
    if fields.name == "medsegdiff_v2" and not (
        bridges and fields.condition_prior and fields.evidence
    ):
        raise InputError("benchmarks/torch_v2.py: has no ablations")
    size = config.data.image_size
    task = Task(("lesion",), (1,), True, channels)
    exact = dict(fields.to_dict(), dtype="float32")
    model = networks.build(exact, task, size)
    params = train_state.init_params(model, (size, size, channels), jax.random.key(0))
    rng = np.random.default_rng(0)  # initial values would hide whatever starts at zero
    params = jax.tree.map(
        lambda x: np.asarray(x) + 0.05 * rng.standard_normal(x.shape, np.float32), params
    )
    inputs = {
        "image": rng.standard_normal((batch, size, size, channels), np.float32),
        "mask": (rng.random((batch, size, size, 1)) < 0.2).astype(np.float32),
    }
    check_equal(config, model, params, inputs)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = Network(config, params, device)
    tensors = {name: _nchw(array, device) for name, array in inputs.items()}
    calls = {"train": _training(network, **tensors)}
    if model.generative:
        calls["denoise"] = _denoising(network, **tensors)
    return calls


def _nchw(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2))).to(device)
    return tensor.to(memory_format=torch.channels_last)


def _autocast(network: Network) -> torch.autocast:
    enabled = network.config.model.dtype == "bfloat16"
    return torch.autocast(network.device.type, torch.bfloat16, enabled=enabled)


def _segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    probability = torch.sigmoid(logits)
    overlap, total = (probability * mask).sum((2, 3)), (probability + mask).sum((2, 3))
    dice = (1 - (2 * overlap + 1) / (total + 1)).mean()
    return dice + F.binary_cross_entropy_with_logits(logits, mask)


def _training(network: Network, image: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    """A step of loss, backward pass, clipping, AdamW and average; waits for the end."""
    leaves = jax.tree.leaves(network.params)
    optim = network.config.optim
    optimizer = torch.optim.AdamW(leaves, optim.learning_rate, weight_decay=optim.weight_decay)
    average = [leaf.detach().clone() for leaf in leaves]
    generative = "stem" in network.params
    scale = network.config.diffusion.input_scale

    def loss(eps: Tensor, t: Tensor) -> Tensor:
        x_0, angle = scale * (2 * mask - 1), (t / 1000 * (np.pi / 2))[:, None, None, None]
        with _autocast(network):
            condition = network.encode(image)
            x_t = angle.cos() * x_0 + angle.sin() * eps
            output = network.denoise(x_t, t, condition) if generative else None
        total = _segmentation_loss(condition[2].float(), mask)
        return total if output is None else total + _segmentation_loss(output.float(), mask)

    compiled = torch.compile(loss) if flags.FLAGS.torch_compile else loss

    def step() -> Tensor:
        t = torch.randint(1, 1001, (len(mask),), device=mask.device)
        value = compiled(torch.randn_like(mask), t)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(leaves, optim.grad_clip_norm)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, [leaf.detach() for leaf in leaves], 0.001)
        return value.item()

    return step


def _denoising(network: Network, image: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    """A denoising step of the whole batch, the condition given; waits until it is done."""
    with torch.no_grad(), _autocast(network):
        condition = network.encode(image)
    denoise = torch.compile(network.denoise) if flags.FLAGS.torch_compile else network.denoise
    t = torch.tensor([500], device=mask.device)

    def step() -> float:
        with torch.inference_mode(), _autocast(network):
            return denoise(mask, t, condition).sum().item()

    return step
