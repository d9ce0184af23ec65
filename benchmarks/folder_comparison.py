"""Diffusion, its condition model alone, and a plain UNet, on one folder at equal training images.

    python benchmarks/folder_comparison.py --data=FOLDER --workdir=runs/comparison \
        --output=benchmarks/results/comparison.json -- --config.num_steps=2200

FOLDER has train.txt and test.txt. Both models are trained by train.py with the flags after `--`;
the test cases are segmented by sample.py and scored by evaluate.py at the size of the files. Stages
that are finished are not done again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Row -> (recipe of configs/folder.py, flags of sample.py).
ROWS = {
    "medsegdiff_v2": ("default", []),
    "medsegdiff_v2, 1 member": ("default", ["--members=1"]),
    "medsegdiff_v2, condition model alone": ("default", ["--steps=0"]),
    "unet": ("unet", []),
}


def main() -> None:
    """Trains, samples, scores, and writes one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--size", default="small", help="network of configs/base.py")
    arguments, flags = parser.parse_known_args()
    flags = [flag for flag in flags if flag != "--"]
    data, work = arguments.data.resolve(), arguments.workdir.resolve()
    rows = {}
    for name, (recipe, sampling) in ROWS.items():
        run, folder = work / recipe, work / name.replace(", ", "_").replace(" ", "_")
        config = f"--config=configs/folder.py:{recipe},{arguments.size}"
        command("train.py", config, f"--config.data.path={data}", f"--workdir={run}", *flags)
        seconds = None
        if not (folder / "score" / "metrics.json").exists():
            began = time.perf_counter()
            command("sample.py", f"--checkpoint={run}", f"--input={data}",
                    f"--list={data / 'test.txt'}", f"--output={folder}", *sampling)  # fmt: skip
            seconds = round(time.perf_counter() - began, 1)
            command("evaluate.py", f"--predictions={folder}", f"--references={data}",
                    f"--output={folder / 'score'}")  # fmt: skip
            (folder / "score" / "seconds.json").write_text(json.dumps(seconds))
        rows[name] = {
            "training": training(run / "metrics.jsonl"),
            "checkpoint": json.loads((folder / "run.json").read_text())["checkpoint"],
            "sampling": json.loads((folder / "run.json").read_text())["sampling"],
            "sampling_seconds": json.loads((folder / "score" / "seconds.json").read_text()),
            "scores": json.loads((folder / "score" / "metrics.json").read_text())["classes"],
        }
    # Where the cache lies says nothing about the result.
    flags = [flag for flag in flags if not flag.startswith("--config.data.cache_dir")]
    result = {"hardware": hardware(), "versions": versions(), "flags": flags, "rows": rows}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(table(rows))


def command(*words: str) -> None:
    """Runs one of the project's commands from its root; its failure is ours."""
    print("$ python", *words, flush=True)
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


def training(path: Path) -> dict[str, float]:
    """Images seen, seconds of training (validation left out) and mean images/s of a run."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if "images_per_second" in row]
    config = json.loads((path.parent / "config.json").read_text())["config"]
    steps = [row["step"] for row in rows]
    images = [(b - a) * config["batch_size"] for a, b in zip([0, *steps], steps, strict=False)]
    seconds = sum(n / row["images_per_second"] for n, row in zip(images, rows, strict=True))
    return {
        "images": sum(images),
        "seconds": round(seconds, 1),
        "images_per_second": round(sum(images) / seconds, 2),
    }


def hardware() -> dict[str, str | int]:
    """Processor, cores and, through JAX, accelerators."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    import jax

    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    return {"cpu": cpu, "cores": os.cpu_count(), "devices": devices}


def versions() -> dict[str, str]:
    """Versions of Python and the libraries, and the commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "commit": commit,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def table(rows: dict) -> str:
    """Markdown: mean [95% interval] over the test cases."""
    lines = [
        "| model | images trained | minutes | Dice | IoU | HD95 (px) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        scores = row["scores"]
        one = scores.get("all classes") or next(iter(scores.values()))
        cells = [
            f"{one[m]['mean']:.{d}f} [{one[m]['low']:.{d}f}, {one[m]['high']:.{d}f}]"
            for m, d in (("dice", 4), ("iou", 4), ("hd95", 1))
        ]
        trained = row["training"]
        lines.append(
            f"| {name} | {trained['images']} | {trained['seconds'] / 60:.0f} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
