"""Sites of files: a page that is there, a folder that is named, or a generator that makes one."""

import re
from dataclasses import dataclass

from services.source.contract import BuildStep
from services.source.plan.cupaas import inside
from services.source.plan.findings import Findings
from services.source.plan.formats import json_of, yaml_of
from services.source.plan.tree import Tree

INDEX = "index.html"
_FOLDERS = ("public", "dist", "build", "out", "_site", "site", "www", "static", "html", "htdocs", "src", "docs")
MKDOCS = ("mkdocs.yml", "mkdocs.yaml")


@dataclass(frozen=True, slots=True)
class Site:
    """What is served."""

    output: str | None
    """Null: the app's root."""
    where: str
    fallback: str | None = None


def static_site(tree: Tree, findings: Findings) -> Site | None:
    """Return the folder that is served, or None where there is no page."""
    if found := _named(tree, findings):
        return found
    if tree.has(INDEX):
        return Site(None, INDEX)
    for folder in _FOLDERS:
        if tree.has(f"{folder}/{INDEX}"):
            return Site(folder, f"{folder}/{INDEX}")
    return None


def _named(tree: Tree, findings: Findings) -> Site | None:
    """What `Staticfile` and `static.json` of other platforms name."""
    if tree.has("Staticfile"):
        with findings.collecting():
            content = yaml_of(tree, "Staticfile")
            root = inside(str(content.get("root", ""))) if content.get("root") else None
            fallback = (
                INDEX if content.get("index_fallback") == "true" or content.get("pushstate") == "enabled" else None
            )
            if root is None or tree.has_folder(root):
                return Site(root, "Staticfile", fallback)
    if tree.has("static.json"):
        with findings.collecting():
            content = json_of(tree, "static.json")
            root = inside(str(content.get("root", "public_html")))
            routes = content.get("routes")
            fallback = INDEX if isinstance(routes, dict) and INDEX in routes.values() else None
            if root is not None and tree.has_folder(root):
                return Site(root, "static.json", fallback)
    return None


def mkdocs_step(tree: Tree, findings: Findings) -> tuple[BuildStep, str]:
    """The step that builds an MkDocs site, and the folder that it makes."""
    name = tree.first(*MKDOCS) or MKDOCS[0]
    match = re.search(r"^site_dir:[ \t]*[\"']?([\w./-]{1,200})[\"']?[ \t]*$", tree.source(name), re.MULTILINE)
    output = (inside(match[1]) if match else None) or "site"
    findings.found(f"Build: mkdocs build ({name})")
    step = BuildStep(
        name="mkdocs build", command=("mkdocs", "build", "--config-file", name, "--site-dir", output), language="python"
    )
    return step, output


def generator(tree: Tree) -> tuple[str, str, str] | None:
    """A site generator that is no Python or Node package: its name, its file, and the folder that it makes."""
    hugo = tree.first("hugo.toml", "hugo.yaml", "hugo.yml", "hugo.json")
    config = tree.first("config.toml", "config.yaml", "config.yml")
    if hugo or (config and tree.has_folder("content") and (tree.has_folder("themes") or tree.has_folder("layouts"))):
        return "Hugo", hugo or config or "", "public"
    if tree.has("_config.yml") and (
        tree.has_folder("_posts")
        or tree.has_folder("_layouts")
        or "jekyll" in (tree.source("Gemfile") + tree.source("_config.yml"))
    ):
        return "Jekyll", "_config.yml", "_site"
    if config and tree.has_folder("templates") and "base_url" in tree.source(config) and tree.has_folder("content"):
        return "Zola", config, "public"
    return None
