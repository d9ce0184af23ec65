"""Which files a prediction reads and writes, whatever kind of image it is about."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from medsegdiff_jax import display, imaging
from medsegdiff_jax.types import InputError, Task

SAVE = ("mask", "probability", "uncertainty", "overlay", "members", "animation")

_OWN_SUFFIX = {"overlay": ".png", "animation": ".gif"}

_log = logging.getLogger("medsegdiff_jax")

T = TypeVar("T")
SkipFn = Callable[[InputError], None]
"""Takes note of a case that cannot be read, so that the others go on."""


@dataclasses.dataclass(frozen=True)
class CaseFiles:
    """A segmented case and what is to be written of it.

    Attributes:
      case_id: its name.
      seconds: of computing.
      members: that were fused; of a volume, the mean over its slices.
      growth: pixels of the mask over those that are more probable than not; NaN if there are none.
      pictures: its row in the contact sheet.
      writers: one of SAVE -> file name -> what writes it to a path.
    """

    case_id: str
    seconds: float
    members: float
    growth: float
    pictures: display.CasePictures
    writers: dict[str, dict[str, Callable[[Path], None]]]

    def write(self, folder: Path) -> dict[str, list[str]]:
        """Writes all files to `folder`, once, and lets go of their contents.

        Returns:
          {what: file names}.
        """
        files: dict[str, list[str]] = {}
        while self.writers:
            what, writers = self.writers.popitem()
            for name, write in writers.items():
                write(folder / name)
            files[what] = list(writers)
        return files


def named(
    case: str, writers: Mapping[str, Sequence[Callable[[Path], None]]], task: Task, suffix: str
) -> dict[str, dict[str, Callable[[Path], None]]]:
    """One of SAVE -> what writes its files, as `CaseFiles.writers` by their names."""
    return {
        what: dict(zip(file_names(case, what, task, len(parts), suffix), parts, strict=True))
        for what, parts in writers.items()
    }


def growth_of(marked: int, probable: int) -> float:
    """Pixels of a mask over those that are more probable than not; NaN if there are none."""
    return marked / probable if probable else float("nan")


def file_names(case: str, what: str, task: Task, members: int, suffix: str) -> list[str]:
    """Names of the files that hold `what` (one of SAVE) of a case."""
    if what == "mask":
        return [f"{case}{suffix}"]
    if what == "probability":
        return [f"{case}_probability{name}{suffix}" for name, _ in class_channels(task)]
    if what == "members":
        return [f"{case}_member_{index:02d}{suffix}" for index in range(members)]
    return [f"{case}_{what}{_OWN_SUFFIX.get(what, suffix)}"]


def class_channels(task: Task) -> list[tuple[str, int]]:
    """(file name suffix, channel of the probability) of every class."""
    if task.mask_channels == 1:
        return [("", 0)]
    return [
        (f"_{name.replace('/', '-')}", index + task.one_hot)
        for index, name in enumerate(task.classes)
    ]


def check_names(
    cases: Mapping[str, Sequence[Path]],
    folder: Path,
    task: Task,
    save: Sequence[str],
    members: int,
    suffix: str,
) -> None:
    """Refuses results that would replace an input, another result or a foreign file.

    Nor do results belong among the inputs: with a.jpg and its mask a.png in one folder, no one can
    tell any more which is the image of case a.

    Raises:
      InputError: names the file.
    """
    owner = {"contact_sheet.png": "the contact sheet"}
    for case, paths in cases.items():
        for what in dict.fromkeys(save):
            for name in file_names(case, what, task, members, suffix):
                if name in owner:
                    raise InputError(
                        f"{paths[0]}: its {what} and {owner[name]} would both be {name}"
                    )
                owner[name] = str(paths[0])
    for path in (path for paths in cases.values() for path in paths):
        seen = (path.parent.resolve() / path.name, path.resolve())  # as a link and as itself
        if any(one.name in owner and one.parent == folder.resolve() for one in seen):
            raise InputError(f"{path}: would be replaced by a result; choose another --output")
        if seen[0].parent == folder.resolve():
            raise InputError(f"{path}: is an input and lies in --output; choose another --output")
    if folder.is_dir() and not (folder / "run.json").exists():  # with which every call begins
        for path in folder.iterdir():
            if path.name in owner:
                raise InputError(
                    f"{path}: would be replaced, and is no result of an earlier call (no run.json "
                    "beside it); choose another --output"
                )


def files_of(
    root: Path, folders: Sequence[str], suffixes: tuple[str, ...], every: bool = False
) -> list[Path]:
    """The file `root`, or the files with these suffixes in it, or in its folders.

    Args:
      root: a file or a folder.
      folders: where there are such folders in `root`, the first of them is meant.
      suffixes: of the files.
      every: all of `folders` are meant, not the first.

    Raises:
      InputError: nothing there, or no such file in it.
    """
    if root.is_file():
        paths = [root]
    elif root.is_dir():
        inner = [root / name for name in folders if (root / name).is_dir()] or [root]
        inner = inner if every else inner[:1]
        files = sorted(path for folder in inner for path in folder.iterdir() if path.is_file())
        paths = [path for path in files if _is_input(path, suffixes)]
        if len(paths) < len(files):
            _log.info("%s: %d files that are no images", root, len(files) - len(paths))
    else:
        raise InputError(f"{root}: no such file or folder")
    if not paths or not _is_input(paths[0], suffixes):
        raise InputError(f"{root}: no image ({', '.join(suffixes)})")
    return paths


def _is_input(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes) and not path.name.startswith(".")


def readable(
    cases: Mapping[str, Sequence[Path]], read: Callable[[str, Sequence[Path]], T], skip: SkipFn
) -> Iterator[tuple[str, T]]:
    """(case id, what `read` makes of its files), one by one; what it refuses goes to `skip`."""
    for case, paths in cases.items():
        try:
            yield case, read(case, paths)  # without a name here, which would keep it too long
        except InputError as error:
            _log.warning("left out: %s", error)
            skip(error)


def choose(
    cases: dict[str, tuple[Path, ...]], chosen: str | os.PathLike | None
) -> dict[str, tuple[Path, ...]]:
    """The cases that a list names, by their ids or their files, in its order; all without a list.

    Raises:
      InputError: no such list, an empty one, or one that names a case without image.
    """
    if chosen is None:
        return cases
    path = Path(chosen)
    if not path.is_file():
        raise InputError(f"{path}: no such list")
    of_files = {file.name: case for case, files in cases.items() for file in files}
    names = imaging.read_names(path)
    stems = [name if name in cases else of_files.get(name, name) for name in names]
    missing = [stem for stem in stems if stem not in cases]
    if missing:
        example = next(iter(cases))
        raise InputError(f"{path}: {missing[0]} has no image; a case is called {example!r}, say")
    if not stems:
        raise InputError(f"{path}: empty")
    return {stem: cases[stem] for stem in stems}
