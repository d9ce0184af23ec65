"""TFDS dataset builders, one package each; importing a package registers its builder."""
