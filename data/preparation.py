"""What every builder needs to be prepared without TensorFlow and without noise on the terminal."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

DEFAULT_CACHE = "~/.cache/medsegdiff_jax"


def cache_root(cache_dir: str) -> Path:
    """The folder of prepared datasets; "" stands for the user's cache folder."""
    return Path(cache_dir or DEFAULT_CACHE).expanduser().resolve()


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Silences TFDS's talk of downloads and custom configurations, which mislead here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def write(builder: tfds.core.GeneratorBasedBuilder) -> Path:
    """Prepares a builder's array_record files and returns their folder.

    TFDS writes to a temporary folder beside the final one and renames it at the end, so an
    interrupted preparation leaves no half-written dataset.
    """
    with quiet_tfds():
        if not builder.is_prepared():
            settings = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(download_config=settings)
    return Path(builder.data_path)
