"""Calibrates a trained model: python calibrate.py --checkpoint=runs/mine."""

from absl import flags

from medsegdiff_jax import cli

_CHECKPOINT = flags.DEFINE_multi_string("checkpoint", None, "Workdir or checkpoint in it.")
_MEMBERS = flags.DEFINE_integer("members", None, "Samples per image; default: the model's config.")
_STEPS = flags.DEFINE_integer("steps", None, "Denoising steps.")
_SAMPLER = flags.DEFINE_string("sampler", None, "ddim, ddpm, dpmpp or dpmpp_sde.")
_MIRROR = flags.DEFINE_bool("mirror", None, "Members also look at mirror images.")

FEW = 20  # validation cases


def main(argv: list[str]) -> None:
    """Fits a temperature on the validation cases and stores it beside the checkpoint."""
    del argv
    from medsegdiff_jax.temperature import CALIBRATION, calibrate

    found = calibrate(
        cli.only(_CHECKPOINT),
        members=_MEMBERS.value,
        steps=_STEPS.value,
        sampler=_SAMPLER.value,
        mirror=_MIRROR.value,
    )
    ece, brier = found["ece"], found["brier"]
    print(
        f"temperature {found['temperature']:.3f} from {found['cases']} validation cases: "
        f"calibration error near borders {ece['before']:.4f} before, {ece['after']:.4f} after; "
        f"Brier score of whole images {brier['before']:.4f} and {brier['after']:.4f}"
    )
    doubts = ["these are few cases"] if found["cases"] < FEW else []
    doubts += ["over whole images it is for the worse"] if brier["after"] > brier["before"] else []
    if doubts:
        print(
            f"caution: {', and '.join(doubts)}; delete {CALIBRATION} in the checkpoint to undo it"
        )


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    cli.run(main)
