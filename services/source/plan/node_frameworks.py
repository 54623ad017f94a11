"""Frameworks of Node: how each is built, started, or served as files, and what it keeps from one build to the next.

Configuration files of frameworks are programs; they are searched for the few settings that decide, never run.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from services.source.plan.cupaas import inside
from services.source.plan.findings import Findings
from services.source.plan.package_json import PackageJson
from services.source.plan.tree import Tree


@dataclass(frozen=True, slots=True)
class Built:
    """What a framework's build leaves, and how it is run."""

    framework: str
    build: str | None = None
    """Command of the build where `package.json` has no script for it."""
    start: str | None = None
    """Command of the server where `package.json` has no script for it."""
    output: str | None = None
    """Folder that is served as files; null: it has a server."""
    fallback: str | None = None
    """File that answers for paths without a file."""
    caches: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    """Environment of the build."""
    dev_start: re.Pattern[str] | None = None
    """A start script that is the framework's development server, which is no way to run it."""


_OUT_DIR = re.compile(
    r"\b(?:outDir|outputDir|distDir|publicDir|buildDirectory|output)[ \t]*:[ \t]*[\"'`]([\w./-]{1,200})[\"'`]"
)
_MODULES_CACHE = "node_modules/.cache"


def framework_of(tree: Tree, package: PackageJson, findings: Findings) -> Built | None:
    """Return the first framework that the app uses, or None."""
    for name, detect in _DETECTORS:
        if package.has(name) and (found := detect(tree, package, findings)) is not None:
            return found
    return None


def _config_file(tree: Tree, stem: str) -> str | None:
    return tree.first(*(f"{stem}.{end}" for end in ("js", "mjs", "ts", "cjs", "mts")))


def _config(tree: Tree, stem: str) -> str:
    name = _config_file(tree, stem)
    return tree.source(name) if name else ""


def _setting(source: str, key: str) -> str | None:
    """A setting whose value is a text: `output: "export"`."""
    match = re.search(rf"\b{key}[ \t]*:[ \t]*[\"'`]([\w./-]{{1,200}})[\"'`]", source)
    return match[1] if match else None


def _folder(source: str, key: str, default: str) -> str:
    found = _setting(source, key)
    return (inside(found) if found else None) or default


def _next(tree: Tree, package: PackageJson, _findings: Findings) -> Built:
    config = _config(tree, "next.config")
    export = _setting(config, "output") == "export" or "next export" in package.scripts.get("build", "")
    common = {"framework": "Next.js", "build": "next build"}
    telemetry = (("NEXT_TELEMETRY_DISABLED", "1"),)
    if export:
        folder = _folder(config, "distDir", "out")
        return Built(**common, output=folder, caches=(".next/cache",), env=telemetry, dev_start=re.compile(r"^next\b"))
    dist = _folder(config, "distDir", ".next")
    return Built(
        **common,
        start="next start -p $PORT",
        caches=(f"{dist}/cache",),
        env=telemetry,
        dev_start=re.compile(r"^next(?:\s+dev\b.*)?$"),
    )


def _nuxt(_tree: Tree, package: PackageJson, _findings: Findings) -> Built:
    caches = ("node_modules/.cache/nuxt", ".nuxt/cache")
    dev = re.compile(r"^(?:nuxt|nuxi)\s+(?:dev|preview|start)\b|^nuxt$")
    if re.search(r"\b(?:nuxt|nuxi)\s+generate\b", package.scripts.get("build", "")):
        return Built("Nuxt", output=".output/public", fallback="200.html", caches=caches, dev_start=dev)
    return Built("Nuxt", "nuxt build", "node .output/server/index.mjs", caches=caches, dev_start=dev)


def _svelte_kit(tree: Tree, package: PackageJson, findings: Findings) -> Built:
    config = _config(tree, "svelte.config") + _config(tree, "vite.config")
    adapter = next((match[1] for match in re.finditer(r"@sveltejs/adapter-([a-z-]{1,30})[\"']", config)), None)
    adapter = adapter or next(
        (each for each in ("node", "static", "auto") if package.has(f"@sveltejs/adapter-{each}")), "auto"
    )
    dev = re.compile(r"^vite\b")
    if adapter == "static":
        fallback = _setting(config, "fallback")
        output = _folder(config, "pages", "build")
        return Built("SvelteKit", "vite build", output=output, fallback=fallback, dev_start=dev)
    if adapter in {"node", "auto"}:
        # adapter-auto chooses adapter-node where it sees this variable; there is no other sign for a plain server
        env = (("GCP_BUILDPACKS", "1"),) if adapter == "auto" else ()
        folder = _folder(config, "out", "build") if adapter == "node" else "build"
        return Built("SvelteKit", "vite build", f"HOST=0.0.0.0 node {folder}", env=env, dev_start=dev)
    findings.refuse(
        f"This SvelteKit app is built for {adapter} (adapter-{adapter} in svelte.config.js)",
        todo="Use `@sveltejs/adapter-node`: npm install --save-dev @sveltejs/adapter-node",
    )
    return Built("SvelteKit", "vite build", "node build", dev_start=dev)


def _astro(tree: Tree, package: PackageJson, findings: Findings) -> Built:
    config = _config(tree, "astro.config")
    caches = ("node_modules/.astro",)
    output = _folder(config, "outDir", "dist")
    dev = re.compile(r"^astro\b")
    if package.has("@astrojs/node"):
        start = f"HOST=0.0.0.0 node ./{output}/server/entry.mjs"
        return Built("Astro", "astro build", start, caches=caches, dev_start=dev)
    if _setting(config, "output") == "server":
        findings.refuse(
            "This Astro app renders on a server, and has no adapter for Node",
            todo="Add one: npx astro add node",
        )
    return Built("Astro", "astro build", output=output, caches=caches, dev_start=dev)


def _react_router(tree: Tree, _package: PackageJson, _findings: Findings) -> Built:
    config = _config(tree, "react-router.config")
    folder = _folder(config, "buildDirectory", "build")
    caches = (".react-router",)
    if re.search(r"[\"']?\bssr[\"']?\s*:\s*false\b", config):
        fallback = "index.html"
        dev = re.compile(r"^(?:react-router|vite)\b")
        return Built(
            "React Router",
            "react-router build",
            output=f"{folder}/client",
            fallback=fallback,
            caches=caches,
            dev_start=dev,
        )
    start = f"react-router-serve ./{folder}/server/index.js"
    dev = re.compile(r"^react-router\s+dev\b")
    return Built("React Router", "react-router build", start, caches=caches, dev_start=dev)


def _remix(tree: Tree, _package: PackageJson, _findings: Findings) -> Built:
    is_vite = _config_file(tree, "vite.config") is not None
    start = "remix-serve ./build/server/index.js" if is_vite else "remix-serve ./build/index.js"
    build = "remix vite:build" if is_vite else "remix build"
    return Built("Remix", build, start, caches=(".cache",), dev_start=re.compile(r"^remix\s+(?:dev|vite:dev)\b"))


def _nest(_tree: Tree, package: PackageJson, _findings: Findings) -> Built:
    start = package.scripts.get("start:prod") or "node dist/main"
    return Built("Nest", "nest build", start, dev_start=re.compile(r"^nest\s+start\b"))


def _tanstack(_tree: Tree, _package: PackageJson, _findings: Findings) -> Built:
    return Built("TanStack Start", "vite build", "node .output/server/index.mjs", dev_start=re.compile(r"^vite\b"))


def _angular(tree: Tree, package: PackageJson, _findings: Findings) -> Built | None:
    output = _angular_output(tree)
    if output is None:
        return None
    dev = re.compile(r"^ng\s+serve\b")
    if package.has("@angular/ssr") and (
        serve := next((v for k, v in package.scripts.items() if k.startswith("serve:ssr")), None)
    ):
        return Built("Angular", "ng build", serve, caches=(".angular/cache",), dev_start=dev)
    return Built("Angular", "ng build", output=output, fallback="index.html", caches=(".angular/cache",), dev_start=dev)


def _angular_output(tree: Tree) -> str | None:
    try:
        content = json.loads(tree.source("angular.json", 256 * 1024))
        projects = content["projects"]
        name = content.get("defaultProject") or next(iter(projects))
        build = (projects[name].get("architect") or projects[name].get("targets"))["build"]
        path = build.get("options", {}).get("outputPath", f"dist/{name}")
        browser = "browser"
        if isinstance(path, dict):
            path, browser = path["base"], path.get("browser", browser)
        is_application = str(build.get("builder", "")).endswith(":application")
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        return None
    return inside(f"{path}/{browser}" if is_application and browser else str(path))


def _site(
    framework: str, build: str, output: str, *, fallback: str | None = None, caches: tuple[str, ...] = (), dev: str = ""
) -> Callable[[Tree, PackageJson, Findings], Built]:
    """A framework whose build is a folder of files."""

    def detect(_tree: Tree, _package: PackageJson, _findings: Findings) -> Built:
        pattern = re.compile(dev) if dev else None
        return Built(framework, build, output=output, fallback=fallback, caches=caches, dev_start=pattern)

    return detect


def _vite(tree: Tree, package: PackageJson, _findings: Findings) -> Built | None:
    build = package.scripts.get("build", "")
    config = _config(tree, "vite.config")
    if not (_config_file(tree, "vite.config") or "vite" in build or tree.has("index.html")):
        return None
    flag = re.search(r"--outDir[ =]([\w./-]{1,200})", build)
    output = (inside(flag[1]) if flag else None) or _folder(config, "outDir", "dist")
    fallback = "index.html"
    dev = re.compile(r"^vite(?:\s+(?:dev|serve|preview)\b.*|\s+-.*)?$")
    return Built("Vite", "vite build", output=output, fallback=fallback, caches=("node_modules/.vite",), dev_start=dev)


def _vitepress(_tree: Tree, package: PackageJson, _findings: Findings) -> Built:
    scripts = " ".join(package.scripts.values())
    folder = re.search(r"vitepress build ([\w./-]{1,100})", scripts)
    base = (inside(folder[1]) if folder else None) or ""
    output = f"{base}/.vitepress/dist".lstrip("/")
    name = next((key for key in ("docs:build", "build") if key in package.scripts), None)
    return Built(
        "VitePress",
        package.scripts[name] if name else "vitepress build",
        output=output,
        dev_start=re.compile(r"^vitepress\b"),
    )


def _expo(_tree: Tree, package: PackageJson, findings: Findings) -> Built | None:
    if not package.has("react-native-web"):
        findings.refuse(
            "This is an Expo app for phones, without a web build",
            todo="Add the web target: npx expo install react-dom react-native-web",
        )
    return Built(
        "Expo", "expo export --platform web", output="dist", fallback="index.html", dev_start=re.compile(r"^expo\b")
    )


_DETECTORS: tuple[tuple[str, Callable[[Tree, PackageJson, Findings], Built | None]], ...] = (
    ("next", _next),
    ("nuxt", _nuxt),
    ("@sveltejs/kit", _svelte_kit),
    ("astro", _astro),
    ("@tanstack/react-start", _tanstack),
    ("@react-router/dev", _react_router),
    ("@remix-run/dev", _remix),
    ("@nestjs/core", _nest),
    ("@angular/core", _angular),
    ("expo", _expo),
    (
        "react-scripts",
        _site(
            "Create React App",
            "react-scripts build",
            "build",
            fallback="index.html",
            caches=(_MODULES_CACHE,),
            dev=r"^react-scripts\s+start\b",
        ),
    ),
    (
        "@vue/cli-service",
        _site(
            "Vue CLI",
            "vue-cli-service build",
            "dist",
            fallback="index.html",
            caches=(_MODULES_CACHE,),
            dev=r"^vue-cli-service\s+serve\b",
        ),
    ),
    ("gatsby", _site("Gatsby", "gatsby build", "public", caches=(".cache", "public"), dev=r"^gatsby\b")),
    (
        "@docusaurus/core",
        _site("Docusaurus", "docusaurus build", "build", caches=(_MODULES_CACHE,), dev=r"^docusaurus\b"),
    ),
    ("@11ty/eleventy", _site("Eleventy", "eleventy", "_site", dev=r"eleventy\b.*--serve")),
    ("vitepress", _vitepress),
    ("hexo", _site("Hexo", "hexo generate", "public", dev=r"^hexo\s+s")),
    ("hugo-bin", _site("Hugo", "hugo", "public", dev=r"^hugo\s+server\b")),
    ("hugo-extended", _site("Hugo", "hugo", "public", dev=r"^hugo\s+server\b")),
    ("preact-cli", _site("Preact CLI", "preact build", "build", fallback="index.html", dev=r"^preact\b")),
    (
        "ember-cli",
        _site("Ember", "ember build --environment production", "dist", fallback="index.html", dev=r"^ember\s+s"),
    ),
    ("@quasar/app-vite", _site("Quasar", "quasar build", "dist/spa", fallback="index.html", dev=r"^quasar\s+dev\b")),
    ("vite", _vite),
    ("parcel", _site("Parcel", "parcel build index.html", "dist", fallback="index.html", dev=r"^parcel(?!\s+build)\b")),
)
"""By the package that is the sign of each, the more specific one first."""

SERVERS = (
    *(("express", "Express"), ("fastify", "Fastify"), ("koa", "Koa"), ("@hapi/hapi", "hapi"), ("hono", "Hono")),
    *(("@feathersjs/feathers", "Feathers"), ("@adonisjs/core", "AdonisJS"), ("@strapi/strapi", "Strapi")),
    *(("socket.io", "Socket.IO"), ("restify", "Restify"), ("polka", "Polka"), ("meteor-node-stubs", "Meteor")),
)
"""Libraries that an app's own server is written with: named, and started by the app's own script."""
