"""Files appear whole or not at all, and hold what was to be written."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from medsegdiff_jax import atomic


def test_json_is_strict_and_numpy_becomes_numbers(tmp_path):
    tree = {
        "nan": float("nan"),
        "inf": np.float32(np.inf),
        "array": np.array([1.5, np.nan]),
        "pair": (np.int64(3), True),
        7: "größe",
    }
    atomic.write_json(tmp_path / "tree.json", tree)
    text = (tmp_path / "tree.json").read_text(encoding="utf-8")

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse) == {
        "nan": None,
        "inf": None,
        "array": [1.5, None],
        "pair": [3, True],
        "7": "größe",
    }
    assert text.endswith("}\n")


def test_csv_keeps_the_columns_and_nan(tmp_path):
    rows = [{"case": "a,b", "dice": 0.5}, {"case": "c", "dice": float("nan")}]
    atomic.write_csv(tmp_path / "rows.csv", rows)
    with open(tmp_path / "rows.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [{"case": "a,b", "dice": "0.5"}, {"case": "c", "dice": "nan"}]


def test_a_source_that_cannot_be_read_is_not_taken_for_the_target(tmp_path):
    with (
        pytest.raises(FileNotFoundError) as caught,
        atomic.replacing(tmp_path / "copy") as temporary,
    ):
        shutil.copyfile(tmp_path / "source", temporary)
    assert caught.value.filename == str(tmp_path / "source")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "tree.json"
    atomic.write_json(path, {"a": 1})
    assert path.stat().st_mode & 0o777 == 0o666 & ~atomic._UMASK  # not private, as mkstemp's

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        atomic.write_json(path, {"a": 2})
    assert [item.name for item in path.parent.iterdir()] == ["tree.json"]
    assert json.loads(path.read_text()) == {"a": 1}


def test_json_is_read_back_whatever_the_locale(tmp_path):
    atomic.write_json(tmp_path / "tree.json", {"class": "Läsion"})
    script = (
        "import sys; from medsegdiff_jax import atomic as a; print(ascii(a.read_json(sys.argv[1])))"
    )
    locale = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    read = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "tree.json")],
        env=os.environ | locale,
        capture_output=True,
        text=True,
    )
    assert read.stdout.strip() == ascii({"class": "Läsion"}), read.stderr
