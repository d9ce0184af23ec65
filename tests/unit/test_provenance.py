"""What stands beside a figure names the code that made it."""

import subprocess

import pytest

from benchmarks import provenance


def git(folder, *words):
    name = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *name, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Code, a document and a result, committed."""
    git(tmp_path, "init", "--quiet")
    for name in ("a.py", "docs/results.md", "benchmarks/results/row.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=a")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


def test_the_commit_is_marked_if_the_code_is_another(repository):
    commit = git(repository, "rev-parse", "HEAD")
    for name in ("docs/results.md", "benchmarks/results/row.json"):  # what benchmarks write
        (repository / name).write_text("2\n")
    (repository / "new.json").write_text("{}")
    assert provenance.versions()["commit"] == commit
    (repository / "a.py").write_text("2\n")
    assert provenance.versions()["commit"] == f"{commit}-dirty"


def test_outside_of_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.versions()["commit"] == ""
