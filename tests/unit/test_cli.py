"""Which errors are the user's (one line, status 2) and which are the program's (traceback)."""

import errno
import logging
import os
import shlex
import subprocess
import sys

import jax
import pytest
from absl import flags
from absl import logging as absl_logging

from medsegdiff_jax import cli
from medsegdiff_jax.types import InputError


@pytest.fixture
def run(monkeypatch):
    """Runs a main function as a command: run(main, *words) -> exit status."""
    root, log = logging.getLogger(), logging.getLogger("medsegdiff_jax")
    handlers, settings = list(root.handlers), (log.handlers, log.propagate, log.level)
    verbosity = absl_logging.get_verbosity()
    compiled = jax.config.jax_compilation_cache_dir

    def call(main, *words):
        monkeypatch.setattr("sys.argv", ["command.py", *words])
        flags.FLAGS.unparse_flags()
        with pytest.raises(SystemExit) as exit_info:
            cli.run(main)
        return exit_info.value.code

    yield call
    jax.config.update("jax_compilation_cache_dir", compiled)
    flags.FLAGS.unparse_flags()
    absl_logging.set_verbosity(verbosity)
    root.handlers = handlers
    log.handlers, log.propagate, log.level = settings


def raiser(error):
    """A main function that raises."""

    def main(argv):
        raise error

    return main


@pytest.mark.parametrize("word", ["--help", "--helpfull"])
def test_asking_for_help_is_no_error(run, capsys, word):
    assert run(raiser(ValueError("ran")), word) == 0
    assert "flags" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("data.path: no folder\n  at x"), "data.path: no folder at x"),
        (FloatingPointError("not finite at step 3"), "not finite at step 3"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), "a.png: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "out: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EFBIG, "File too large"), "File too large"),
        (
            UnicodeEncodeError("utf-8", "a\udcff.png", 1, 2, "surrogates not allowed"),
            r"a name of a file or folder is not UTF-8: 'a\udcff.png'",
        ),
        (
            ValueError(f"Error writing /x/y: {os.strerror(errno.ENOSPC)}"),
            f"Error writing /x/y: {os.strerror(errno.ENOSPC)}",
        ),
    ],
)
def test_user_errors_are_one_line(run, capsys, error, line):
    assert cli.user_message(error) == line
    assert run(raiser(error)) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        KeyError("x"),
        RuntimeError("x"),
        OSError(errno.EIO, "?"),
        BrokenPipeError(),
    ],
)
def test_defects_are_not_hidden(run, error):
    assert cli.user_message(error) is None
    with pytest.raises(type(error)):
        run(raiser(error))


def test_the_stated_cause_of_a_library_error_counts_and_no_other():
    outer, inner = RuntimeError("save failed"), InputError("config field seed: negative")
    outer.__cause__ = inner
    assert cli.user_message(outer) == "config field seed: negative"
    while_handling = RuntimeError("other")
    while_handling.__context__ = inner
    assert cli.user_message(while_handling) is None


def test_a_long_message_of_a_full_disk_still_says_so():
    reason = os.strerror(errno.ENOSPC)
    message = cli.user_message(ValueError(f"Error writing {600 * 'x'}: {reason}"))
    assert message.startswith(f"{reason}: Error writing xxx") and len(message) == 500


def test_a_long_message_is_cut():
    message = cli.user_message(InputError("x" * 2000))
    assert len(message) == 500 and message.endswith("...")


def test_positional_words_and_wrong_flags_are_refused_before_main(run, capsys):
    called = []
    for words, named in (
        (["runs/demo"], "'runs/demo'"),
        (["--verbosity=many"], "verbosity"),
        (["--verbostiy=3"], "verbostiy"),
        (["verbosity=3"], "'verbosity=3'"),
    ):
        assert run(called.append, *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and named in line
    assert not called
    assert not run(called.append, "--nologtostderr")  # None and 0 are both success
    assert called == [["command.py"]]


def test_interrupted_has_its_own_status(run, capsys):
    assert run(raiser(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_compiled_programs_are_kept_unless_the_user_says_where(run):
    jax.config.update("jax_compilation_cache_dir", "/somewhere")
    run(lambda argv: None)
    assert jax.config.jax_compilation_cache_dir == "/somewhere"
    jax.config.update("jax_compilation_cache_dir", None)
    run(lambda argv: None)
    folder = jax.config.jax_compilation_cache_dir
    assert folder.startswith(os.path.expanduser(cli.COMPILED) + os.sep)


def test_a_reader_that_has_left_is_no_error():
    """`head` leaves after a line; the rest is more than a pipe holds."""
    program = "from medsegdiff_jax import cli; cli.run(lambda argv: print('x\\n' * 200_000))"
    command = f"{sys.executable} -c {shlex.quote(program)} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["x", str(cli.EXIT_PIPE)] and not done.stderr
