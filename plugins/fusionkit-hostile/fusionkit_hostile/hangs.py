"""Never finishes to import."""

import time

from fusionkit_hostile.good import selector

while True:
    time.sleep(60)

SPEC = selector("hostile.hangs")
