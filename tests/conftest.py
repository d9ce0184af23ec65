"""Tests are the same wherever they run: examples of hypothesis, and the environment."""

import os

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# A batch job would be joined by the commands that tests start, a git hook's repository written to.
for name in [one for one in os.environ if one.startswith(("SLURM_", "OMPI_", "PMI", "GIT_"))]:
    del os.environ[name]
