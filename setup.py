"""Packages only: pyproject.toml cannot both find packages and add the top-level recipes/ folder as one."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fusionkit", "fusionkit.*"]), "fusionkit.builtin_recipes"],
    package_dir={"fusionkit.builtin_recipes": "recipes"},
)
