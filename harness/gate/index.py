"""The releases of a package, as the package index lists them."""

from __future__ import annotations

import functools
from datetime import date

from packaging.version import InvalidVersion, Version

from harness.errors import UsageError
from harness.gate import uv


def releases(package: str) -> tuple[str, ...]:
    """Return all releases, oldest first. Yanked releases and pre-releases are left out.

    Raises UsageError if the index cannot be read.
    """
    return tuple(dated(package))


@functools.cache
def dated(package: str) -> dict[str, date | None]:
    """Return release -> the day on which its first file was uploaded, oldest release first; None if the index has no date.

    Yanked releases and pre-releases are left out. Raises UsageError if the index cannot be read.
    """
    try:
        from pypi_simple import PYPI_SIMPLE_ENDPOINT, PyPISimple
    except ImportError:
        raise UsageError(
            "pypi-simple, which reads the index's releases, is not installed; pip install pypi-simple"
        ) from None
    with PyPISimple(endpoint=f"{(uv.index_url() or PYPI_SIMPLE_ENDPOINT).rstrip('/')}/") as index:
        try:
            page = index.get_project_page(package, timeout=60)
        except Exception as error:
            raise UsageError(f"{package}: the package index cannot be read ({type(error).__name__}: {error})") from None
    found: dict[Version, str] = {}
    days: dict[Version, date] = {}
    for file in page.packages:
        if file.version is None or file.is_yanked:
            continue
        try:
            version = Version(file.version)
        except InvalidVersion:
            continue
        if not version.is_prerelease:
            found[version] = file.version
            if file.upload_time is not None:
                days[version] = min(file.upload_time.date(), days.get(version, date.max))
    return {found[version]: days.get(version) for version in sorted(found)}


def between(package: str, first: str, last: str) -> list[str]:
    """Return the releases from one version to another, both included, in that order.

    `first` may be the newer one. Yanked releases and pre-releases are left out.
    """
    low, high = sorted((Version(first), Version(last)))
    inside = {Version(text) for text in releases(package) if low < Version(text) < high}
    ordered = [low, *sorted(inside - {low, high}), high]
    if Version(first) != low:
        ordered.reverse()
    return [str(version) for version in ordered]
