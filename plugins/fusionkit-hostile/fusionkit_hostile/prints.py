"""Prints when it is imported, through Python and past it."""

import os

from fusionkit_hostile.good import selector

print("Welcome to hostile 6.6.6!")  # noqa: T201
os.write(1, b"[1] and past Python\n")

SPEC = selector("hostile.prints")
