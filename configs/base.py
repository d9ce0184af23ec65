"""The whole config tree, with the defaults of the `default` recipe; other configs edit a copy.

An argument picks the recipe and the size of the network: `--config=configs/folder.py:paper`,
`--config=configs/folder.py:default,tiny`. Recipes: default, paper, and the names of the comparison
models, which are the default recipe with another network (docs/comparison_models.md): unet is the
condition model alone. Sizes: tiny (first tries, tests), small (CPU, first runs), paper (256 x 256,
45 million parameters for MedSegDiff-V2, the others about as published).
"""

from ml_collections import ConfigDict

DIFFUSION = ("medsegdiff_v1", "medsegdiff_transunet", "ensdiff", "segdiff")
DISCRIMINATIVE = ("unet", "transunet", "swin_unetr")
RECIPES = ("default", "paper", *DIFFUSION, *DISCRIMINATIVE)
SIZES = ("tiny", "small", "paper")

_WIDE = {"widths": (24, 48, 96, 192)}  # makes up for the condition UNet that these do not have
_V1_PAPER = {"widths": (64, 128, 192, 256, 384)}
# What a comparison model takes at a size instead of the fields of `_model`.
_OWN_SIZES = {
    ("medsegdiff_v1", "small"): _WIDE,
    ("medsegdiff_v1", "paper"): _V1_PAPER,
    ("medsegdiff_transunet", "small"): {**_WIDE, "semantic_features": 160},
    ("medsegdiff_transunet", "paper"): _V1_PAPER,
    ("ensdiff", "small"): _WIDE,
    ("segdiff", "small"): {**_WIDE, "condition_blocks": 2},
    ("segdiff", "paper"): {"condition_blocks": 6},
    ("transunet", "small"): {"semantic_features": 160},
    ("transunet", "paper"): {"semantic_features": 768, "semantic_blocks": 12},  # ViT-B
    ("swin_unetr", "tiny"): {"condition_widths": (8, 8, 16), "window": 2},
    ("swin_unetr", "paper"): {"condition_widths": (48, 48, 96, 192, 384, 768)},
}


def get_config(arg: str = "") -> ConfigDict:
    """The tree for "recipe[,size]"; empty parts mean default and small.

    Raises:
      ValueError: an unknown recipe or size.
    """
    recipe, size = _parse(arg)
    config = ConfigDict()
    config.seed = 0
    config.init_from = ""  # fine-tuning: workdir, checkpoint or exported folder to start from
    config.num_steps = 20_000  # updates
    config.batch_size = 16  # images per update, over all devices
    config.accumulate_steps = 1  # parts that a batch is computed in: less memory, same update
    config.model_shards = 1  # devices that share one copy of the training state: less memory
    config.ema_decay = 0.999  # of the averaged weights, which are validated and used
    config.log_every_steps = 50
    config.eval_every_steps = 1_000  # validation by sampling; also saves a checkpoint
    config.checkpoint_every_steps = 1_000
    config.data = _data()
    config.model = _model(size)
    config.diffusion = _diffusion()
    config.loss = _loss()
    config.optim = _optim()
    config.validation, config.sampling = _validation(), _sampling()
    if size == "tiny":  # trained for minutes, if at all
        config.optim.update(learning_rate=3e-3, warmup_steps=20)
        config.eval_every_steps = 100
    if size == "paper":
        config.data.image_size = 256
    if recipe == "paper":
        _paper(config)
    if recipe in DIFFUSION + DISCRIMINATIVE:
        config.model.name = recipe
        config.model.condition_prior = False
        config.model.update(_OWN_SIZES.get((recipe, size), {}))
        config.validation.fusion = config.sampling.fusion = "mean"
    if recipe in DISCRIMINATIVE:
        config.validation.update(steps=0, members=1)
        config.sampling.steps = 0
    return config


def _parse(arg: str) -> tuple[str, str]:
    recipe, _, size = arg.partition(",")
    recipe, size = recipe or "default", size or "small"
    if recipe not in RECIPES or size not in SIZES:
        hint = f"; is default,{recipe} meant?" if recipe in SIZES else ""
        raise ValueError(
            f"config argument {arg!r}: expected recipe[,size] with a recipe of {RECIPES} "
            f"and a size of {SIZES}{hint}"
        )
    return recipe, size


def _data() -> ConfigDict:
    data = ConfigDict()
    data.name = "folder"  # or another folder of data/, e.g. "isic2018"
    data.path = ""  # where the data are
    data.variant = ""  # of a dataset that has several, see its README; "" = its first
    data.image_size = 64  # side of the square that images are resized to, pixels
    data.plane = "axial"  # volumes: or "coronal" or "sagittal"
    data.window = ()  # volumes: (low, high) intensities; () = the dataset's own choice
    data.neighbours = 0  # volumes: slices on each side that are further input channels
    data.max_empty = 0.33  # of the training examples may be without any label
    data.raters = "draw"  # several raters: one of them per example and epoch, or their "mean"
    data.cache_dir = ""  # prepared data; "" = ~/.cache/medsegdiff_jax
    data.validation_fraction = 0.1  # of the training cases, or of all, where nothing says which
    data.folds = 0  # cross-validation: training and validation cases in so many folds, of which
    data.fold = 0  # this one validates, 0 .. folds - 1; 0 folds: by validation_fraction
    data.workers = 0  # processes that prepare batches; 0 = threads of the training process
    data.read_threads = 2  # of each of them
    data.prefetch = 64  # examples that each of them reads ahead
    data.augment = ConfigDict()
    data.augment.flip = True  # each axis, with probability 0.5
    data.augment.rotate_degrees = 180.0  # +- this
    data.augment.scale = 0.2  # zoom by up to this factor, in or out
    data.augment.translate = 0.1  # +- this fraction of the side
    data.augment.gamma = 0.3  # exponent of the intensities, up to 1 + this or its inverse
    data.augment.intensity = 0.2  # contrast, brightness, illumination ramp
    data.augment.probability = 0.8  # of each change but the flips
    return data


def _model(size: str) -> ConfigDict:
    model = ConfigDict()
    model.name = "medsegdiff_v2"  # set by the recipe, which also sets sizes, fusion and steps
    model.condition_widths = (32, 64, 128, 256)  # channels per level of the condition UNet
    model.condition_blocks = 1  # per level: residual blocks (Swin: pairs; SegDiff: RRDBs in all)
    model.widths = (8, 16, 32, 64)  # the same of the diffusion UNet, which runs far more often
    model.blocks = 1
    model.anchor = "u_sa"  # "none", "spatial_attention" or "u_sa"
    model.anchor_kernel = 5  # taps of the learned Gaussian; odd
    model.semantic = "nbp"  # "none", "ss_former" (no filter) or "nbp"
    model.semantic_features = 80  # token width, of SS-Former or Vision Transformer
    model.semantic_blocks = 4  # N
    model.semantic_patch = 1  # side of a token in cells of the deepest feature map
    model.window = 8  # Swin: side of an attention window, tokens
    model.filter_features = 8  # width of the NBP filter's blocks
    model.filter_blocks = 6  # R
    model.condition_prior = True  # x0-prediction only: the condition's logits are the prior
    model.evidence = True  # the encoder gets what x_t says where the condition is in doubt
    model.dtype = "float32"  # compute dtype; or "bfloat16"
    model.remat = False  # recompute activations backwards: slower, less memory
    if size == "tiny":
        model.condition_widths = model.widths = (8, 16)
        model.update(semantic_features=16, semantic_blocks=1, semantic_patch=4)
        model.update(filter_features=4, filter_blocks=1)
    if size == "paper":
        model.condition_widths = model.widths = (64, 128, 256, 256, 512)
        model.update(semantic_features=256, filter_features=32, dtype="bfloat16")
    return model


def _diffusion() -> ConfigDict:
    diffusion = ConfigDict()
    diffusion.num_timesteps = 1000  # T
    diffusion.schedule = "cosine"  # or "linear"
    diffusion.zero_terminal_snr = True  # x_T is pure noise
    diffusion.input_scale = 0.1  # masks live at -0.1 and 0.1
    diffusion.prediction = "x0"  # "x0" (mask logits), "eps" or "v"
    return diffusion


def _loss() -> ConfigDict:
    loss = ConfigDict()
    loss.condition_every = 1  # alpha: the condition model is supervised where t mod alpha = 0,
    loss.condition_ce_weight = 1.0  # by Dice + beta * cross-entropy
    return loss


def _optim() -> ConfigDict:
    optim = ConfigDict()
    optim.learning_rate = 1e-3
    optim.schedule = "cosine"  # to zero at num_steps; or "constant"
    optim.warmup_steps = 200
    optim.weight_decay = 1e-2
    optim.grad_clip_norm = 1.0
    return optim


def _validation() -> ConfigDict:
    """How validation samples: few members, since it runs often."""
    validation = _sampling()
    # The network is judged by what it finds probable in the image as it is.
    del validation.decision, validation.mirror
    validation.update(members=2, steps=5, member_chunk=2, batch_size=16)
    validation.max_cases = 100  # pictures or slices, spread over the split
    return validation


def _sampling() -> ConfigDict:
    """What sample.py and Segmenter do unless told otherwise."""
    sampling = ConfigDict()
    sampling.members = 10
    sampling.steps = 10
    sampling.sampler = "ddim"  # or "ddpm", "dpmpp" (second order), "dpmpp_sde"
    sampling.fusion = "blend"  # of members and condition model; or "mean", "vote", "staple"
    sampling.decision = "dice"  # the mask that promises the highest Dice; or "probable"
    sampling.mirror = True  # members also look at mirror images, if data.augment.flip
    sampling.member_chunk = 10  # members at once; bounds the memory
    sampling.batch_size = 8  # cases at once
    return sampling


def _paper(config: ConfigDict) -> None:
    """The recipe of the paper, with our reading where it is silent (docs/paper_to_code.md)."""
    config.num_steps = 100_000
    config.batch_size = 32
    config.ema_decay = 0.9999
    config.model.condition_prior = config.model.evidence = False
    config.diffusion.schedule = "linear"
    config.diffusion.zero_terminal_snr = False
    config.diffusion.input_scale = 1.0
    config.diffusion.prediction = "eps"
    config.loss.condition_every = 5
    config.loss.condition_ce_weight = 10.0
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 1_000
    config.validation.update(steps=20, fusion="mean")
    config.sampling.update(steps=100, sampler="ddpm", fusion="staple")
    config.sampling.update(decision="probable", mirror=False)
