"""Names that are no specs."""

NUMBER = 42
