"""Ends the program that imports it, in Python's own way."""

import sys

from fusionkit_hostile.good import selector

sys.exit("I have seen enough")

SPEC = selector("hostile.exits")
