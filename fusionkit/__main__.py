"""`python -m fusionkit` is the command `fusionkit`."""

from fusionkit.cli.main import run

run()
