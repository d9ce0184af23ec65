"""Which files make which case and split; looks at names only, never at pixels."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from medsegdiff_jax.imaging import IMAGE_SUFFIXES
from medsegdiff_jax.types import InputError

_LISTS = {"train": ("train.txt",), "validation": ("val.txt", "validation.txt")}
_LISTS |= {"test": ("test.txt",)}
CLASS_FILE = "dataset.json"


@dataclasses.dataclass(frozen=True)
class Case:
    """One image and its masks, one per rater in the order of `Index.raters`."""

    id: str
    image: Path
    masks: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class Index:
    """The cases of a folder.

    Attributes:
      root: the folder.
      raters: names of the raters; ("",) for a single `masks/`.
      splits: split name -> cases, in the order of the list or of the names.
      unused: images in no split, by stem.
      files: every file that the dataset depends on.
    """

    root: Path
    raters: tuple[str, ...]
    splits: dict[str, tuple[Case, ...]]
    unused: tuple[str, ...]
    files: tuple[Path, ...]


def names(items: Iterable[str], limit: int = 5) -> str:
    """The first few of a list, for a message."""
    items = list(items)
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest


def _by_stem(folder: Path) -> dict[str, Path]:
    """Image files of a folder by stem, sorted; InputError if two files share a stem."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.stem in found:
            raise InputError(f"{folder}: {found[path.stem].name} and {path.name} share a stem")
        found[path.stem] = path
    return found


def _images(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise InputError(f"data.path: no folder at {root}")
    if not (root / "images").is_dir():
        raise InputError(f"{root}: has no folder images/")
    images = _by_stem(root / "images")
    if not images:
        raise InputError(f"{root / 'images'}: no image ({', '.join(IMAGE_SUFFIXES)})")
    return images


def _masks(root: Path, images: dict[str, Path]) -> dict[str, dict[str, Path]]:
    """Rater name -> stem -> mask file; `masks_<rater>/` folders take precedence over `masks/`."""
    folders = sorted(path for path in root.glob("masks_*") if path.is_dir())
    raters = {path.name.removeprefix("masks_"): _by_stem(path) for path in folders}
    if not raters:
        if not (root / "masks").is_dir():
            raise InputError(f"{root}: has neither masks/ nor masks_<rater>/")
        raters = {"": _by_stem(root / "masks")}
    for masks in raters.values():
        orphans = [str(path) for stem, path in masks.items() if stem not in images]
        if orphans:
            raise InputError(f"mask without image: {names(orphans)}")
    return raters


def _read_lists(root: Path, images: dict[str, Path]) -> dict[str, list[str]]:
    """Split -> stems of the lists that exist; InputError for unknown or repeated cases."""
    lists: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for split, candidates in _LISTS.items():
        present = [root / name for name in candidates if (root / name).is_file()]
        if len(present) > 1:
            raise InputError(f"{root}: has both {present[0].name} and {present[1].name}")
        for path in present:
            stems = [line.strip() for line in path.read_text("utf-8").splitlines()]
            lists[split] = stems = [stem for stem in stems if stem]
            missing = [stem for stem in stems if stem not in images]
            if missing:
                raise InputError(f"{path}: no image in images/ for {names(missing)}")
            for stem in stems:
                if stem in owner:
                    raise InputError(f"{path}: case {stem} is already listed in {owner[stem]}")
                owner[stem] = path.name
    return lists


def _by_hash(stems: Iterable[str]) -> list[str]:
    """Stems in an order that depends on nothing but their names."""
    return sorted(stems, key=lambda stem: hashlib.sha256(stem.encode()).digest())


def _share(stems: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """(kept, taken): `fraction` of the stems by hash, at least one if there are two."""
    count = round(len(stems) * fraction)
    if fraction > 0 and len(stems) > 1:
        count = min(max(count, 1), len(stems) - 1)
    taken = set(_by_hash(stems)[:count])
    return [s for s in stems if s not in taken], [s for s in stems if s in taken]


def _assign(
    lists: dict[str, list[str]], stems: list[str], validation_fraction: float
) -> dict[str, list[str]]:
    """Split -> stems: the lists where given, the rest by hash of the stem."""
    if not lists:
        rest, test = _share(stems, 0.1)
        train, validation = _share(rest, 1 / 9)
        return {"train": train, "validation": validation, "test": test}
    listed = {stem for split in lists.values() for stem in split}
    splits = dict(lists)
    if "train" not in splits:
        splits["train"] = [stem for stem in stems if stem not in listed]
    if "validation" not in splits:
        splits["train"], splits["validation"] = _share(splits["train"], validation_fraction)
    splits.setdefault("test", [])
    return {split: splits[split] for split in _LISTS}


def build_index(root: Path, validation_fraction: float) -> Index:
    """Pairs the files of a folder and splits the cases.

    Without lists: 80 / 10 / 10 by hash of the stem. Without a validation list:
    `validation_fraction` of the training cases. With only a test list, the rest is for training.

    Raises:
      InputError: folder or images missing, mask without image, training or validation image
        without mask, a rater's mask missing, a list entry without image, a case listed twice.
    """
    if not 0 <= validation_fraction < 1:
        raise InputError("data.validation_fraction: must be at least 0 and below 1")
    images = _images(root)
    raters = _masks(root, images)
    lists = _read_lists(root, images)
    assigned = _assign(lists, list(images), validation_fraction)
    annotated = {stem for masks in raters.values() for stem in masks}
    # A public test set may come without masks; it cannot be scored, so it is left out.
    assigned["test"] = [s for s in assigned["test"] if s in annotated or "test" not in lists]
    cases: dict[str, Case] = {}
    for stem in [stem for split in assigned.values() for stem in split]:
        without = [rater for rater, masks in raters.items() if stem not in masks]
        if len(without) == len(raters):
            raise InputError(f"image without mask: {images[stem]}")
        if without:
            folders = names(f"masks_{rater}/" for rater in without)
            raise InputError(f"{images[stem]}: has no mask in {folders}, but in other raters'")
        masks = tuple(raters[rater][stem] for rater in raters)
        cases[stem] = Case(stem, images[stem], masks)
    if not assigned["train"]:
        raise InputError(f"{root}: no case is left for training")
    extra = [root / name for group in _LISTS.values() for name in group] + [root / CLASS_FILE]
    files = [path for case in cases.values() for path in (case.image, *case.masks)]
    return Index(
        root=root,
        raters=tuple(raters),
        splits={split: tuple(cases[s] for s in stems) for split, stems in assigned.items()},
        unused=tuple(stem for stem in images if stem not in cases),
        files=tuple(files) + tuple(path for path in extra if path.is_file()),
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(index: Index, settings: dict, memo: Path) -> str:
    """16 hex digits over the names and contents of all files, the splits and the settings.

    Hashing contents reads every file; the result is remembered in the folder `memo` for as long as
    names, sizes and modification times stay what they were.
    """
    stats = [(path, path.stat()) for path in index.files]
    listing = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    note = memo / f"{hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:32]}.txt"
    if note.is_file():
        contents = note.read_text()
    else:
        lines = [f"{path.relative_to(index.root)} {_digest(path)}" for path in index.files]
        contents = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        memo.mkdir(parents=True, exist_ok=True)
        partial = note.with_suffix(f".{id(note)}.tmp")
        partial.write_text(contents)
        partial.replace(note)
    splits = {split: [case.id for case in cases] for split, cases in index.splits.items()}
    key = json.dumps([contents, splits, settings], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]
