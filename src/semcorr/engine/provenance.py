"""Versions of the code that produced a run."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from semcorr.core.text_files import JsonObject

PACKAGES = ("semcorr", "torch", "torchvision", "lightning", "timm", "hydra-core", "torchmetrics")


def code_versions() -> JsonObject:
    """Return the versions of the packages that numbers depend on, and of our own code."""
    return {"packages": {name: _version(name) for name in PACKAGES}, "git": _git_revision()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_revision() -> str | None:
    """Return the revision of the checkout that semcorr is run from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
