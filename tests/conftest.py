"""How examples of hypothesis are drawn: the same in every run, however long one takes."""

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
