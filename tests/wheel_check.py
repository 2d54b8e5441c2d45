"""Build the wheel, install it and the plugins into an environment of their own, and use them as a user would.

The big dependencies are not installed twice: the new environment reads them from the development one through a path
file. fusionkit itself and the plugins come from their wheels, which stand first on the path.

Usage: python tests/wheel_check.py [PLUGIN_FOLDER ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"wheel check failed: {' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def require(condition: bool, message: str) -> None:
    if not condition:
        sys.exit(f"wheel check failed: {message}")


def main(plugins: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        wheels = scratch / "wheels"
        for folder in (ROOT, *(ROOT / plugin for plugin in plugins)):
            run(
                sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, folder, cwd=scratch
            )
        venv.create(scratch / "venv", with_pip=True)
        python = scratch / "venv" / "bin" / "python"
        site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=scratch).strip())
        (site / "development.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        run(
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--force-reinstall",
            *sorted(wheels.glob("*.whl")),
            cwd=scratch,
        )
        where = run(python, "-c", "import fusionkit; print(fusionkit.__file__)", cwd=scratch).strip()
        require(str(site) in where, f"fusionkit is imported from {where}, not from the wheel")
        command = scratch / "venv" / "bin" / "fusionkit"
        listed = json.loads(run(command, "list", "--json", cwd=scratch))
        require("orthogonal" in json.dumps(listed), "`fusionkit list` does not show mixers/orthogonal")
        require("tiny" in json.dumps(listed), "`fusionkit list` does not show the recipe builtin:tiny")
        for plugin in plugins:
            package = Path(plugin).name.replace("-", "_")
            where = run(python, "-c", f"import {package}; print({package}.__file__)", cwd=scratch).strip()
            require(str(site) in where, f"{package} is imported from {where}, not from its wheel")
        for recipe in listed["recipes"]:
            if recipe["distribution"] in {Path(plugin).name for plugin in plugins}:
                run(command, "plan", f"{recipe['prefix']}:{recipe['name']}", cwd=scratch)
        run(command, "validate", "builtin:tiny", cwd=scratch)
        run(command, "plan", "builtin:come_vl", cwd=scratch)
        run(command, "data", "sample", "tiny", "-n", "1", "-o", scratch / "pictures", cwd=scratch)
        answer = json.loads(
            run(
                command, "ask", "checkpoint:tiny", scratch / "pictures" / "000.png", "how many red shapes are there?", "--json",
                cwd=scratch,
            )
        )  # fmt: skip
        require(bool(answer["answer"]), f"checkpoint:tiny gave no answer: {answer}")
    print(f"wheel check passed: {1 + len(plugins)} wheels built, installed and used")


if __name__ == "__main__":
    main(sys.argv[1:])
