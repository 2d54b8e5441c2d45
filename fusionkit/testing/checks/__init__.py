"""The checks, by family. A check is a function `check_NAME(subject)` that raises CheckFailed."""
