"""What the commands share: user errors end with one line on stderr and exit status 2.

Exit status: 0 done, 2 wrong input (one line `error: ...`, no traceback), 130 interrupted, 141 if
nobody reads the output any more, 1 with a traceback for anything else, because that is a defect of
the program and the traceback is needed.
"""

import collections
import errno
import hashlib
import logging
import os
import platform
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging

from medsegdiff_jax.types import InputError

COMPILED = "~/.cache/medsegdiff_jax/compiled"
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it.
EXIT_PIPE = 141  # 128 + SIGPIPE

_HELP = {f"{dash}{word}" for dash in ("-", "--") for word in ("help", "helpshort", "helpfull")}

_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
# config_flags raises whatever the config tree raises when an override names no field or has the
# wrong type; none of these can be a defect of a command, because no command has started yet.
_PARSE_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError)


class _FlagError(Exception):
    """A flag or config override that could not be parsed; carries the original error."""


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Runs `main` under `absl.app.run` and turns user errors into one line and exit status 2.

    User errors are `InputError`, a training that diverged (FloatingPointError), flags and config
    fields that are unknown or of the wrong type, files that are missing or unreadable or whose
    names are not UTF-8, and disks that are full or not writable (also when a library reports them
    in its own exception type).

    Args:
      main: takes the positional arguments (argv[0] is the program).

    Raises:
      SystemExit: always.
    """
    keep_compiled_programs()
    try:
        app.run(_refuse_positional(main), flags_parser=_parse)
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        # What the interpreter would still flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(EXIT_PIPE)
    except SystemExit as ended:
        # absl ends with 1 after --help, as if that had been an error.
        sys.exit(0 if any(word in _HELP for word in sys.argv[1:]) else ended.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    sys.exit(0)


def only(flag: flags.FlagHolder[list[str]]) -> str:
    """The value of a flag that other commands take several times, and this one once.

    Raises:
      InputError: it is given several times.
    """
    if len(flag.value) > 1:
        raise InputError(f"--{flag.name}: is given {len(flag.value)} times; this takes one")
    return flag.value[0]


def keep_compiled_programs() -> None:
    """Programs that took XLA over a second are kept for the next command.

    Programs for one processor may not run on another, as on a cluster with a shared home, so the
    folder's name follows from the processor. A folder that the user gave JAX takes precedence.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    abilities = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    name = hashlib.sha256(f"{platform.machine()} {abilities}".encode()).hexdigest()[:12]
    folder = Path(COMPILED).expanduser() / name
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _reader_has_left() -> bool:
    """Whether standard output is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def user_message(error: BaseException) -> str | None:
    """One line that tells the user what is wrong, or None if `error` is a defect of the program.

    Args:
      error: what a command raised; its causes are examined too.

    Returns:
      The line, without the leading "error: ".
    """
    for link in _chain(error):
        if isinstance(link, InputError | FloatingPointError | _FlagError):
            return _one_line(str(link))
        if isinstance(link, OSError) and (link.filename is not None or link.errno in _DISK_ERRNOS):
            name = "" if link.filename is None else f"{os.fspath(link.filename)}: "
            return _one_line(f"{name}{link.strerror or link}")
        if isinstance(link, UnicodeEncodeError) and "surrogates" in link.reason:
            around = link.object[max(0, link.start - 60) : link.end + 60]
            return _one_line(f"a name of a file or folder is not UTF-8: {around!a}")
        # tensorstore and XLA report a full disk as a ValueError or RuntimeError with errno's text.
        text = str(link)
        for reason in map(os.strerror, _DISK_ERRNOS[:4]):
            if reason in text:
                line = _one_line(text)  # which may be cut before it says why
                return line if reason in line else _one_line(f"{reason}: {text}")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its stated causes, outermost first.

    An error that merely happened while another was handled is a defect of the handling, so the
    implicit `__context__` does not count.
    """
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _one_line(text: str, limit: int = 500) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; every failure names the flag, the config file or the config field."""
    try:
        words = flags.FLAGS(argv)
        _refuse_repeated_tuples(argv)
        for name in flags.FLAGS:
            # config_flags keeps a config file's OSError until a field of the config is asked for.
            getattr(flags.FLAGS[name].value, "keys", None)
        return words
    except InputError:
        raise
    except _PARSE_ERRORS as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        if isinstance(error, OSError) and error.__cause__ is not None:
            error = error.__cause__
        text = _missing_field(error) or str(error)
        raise _FlagError(_without_traceback(text) or type(error).__name__) from error


def _refuse_repeated_tuples(argv: Sequence[str]) -> None:
    """A tuple given twice is joined by config_flags, where any other field takes the last value."""
    given = collections.Counter(word.partition("=")[0].lstrip("-") for word in argv)
    for name, count in given.items():
        repeated = count > 1 and name.startswith("config.")
        if repeated and isinstance(flags.FLAGS[name], flags.MultiFlag):
            raise InputError(f"--{name} is given {count} times")


def _missing_field(error: Exception) -> str:
    """What ml_collections says of an unknown field, by a KeyError in an AttributeError; or ""."""
    for inner in error.args if isinstance(error, AttributeError) else ():
        if isinstance(inner, KeyError) and inner.args:
            return "no config field " + str(inner.args[0]).replace("\n", ". ")
    # KeyError's str() is the repr of its message.
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else ""


def _without_traceback(text: str) -> str:
    """Of a traceback that config_flags has put into its message, the last line is for users."""
    before, traceback, after = text.partition("Traceback (most recent call last)")
    return f"{before} {after.strip().splitlines()[-1]}" if traceback else text


def _refuse_positional(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """A word without "--" is nearly always a flag that lost its dashes: refuse, do not ignore."""

    def checked(argv: Sequence[str]) -> None:
        _configure_logging()
        if len(argv) > 1:
            raise InputError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
        main(argv)
        sys.stdout.flush()  # here, where a reader that has left is no error

    return checked


def _configure_logging() -> None:
    """Our own messages go to stderr, plain; of the libraries only warnings do."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    log = logging.getLogger("medsegdiff_jax")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)
