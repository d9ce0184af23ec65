"""Trains and scores models side by side: a row per (model, dataset, seed), then their tables.

    python -m benchmarks.quality --plan=benchmarks/plans/isic2017_64px.json \
        --data=isic2017=FOLDER --workdir=runs/quality --document=docs/results.md

A plan is a JSON file:

    title     what the table is about
    data      dataset -> flags of train.py; its folder comes by --data, its config is the one of
              its name (configs/isic2018.py), or else configs/folder.py
    training  flags of train.py that all rows share: the budget, the augmentation
    models    row -> {"config": recipe[,size], "flags": more flags of train.py, "sampling": flags of
              sample.py}, or {"like": an earlier row, ...}, whose flags are added to that row's or
              replace them; the first row is what the others are compared with
    seeds     list of config.seed
    split     "validation" in a plan for choosing; may be missing: rows are scored on "test"

The commands of the README do the work, so a row can be had by hand, too; rows that differ in
sampling alone share a training. Test cases, pictures or volumes, are what `python -m data` writes
of the split. Whatever is finished is not done again: a killed benchmark goes on where it was, and
--minutes ends it before the next training. A row of an ensemble also says how many members it takes
until the ensemble is stable (`ensemble_size`), on at most STABLE_CASES test pictures (of volumes,
one) with at most STABLE_MEMBERS members; a plan for choosing leaves that out. Rows are written to
--rows as JSON, one file each. The tables (`benchmarks/quality_table.py`) are made from these files
alone; in --document they replace what stands between the lines `<!-- quality: NAME OF THE PLAN -->`
and `<!-- end -->`.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks.commands import command, sample_and_score, values_of_cases
from benchmarks.network_cost import cost
from benchmarks.provenance import ROOT, hardware, versions
from benchmarks.quality_table import table, write_into
from medsegdiff_jax import atomic, cli
from medsegdiff_jax.groups import read_groups
from medsegdiff_jax.types import InputError

_PLAN = flags.DEFINE_string("plan", None, "JSON file.")
_DATA = flags.DEFINE_multi_string("data", [], "NAME=FOLDER of a dataset of the plan; repeatable.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/quality", "Trainings and predictions.")
_ROWS = flags.DEFINE_string("rows", "benchmarks/results/quality", "Folder of the rows.")
_MINUTES = flags.DEFINE_float("minutes", float("inf"), "Start no training after this time.")
_DOCUMENT = flags.DEFINE_string("document", None, "Markdown file whose table is to be replaced.")
_TRAINING = flags.DEFINE_multi_string("flag", [], "One more flag of train.py; repeatable.")

STABLE_CASES, STABLE_MEMBERS = 20, 50


class Run(NamedTuple):
    """What makes one row."""

    model: str
    dataset: str
    seed: int
    split: str
    training: tuple[str, ...]
    sampling: tuple[str, ...]

    def training_name(self) -> str:
        """The same for rows that share a training."""
        return _digest(self.training)

    def file_name(self) -> str:
        """Of its row."""
        words = f"{self.model} {self.dataset} {self.seed}".replace(",", "")
        return "_".join(words.split()) + ".json"

    def commands(self) -> dict[str, list[str]]:
        """What its row is measured by; a row of other commands is stale."""
        return {
            "train.py": _public(self.training),
            "data": [f"--split={self.split}"],
            "sample.py": list(self.sampling),
        }


def _digest(words: tuple) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]


def read_plan(path: str) -> dict[str, Any]:
    """The plan of a file, each of its rows written out.

    Raises:
      InputError: no such file, a part of it is missing, or a row is like one that is not before it.
    """
    try:
        plan = atomic.read_json(path)
        missing = {"title", "data", "training", "models", "seeds"} - plan.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"--plan: {path} cannot be read ({error})") from error
    if missing:
        raise InputError(f"--plan: {path} has no {', '.join(sorted(missing))}")
    try:
        return plan | {"models": _written_out(plan["models"])}
    except KeyError as error:
        raise InputError(f"--plan: {path}: no {error} in a row or before it") from error


def _written_out(models: dict[str, Any]) -> dict[str, Any]:
    """Rows with what they take from the row that they are like."""
    found: dict[str, Any] = {}
    for row, how in models.items():
        base = found[how["like"]] if "like" in how else {"config": how["config"]}
        parts = {part: [*base.get(part, ()), *how.get(part, ())] for part in ("flags", "sampling")}
        found[row] = {"config": base["config"], **parts}
    return found


def runs_of(plan: dict[str, Any], folders: dict[str, str]) -> Iterator[Run]:
    """All rows of a plan whose dataset is at hand; a seed is finished before the next one."""
    for seed in plan["seeds"]:
        for dataset, of_data in plan["data"].items():
            if dataset not in folders:
                continue
            own = f"configs/{dataset}.py"
            config = own if (ROOT / own).exists() else "configs/folder.py"
            for model, how in plan["models"].items():
                training = _last_of_each(
                    f"--config={config}:{how['config']}",
                    f"--config.data.path={Path(folders[dataset]).resolve()}",
                    f"--config.seed={seed}",
                    *(*plan["training"], *of_data, *how["flags"], *_TRAINING.value),
                )
                sampling = _last_of_each(*how["sampling"])
                yield Run(model, dataset, seed, plan.get("split", "test"), training, sampling)


def _last_of_each(*words: str) -> tuple[str, ...]:
    """Flags without those that a later one of the same name replaces."""
    return tuple({word.partition("=")[0]: word for word in words}.values())


def measure(run: Run, work: Path) -> dict[str, Any]:
    """Trains, samples and scores as far as that is not done; returns the row."""
    workdir = work / run.training_name()
    predictions = work / f"{Path(run.file_name()).stem}_{_digest(run)}"
    score, cases = predictions / "score", work / f"{run.dataset}_{run.split}"
    if not (score / "metrics.json").exists():
        command("train.py", *run.training, f"--workdir={workdir}")
        command("-m", "data", *run.training, f"--split={run.split}", f"--output={cases}")
        sample_and_score([workdir], cases, run.sampling, predictions)
    done = atomic.read_json(predictions / "run.json")
    ensemble = done["sampling"]["steps"] > 0 and done["sampling"]["members"] > 1
    count = ensemble and run.split == "test"
    metrics = atomic.read_json(score / "metrics.json")
    for folders in ("predictions", "references"):
        del metrics["run"][folders]  # where they lie on this machine
    seconds = [case["seconds"] for case in done["cases"].values()]
    return {
        **{field: getattr(run, field) for field in ("model", "dataset", "seed")},
        "commands": run.commands(),
        "training": training_facts(workdir / "metrics.jsonl"),
        "checkpoint": done["checkpoint"],
        "sampling": done["sampling"],
        "seconds_per_case": round(float(np.median(seconds)), 4),
        "stable_members": stable_members(run, workdir, cases, predictions) if count else None,
        "cost": cost(ConfigDict(atomic.read_json(workdir / "config.json")["config"])),
        "scores": {key: value for key, value in metrics.items() if key != "conventions"},
        "dice_of_cases": values_of_cases(score / "per_case.csv", "dice"),
        "group_of_cases": read_groups([cases], ()),
        "hardware": hardware(),
        "versions": versions(),
    }


def stable_members(run: Run, workdir: Path, cases: Path, predictions: Path) -> dict[str, float]:
    """Members until the ensemble is stable.

    A case that is not stable with the most members counts as these, so that with any of them the
    mean is too low.

    Returns:
      "mean" over "cases", "most" members allowed, how many cases were "unstable".
    """
    done = atomic.read_json(predictions / "run.json")
    names = sorted(done["cases"])
    chosen = names[:1] if done["task"]["modalities"] else names[:: -(-len(names) // STABLE_CASES)]
    names_file, output = predictions / "stable.txt", predictions / "stable"
    names_file.write_text("\n".join(chosen) + "\n")
    command("sample.py", f"--checkpoint={workdir}", f"--input={cases}", f"--list={names_file}",
            f"--output={output}", "--save=mask", *run.sampling, f"--members={STABLE_MEMBERS}",
            "--tolerance=0.001")  # fmt: skip
    stable = atomic.read_json(output / "run.json")["cases"].values()
    members = np.array([case["members"] for case in stable])
    return {
        "mean": float(members.mean()),
        "cases": len(members),
        "most": STABLE_MEMBERS,
        "unstable": int((members == STABLE_MEMBERS).sum()),
    }


def training_facts(path: Path) -> dict[str, float]:
    """Images seen, seconds of training (validation left out) and mean images/s of a run."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if "images_per_second" in row]
    config = atomic.read_json(path.parent / "config.json")["config"]
    steps = [row["step"] for row in rows]
    images = [(b - a) * config["batch_size"] for a, b in zip([0, *steps], steps, strict=False)]
    seconds = sum(n / row["images_per_second"] for n, row in zip(images, rows, strict=True))
    return {
        "images": sum(images),
        "seconds": round(seconds, 1),
        "images_per_second": round(sum(images) / seconds, 2),
    }


def _public(training: tuple[str, ...]) -> list[str]:
    """Flags without where things lie on this machine."""
    private = ("--config.data.path=", "--config.data.cache_dir=")
    return [flag for flag in training if not flag.startswith(private)]


def main(argv: list[str]) -> None:
    """Measures what is missing, writes rows, prints the table."""
    del argv
    plan, began = read_plan(_PLAN.value), time.monotonic()
    name = Path(_PLAN.value).stem
    folder, work = Path(_ROWS.value) / name, Path(_WORKDIR.value).resolve() / name
    folders = dict(item.split("=", 1) for item in _DATA.value if "=" in item)
    unknown = folders.keys() - plan["data"].keys()
    if unknown or len(folders) < len(_DATA.value):
        raise InputError(f"--data: wants NAME=FOLDER with a name of {', '.join(plan['data'])}")
    left = 0
    for run in runs_of(plan, folders):
        path = folder / run.file_name()
        if path.exists() and atomic.read_json(path)["commands"] == run.commands():
            continue
        if time.monotonic() - began > 60 * _MINUTES.value:
            left += 1
            continue
        row = measure(run, work)
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(path, row)
    if left:
        print(f"{left} rows are left; the same command goes on")
    rows = [atomic.read_json(path) for path in sorted(folder.glob("*.json"))]
    left_out = sorted({row["model"] for row in rows} - plan["models"].keys())
    if left_out:
        print(f"{folder}: rows that are not in the plan are left out: {', '.join(left_out)}")
    rows = [row for row in rows if row["model"] in plan["models"]]
    text = table(rows, list(plan["models"]))
    print(text)
    if _DOCUMENT.value:
        write_into(Path(_DOCUMENT.value), name, text)


if __name__ == "__main__":
    flags.mark_flags_as_required(["plan"])
    cli.run(main)
