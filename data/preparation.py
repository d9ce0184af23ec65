"""What every builder needs to be prepared without TensorFlow and without noise on the terminal."""

import contextlib
import fcntl
import importlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging as absl_logging

from medsegdiff_jax.types import InputError, check_one_of

_BUILDERS = Path(__file__).parent.glob("*/*_dataset_builder.py")
DATASETS = tuple(sorted(path.parent.name for path in _BUILDERS))
DEFAULT_CACHE = "~/.cache/medsegdiff_jax"

_log = logging.getLogger("medsegdiff_jax")


def builder_of(name: str) -> type[tfds.core.GeneratorBasedBuilder]:
    """The builder class of a dataset, with the class methods `prepare` and `write_split`.

    Raises:
      InputError: no such dataset (field data.name).
    """
    check_one_of("data.name", name, DATASETS)
    return importlib.import_module(f"data.{name}").Builder


def cache_root(cache_dir: str) -> Path:
    """The folder of prepared datasets; "" stands for the user's cache folder."""
    return Path(cache_dir or DEFAULT_CACHE).expanduser().resolve()


@contextlib.contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """One program at a time prepares a dataset; another waits, and then may find it prepared.

    Raises:
      InputError: a file system without locks.
    """
    path = cache / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another program that prepares the same kind of data (%s)", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # Lustre without its option, some NFS
            raise InputError(
                f"{path}: cannot be locked ({error.strerror}); set data.cache_dir to another disk"
            ) from error
        yield


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Silences TFDS's talk of downloads and custom configurations, which mislead here."""
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(verbosity)


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
