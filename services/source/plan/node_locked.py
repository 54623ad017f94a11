"""The version of Node that the locked framework asks for, where the app itself names none.

Astro, Next.js and others refuse to build with an older Node. The lock files of npm and pnpm repeat `engines` of each
package; those of Yarn and Bun do not.
"""

import json
import re

from services.source.plan.package_json import PACKAGE_JSON, PackageJson
from services.source.plan.ranges import satisfies_npm
from services.source.plan.tree import MAX_LOCK_BYTES, Tree
from services.source.plan.versions import Asked, node_range

FRAMEWORKS = (
    *(
        "astro",
        "next",
        "nuxt",
        "vite",
        "@sveltejs/kit",
        "gatsby",
        "@angular/cli",
        "@remix-run/dev",
        "@react-router/dev",
    ),
    *("@solidjs/start", "@nestjs/cli", "@docusaurus/core", "@11ty/eleventy", "vinxi", "nitropack", "vitepress"),
)
"""Packages that end the build with an error on a Node that they do not support."""
_NEWEST = re.compile(r"latest|next|[*xX]?|>=?[\d. ]+", re.ASCII)
"""A range of which an installation without a lock file takes the newest version."""
NODE_OF_NEWEST = "^22.19.0 || ^24.11.0"
"""What the newest versions of these packages ask for; both are long-term releases of Node."""
_SINCE = {"nuxt": 4, "astro": 6}
"""Major version since which a package asks for that."""
_PROBES = tuple(f"{major}.99.99" for major in (16, 18, 20, 22, 24))
_PNPM_ENTRY = (
    r"^  '?/?{name}[@/]\d[^\n]{{0,200}}:\n(?:    [^\n]*\n)*?"
    r"    engines: \{{[^}}\n]*\bnode: ('[^'\n]*'|\"[^\"\n]*\"|[^,}}\n]+)"
)


def locked_node(tree: Tree, package: PackageJson, lock: str | None) -> Asked | None:
    """Return the narrowest range of the app's frameworks, as the lock file has it; None: nothing asks for a version.

    Without a lock file the newest version of a framework decides, where the app asks for it.
    """
    names = [name for name in FRAMEWORKS if package.has(name)]
    if lock is None:
        asked = {**package.dev_dependencies, **package.dependencies}
        newest = next((name for name in names if _takes_newest(name, asked.get(name, "").strip())), None)
        return Asked(NODE_OF_NEWEST, PACKAGE_JSON, f"the newest {newest} of {PACKAGE_JSON}") if newest else None
    if not names:
        return None
    data = tree.read(lock, MAX_LOCK_BYTES)
    if len(data) > MAX_LOCK_BYTES:
        return None
    found = _of_npm(data, names) if lock.endswith(".json") else _of_pnpm(data, names) if "pnpm" in lock else {}
    ranges = {name: wanted for name, value in found.items() if (wanted := node_range(value))}
    if not ranges:
        return None
    name = min(ranges, key=lambda each: sum(satisfies_npm(probe, ranges[each]) is not False for probe in _PROBES))
    return Asked(ranges[name], lock, f"{name} in {lock}")


def _takes_newest(name: str, wanted: str) -> bool:
    """Whether an installation without a lock file takes a version that needs a current Node."""
    major = re.match(r"[\^~=v\s]*(\d{1,4})\b", wanted, re.ASCII)
    return _NEWEST.fullmatch(wanted) is not None or (
        major is not None and name in _SINCE and int(major[1]) >= _SINCE[name]
    )


def _of_npm(data: bytes, names: list[str]) -> dict[str, str]:
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}  # said elsewhere
    entries = content.get("packages") if isinstance(content, dict) else None
    found: dict[str, str] = {}
    if not isinstance(entries, dict):
        return found
    for name in names:
        entry = entries.get(f"node_modules/{name}")
        engines = entry.get("engines") if isinstance(entry, dict) else None
        if isinstance(engines, dict) and isinstance(engines.get("node"), str):
            found[name] = engines["node"]
    return found


def _of_pnpm(data: bytes, names: list[str]) -> dict[str, str]:
    text = data.decode(errors="replace")
    found: dict[str, str] = {}
    for name in names:
        if match := re.search(_PNPM_ENTRY.format(name=re.escape(name)), text, re.MULTILINE):
            found[name] = match[1].strip("'\" ")
    return found
