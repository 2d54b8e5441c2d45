"""Ends the process that imports it, without asking anybody."""

import os

from fusionkit_hostile.good import selector

os._exit(3)

SPEC = selector("hostile.dies")
