"""Exports a trained model: python export.py --checkpoint=runs/mine --output=EXPORTED."""

from absl import flags

from medsegdiff_jax import cli

_CHECKPOINT = flags.DEFINE_multi_string("checkpoint", None, "Workdir or checkpoint.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; must not exist or be empty.")


def main(argv: list[str]) -> None:
    """Writes the EMA parameters and model.json to --output."""
    del argv
    from medsegdiff_jax.export import export

    description = export(cli.only(_CHECKPOINT), _OUTPUT.value)
    print(f"exported {description} to {_OUTPUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "output"])
    cli.run(main)
