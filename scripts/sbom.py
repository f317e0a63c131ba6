"""What an image holds, as CycloneDX JSON on standard output: read inside the image, by its Python.

    docker run --rm -i --network none --entrypoint python3 IMAGE - NAME VERSION < scripts/sbom.py

Standard library only, and what it prints depends on the image alone: no time, no random number.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

DPKG_STATUS = Path("/var/lib/dpkg/status")
OS_RELEASE = Path("/etc/os-release")


def python_packages() -> Iterator[dict[str, Any]]:
    """Yield the distributions that this Python finds, each once."""
    seen = set()
    for distribution in metadata.distributions():
        name, version = distribution.metadata["Name"], distribution.version
        normal = re.sub(r"[-_.]+", "-", name).lower()
        if normal not in seen:
            seen.add(normal)
            component = library(name, version, f"pkg:pypi/{normal}@{quote(version)}")
            licence = distribution.metadata.get("License-Expression")
            yield component | ({"licenses": [{"expression": licence}]} if licence else {})


def system_packages(status: str, os_release: str) -> Iterator[dict[str, Any]]:
    """Yield the Debian packages that are installed, by the texts of dpkg and of the system."""
    system = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    vendor, release = (system.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    for paragraph in status.split("\n\n"):
        lines = [line for line in paragraph.splitlines() if not line.startswith(" ")]
        fields = dict(line.split(": ", 1) for line in lines if ": " in line)
        if fields.get("Status", "").endswith(" installed"):
            name, version = fields["Package"], fields["Version"]
            where = f"?arch={fields['Architecture']}&distro={vendor}-{release}"
            yield library(name, version, f"pkg:deb/{vendor}/{name}@{quote(version)}{where}")


def library(name: str, version: str, purl: str) -> dict[str, Any]:
    """Return one component."""
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def document(name: str, version: str, components: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the list of an image's components."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "version": version}},
        "components": sorted(components, key=lambda each: each["purl"]),
    }


def main() -> None:
    """Print it."""
    name, version = sys.argv[1:]
    components = list(python_packages())
    if DPKG_STATUS.exists():
        components += system_packages(DPKG_STATUS.read_text(), OS_RELEASE.read_text())
    json.dump(document(name, version, components), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
