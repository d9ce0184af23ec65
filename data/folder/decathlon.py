"""Volumes in the layout of the Medical Segmentation Decathlon or of nnU-Net, by names alone.

Both have dataset.json, imagesTr/ and labelsTr/. The Decathlon lists its files in dataset.json and
keeps several modalities in one file; nnU-Net has a file for each, <case>_0000.nii.gz and so on.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.catalogue import CLASS_FILE, MAX_LABEL, Case, Catalogue, MaskFile, names, read_json
from data.folder.lists import FILES, assign, read_lists
from data.pairing import paired
from medsegdiff_jax.groups import read_groups
from medsegdiff_jax.imaging import files_by_stem
from medsegdiff_jax.types import InputError, Modality, Task
from medsegdiff_jax.volumes import SUFFIXES, is_volume, stem

_CHANNEL = re.compile(r"(.+)_(\d{4})")
# A word of the modality's name, but for "non-CT".
_CT = re.compile(r"(?<![^\W_])CTA?(?![^\W_])", re.IGNORECASE)
_NO_CT = re.compile(r"(?<![^\W_])non?[\W_]+CTA?(?![^\W_])", re.IGNORECASE)
_FOLDS = "splits_final.json"  # of nnU-Net
_MAX_REGIONS = 16  # bits of a label

Files = dict[str, tuple[tuple[Path, ...], Path]]
"""Case id -> (images, labels)."""


def decathlon_catalogue(root: Path, validation_fraction: float) -> Catalogue:
    """The cases below a folder with dataset.json, imagesTr/ and labelsTr/.

    train.txt, val.txt and test.txt decide as they do for pictures (see `lists.assign`). Where there
    is no test.txt, imagesTs/ with labelsTs/ are the test split.

    Raises:
      InputError: dataset.json is missing or says nothing usable, a file is missing or not listed
        as it should be, or a list is wrong.
    """
    path = root / CLASS_FILE
    about = _read(path)
    modalities = _modalities(about, path)
    task, values = _task(about, modalities, path)
    per_channel = _per_channel(root, about, path)
    if per_channel:
        images = _channels(root / "imagesTr", len(modalities))
        files, notes = paired(images, files_by_stem(root / "labelsTr", SUFFIXES)), ()
    else:
        files, notes = _listed(root, about, path)
    if not files:
        raise InputError(f"{root / 'imagesTr'}: no volume ({', '.join(SUFFIXES)})")
    held_out, more = _held_out(root, len(modalities) if per_channel else None)
    notes += more
    if (root / _FOLDS).is_file():
        notes += (
            f"{_FOLDS} is not read: write the cases of one of its folds into train.txt and val.txt",
        )
    twice = [one for one in held_out if one in files]
    if twice:
        raise InputError(f"{root}: imagesTr/ and imagesTs/ both have {names(twice)}")
    groups = read_groups([root], {*files, *held_out})
    assigned = _splits(root, list(files), list(held_out), validation_fraction, groups)
    files |= held_out
    splits = {
        split: tuple(
            Case(one, files[one][0], ((MaskFile(files[one][1], values),),), groups.get(one, ""))
            for one in ids
        )
        for split, ids in assigned.items()
    }
    used = {case.id for cases in splits.values() for case in cases}
    unused = [one for one in files if one not in used]
    if unused:
        notes += (f"{len(unused)} volumes in no split: {names(unused)}",)
    extra = [path, *(root / name for name in FILES)]
    return Catalogue(
        root=root,
        task=task,
        raters=("",),
        splits=splits,
        notes=notes,
        extra_files=tuple(one for one in extra if one.is_file()),
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent}: has imagesTr/ but no {path.name}, which names its labels")
    about = read_json(path)
    if not isinstance(about, dict):
        raise InputError(f"{path}: is no JSON object")
    ending = about.get("file_ending", SUFFIXES[0])
    if ending not in SUFFIXES:
        raise InputError(f"{path}: file_ending {ending!r}; volumes are {' or '.join(SUFFIXES)}")
    return about


def _modalities(about: Mapping[str, Any], path: Path) -> tuple[Modality, ...]:
    """CT is called "CT", so that its Hounsfield units are kept; others keep their names."""
    named = about.get("channel_names", about.get("modality"))
    wanted = f'{path}: needs {{"channel_names": {{"0": name, "1": name, ...}}}} or "modality"'
    try:
        channels = {int(key): str(name) for key, name in named.items()}
    except (AttributeError, ValueError) as error:
        raise InputError(wanted) from error
    if not channels or sorted(channels) != list(range(len(channels))):
        raise InputError(wanted)
    ordered = (channels[index] for index in range(len(channels)))
    return tuple(Modality("CT" if _is_ct(name) else name) for name in ordered)


def _is_ct(name: str) -> bool:
    return bool(_CT.search(_NO_CT.sub("", name)))


def _task(
    about: Mapping[str, Any], modalities: tuple[Modality, ...], path: Path
) -> tuple[Task, dict[int, int]]:
    """The task, and the map of the files' labels to its labels."""
    labels = _labels(about, path)
    regions = any(isinstance(value, list) for value in labels.values())
    members = {
        name: tuple(value) if isinstance(value, list) else (value,)
        for name, value in labels.items()
    }
    foreground = {name: held for name, held in members.items() if set(held) != {0}}
    numbers = [value for held in foreground.values() for value in held]
    if not foreground or not all(foreground.values()):
        raise InputError(f"{path}: has a label without value, or none besides the background")
    if min(numbers) < 1 or max(numbers) > MAX_LABEL:
        raise InputError(f"{path}: labels besides the background must be in 1..{MAX_LABEL}")
    if regions:
        if len(foreground) > _MAX_REGIONS:
            raise InputError(f"{path}: {len(foreground)} regions; at most {_MAX_REGIONS} can be")
        bits = {name: 1 << index for index, name in enumerate(foreground)}
        values = {
            number: sum(bits[name] for name, held in foreground.items() if number in held)
            for number in sorted(set(numbers))
        }
        label_values = tuple(bits.values())
    else:
        if len(set(numbers)) < len(numbers):
            raise InputError(f"{path}: label values must be different")
        foreground = dict(sorted(foreground.items(), key=lambda item: item[1]))
        values = {number: number for number in sorted(numbers)}
        label_values = tuple(values)
    task = Task(tuple(foreground), label_values, not regions, len(modalities), modalities)
    return task, {0: 0, **values}


def _labels(about: Mapping[str, Any], path: Path) -> dict[str, int | list[int]]:
    """Name -> value, or values of a region; the Decathlon writes them as value -> name."""
    labels = about.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise InputError(f'{path}: needs {{"labels": {{"background": 0, name: value, ...}}}}')
    if all(isinstance(name, str) for name in labels.values()):
        repeated = [name for name in labels.values() if list(labels.values()).count(name) > 1]
        if repeated:
            raise InputError(f"{path}: two labels are called {repeated[0]!r}")
        try:
            labels = {name: int(value) for value, name in labels.items()}
        except ValueError as error:
            raise InputError(f"{path}: label values must be integers") from error
    for name, value in labels.items():
        if name.lower() == "ignore":
            raise InputError(
                f"{path}: its label {name!r} marks voxels to leave out, which is not supported; "
                "label all voxels, or leave such cases out"
            )
        if any(type(one) is not int for one in (value if isinstance(value, list) else [value])):
            raise InputError(f"{path}: label {name!r} needs an integer, or a list of them")
    return labels


def _entries(about: Mapping[str, Any], path: Path) -> list[tuple[str, str]]:
    """(image, label) as dataset.json lists them."""
    try:
        return [(str(one["image"]), str(one["label"])) for one in about["training"]]
    except (KeyError, TypeError) as error:
        raise InputError(
            f'{path}: needs {{"training": [{{"image": file, "label": file}}, ...]}}'
        ) from error


def _per_channel(root: Path, about: Mapping[str, Any], path: Path) -> bool:
    """Whether each modality has a file of its own; nnU-Net v1 does so under a Decathlon list."""
    if "channel_names" in about:
        return True
    entries = _entries(about, path)
    if not entries or (root / entries[0][0]).is_file():
        return False
    first = root / entries[0][0]
    return is_volume(first) and any(
        (first.parent / f"{stem(first)}_0000{suffix}").is_file() for suffix in SUFFIXES
    )


def _listed(root: Path, about: Mapping[str, Any], path: Path) -> tuple[Files, tuple[str, ...]]:
    """The cases of dataset.json, sorted, and a note on what it does not list."""
    entries = [(root / image, root / label) for image, label in _entries(about, path)]
    listed = {file for entry in entries for file in entry}
    missing = sorted(file for file in listed if not file.is_file())
    if missing:
        raise InputError(
            f"{path}: lists files that do not exist: {names(missing)}; of data that were copied in "
            'part, "training" must list the same part'
        )
    odd = [file for file in sorted(listed) if not is_volume(file)]
    if odd:
        raise InputError(f"{odd[0]}: is not NIfTI ({' or '.join(SUFFIXES)})")
    files: Files = {}
    for image, label in sorted(entries):
        if stem(image) in files:
            raise InputError(f"{path}: lists {stem(image)} twice")
        files[stem(image)] = ((image,), label)
    present = [
        file
        for folder in ("imagesTr", "labelsTr")
        for file in files_by_stem(root / folder, SUFFIXES).values()
    ]
    rest = [file.relative_to(root) for file in present if file not in listed]
    notes = (f"{len(rest)} files that {path.name} does not list: {names(rest)}",) if rest else ()
    return files, notes


def _channels(folder: Path, count: int) -> dict[str, tuple[Path, ...]]:
    """Case id -> its files, one per modality: <case>_0000, <case>_0001, ..."""
    found: dict[str, dict[int, Path]] = {}
    for name, path in files_by_stem(folder, SUFFIXES).items():
        match = _CHANNEL.fullmatch(name)
        if match is None:
            raise InputError(f"{path}: its name does not end in the number of a channel, as _0000")
        if int(match[2]) >= count:
            raise InputError(f"{path}: {CLASS_FILE} names {count} channels, from _0000 on")
        found.setdefault(match[1], {})[int(match[2])] = path
    for one, channels in found.items():
        missing = [f"{one}_{index:04d}" for index in range(count) if index not in channels]
        if missing:
            raise InputError(f"{folder}: has no {missing[0]}{SUFFIXES[0]}")
    return {one: tuple(found[one][index] for index in range(count)) for one in sorted(found)}


def _held_out(root: Path, channels: int | None) -> tuple[Files, tuple[str, ...]]:
    """Cases of imagesTs/ that have labels in labelsTs/, and a note on the others."""
    images, labels = root / "imagesTs", root / "labelsTs"
    if not labels.is_dir():
        return {}, ("imagesTs/ is not used: there is no labelsTs/",) if images.is_dir() else ()
    if channels is None:
        found = {one: (path,) for one, path in files_by_stem(images, SUFFIXES).items()}
    else:
        found = _channels(images, channels)
    # An official test set may have labels of a part only; the rest cannot be scored.
    known = files_by_stem(labels, SUFFIXES)
    files = paired({one: paths for one, paths in found.items() if one in known}, known)
    rest = [one for one in found if one not in known]
    notes = (f"{len(rest)} volumes of imagesTs/ have no labels: {names(rest)}",) if rest else ()
    return files, notes


def _splits(
    root: Path,
    training: list[str],
    held_out: list[str],
    validation_fraction: float,
    groups: Mapping[str, str],
) -> dict[str, list[str]]:
    lists = read_lists(root, {*training, *held_out}, "imagesTr/ or, with labels, imagesTs/")
    listed = {one for split in lists.values() for one in split}
    if held_out and "test" not in lists:
        lists["test"] = [one for one in held_out if one not in listed]
    # What was held out is never trained on unless a list says so.
    ids = [*training, *(one for one in held_out if one in listed)]
    return assign(lists, ids, validation_fraction, groups)
