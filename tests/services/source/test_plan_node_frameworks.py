"""Frameworks of Node: servers, and builds that are served as files; and apps of several languages."""

import re
from typing import Any

import pytest

from tests.services.source.planning import Files, planned, refused, said, web

START: dict[str, Any] = {"name": "shop", "scripts": {"start": "node server.js"}, "dependencies": {"ms": "^2.0.0"}}
PNPM_9 = "lockfileVersion: '9.0'\nimporters: {}\n"


def package(**fields: Any) -> dict[str, Any]:
    """A `package.json`."""
    return {"package.json": {**START, **fields}}


BUILD = {"build": "x"}


@pytest.mark.parametrize(
    ("fields", "files", "framework", "command"),
    [
        (
            {"dependencies": {"next": "15"}, "scripts": {"build": "next build", "start": "next start"}},
            {},
            "Next.js",
            "next start",
        ),
        ({"dependencies": {"next": "15"}, "scripts": {}}, {}, "Next.js", "next start -p $PORT"),
        ({"dependencies": {"next": "15"}, "scripts": {"start": "next dev"}}, {}, "Next.js", "next start -p $PORT"),
        (
            {"dependencies": {"nuxt": "3"}, "scripts": {"build": "nuxt build"}},
            {},
            "Nuxt",
            "node .output/server/index.mjs",
        ),
        (
            {
                "devDependencies": {"@sveltejs/kit": "2", "@sveltejs/adapter-node": "5"},
                "scripts": {"build": "vite build"},
            },
            {"svelte.config.js": "import a from '@sveltejs/adapter-node';"},
            "SvelteKit",
            "HOST=0.0.0.0 node build",
        ),
        (
            {
                "devDependencies": {"@sveltejs/kit": "2", "@sveltejs/adapter-auto": "3"},
                "scripts": {"build": "vite build"},
            },
            {"svelte.config.js": "import a from '@sveltejs/adapter-auto';"},
            "SvelteKit",
            "HOST=0.0.0.0 node build",
        ),
        (
            {
                "dependencies": {"astro": "5", "@astrojs/node": "9"},
                "scripts": {"build": "astro build", "start": "astro dev"},
            },
            {},
            "Astro",
            "HOST=0.0.0.0 node ./dist/server/entry.mjs",
        ),
        (
            {"devDependencies": {"@react-router/dev": "7"}, "scripts": BUILD},
            {},
            "React Router",
            "react-router-serve ./build/server/index.js",
        ),
        (
            {"devDependencies": {"@remix-run/dev": "2"}, "scripts": BUILD},
            {"vite.config.ts": ""},
            "Remix",
            "remix-serve ./build/server/index.js",
        ),
        (
            {
                "dependencies": {"@nestjs/core": "11"},
                "scripts": {"build": "nest build", "start": "nest start", "start:prod": "node dist/main"},
            },
            {},
            "Nest",
            "node dist/main",
        ),
        (
            {
                "dependencies": {"vite": "6", "express": "4"},
                "scripts": {"build": "vite build", "start": "node server.js"},
            },
            {"index.html": ""},
            "Vite",
            "node server.js",
        ),
    ],
)
def test_a_framework_with_a_server_of_its_own(
    fields: dict[str, Any], files: Files, framework: str, command: str
) -> None:
    """Its build, and its server in place of the development server."""
    found = planned(package(**fields) | dict(files))
    assert (found.runtime.kind, found.framework, web(found)) == ("node", framework, command)
    assert len(found.build) <= 1


def test_adapter_auto_is_made_to_build_a_server() -> None:
    """It chooses adapter-node where this variable is set."""
    dev = {"@sveltejs/kit": "2", "@sveltejs/adapter-auto": "3"}
    found = planned(package(devDependencies=dev, scripts={"build": "vite build"}))
    assert found.build[0].env == {"GCP_BUILDPACKS": "1"}


def test_next_keeps_its_cache_and_sends_no_telemetry() -> None:
    """From one build of the app to the next."""
    found = planned(package(dependencies={"next": "15"}, scripts={"build": "next build", "start": "next start"}))
    assert ".next/cache" in found.build[0].caches
    assert found.build[0].env["NEXT_TELEMETRY_DISABLED"] == "1"


@pytest.mark.parametrize(
    ("fields", "files", "framework", "output", "fallback"),
    [
        (
            {"devDependencies": {"vite": "6"}, "scripts": {"build": "vite build"}},
            {"index.html": ""},
            "Vite",
            "dist",
            "index.html",
        ),
        (
            {"devDependencies": {"vite": "6"}, "scripts": {"build": "vite build", "start": "vite"}},
            {},
            "Vite",
            "dist",
            "index.html",
        ),
        (
            {"devDependencies": {"vite": "6"}, "scripts": {"build": "tsc && vite build --outDir=out"}},
            {},
            "Vite",
            "out",
            "index.html",
        ),
        (
            {"devDependencies": {"vite": "6"}, "scripts": {"build": "vite build"}},
            {"vite.config.ts": "build: { outDir: './www' }"},
            "Vite",
            "www",
            "index.html",
        ),
        (
            {
                "dependencies": {"react-scripts": "5"},
                "scripts": {"build": "react-scripts build", "start": "react-scripts start"},
            },
            {},
            "Create React App",
            "build",
            "index.html",
        ),
        (
            {"devDependencies": {"@vue/cli-service": "5"}, "scripts": {"build": "vue-cli-service build"}},
            {},
            "Vue CLI",
            "dist",
            "index.html",
        ),
        (
            {"dependencies": {"next": "15"}, "scripts": {"build": "next build", "start": "next start"}},
            {"next.config.mjs": "export default { output: 'export' }"},
            "Next.js",
            "out",
            None,
        ),
        (
            {"dependencies": {"astro": "5"}, "scripts": {"build": "astro build", "start": "astro dev"}},
            {},
            "Astro",
            "dist",
            None,
        ),
        (
            {"dependencies": {"nuxt": "3"}, "scripts": {"build": "nuxt generate"}},
            {},
            "Nuxt",
            ".output/public",
            "200.html",
        ),
        (
            {"devDependencies": {"@sveltejs/kit": "2"}, "scripts": {"build": "vite build"}},
            {"svelte.config.js": "import a from '@sveltejs/adapter-static'; a({ fallback: '200.html' })"},
            "SvelteKit",
            "build",
            "200.html",
        ),
        (
            {"devDependencies": {"@react-router/dev": "7"}, "scripts": BUILD},
            {"react-router.config.ts": "export default { ssr: false }"},
            "React Router",
            "build/client",
            "index.html",
        ),
        (
            {"dependencies": {"@angular/core": "19"}, "scripts": {"build": "ng build", "start": "ng serve"}},
            {
                "angular.json": {
                    "projects": {
                        "shop": {"architect": {"build": {"builder": "@angular/build:application", "options": {}}}}
                    }
                }
            },
            "Angular",
            "dist/shop/browser",
            "index.html",
        ),
        (
            {"dependencies": {"@angular/core": "15"}, "scripts": {"build": "ng build"}},
            {
                "angular.json": {
                    "projects": {
                        "shop": {
                            "architect": {
                                "build": {
                                    "builder": "@angular-devkit/build-angular:browser",
                                    "options": {"outputPath": "dist/x"},
                                }
                            }
                        }
                    }
                }
            },
            "Angular",
            "dist/x",
            "index.html",
        ),
        ({"devDependencies": {"@11ty/eleventy": "3"}, "scripts": {}}, {}, "Eleventy", "_site", None),
        (
            {
                "dependencies": {"@docusaurus/core": "3"},
                "scripts": {"build": "docusaurus build", "start": "docusaurus start"},
            },
            {},
            "Docusaurus",
            "build",
            None,
        ),
        (
            {"dependencies": {"gatsby": "5"}, "scripts": {"build": "gatsby build", "start": "gatsby develop"}},
            {},
            "Gatsby",
            "public",
            None,
        ),
        (
            {"devDependencies": {"vitepress": "1"}, "scripts": {"docs:build": "vitepress build docs"}},
            {},
            "VitePress",
            "docs/.vitepress/dist",
            None,
        ),
        (
            {"devDependencies": {"hugo-extended": "0.1"}, "scripts": {"build": "hugo"}},
            {"hugo.toml": ""},
            "Hugo",
            "public",
            None,
        ),
        (
            {
                "devDependencies": {"parcel": "2"},
                "scripts": {"build": "parcel build index.html", "start": "parcel index.html"},
            },
            {},
            "Parcel",
            "dist",
            "index.html",
        ),
        (
            {"dependencies": {"expo": "51", "react-native-web": "0.19"}, "scripts": {"start": "expo start"}},
            {},
            "Expo",
            "dist",
            "index.html",
        ),
    ],
)
def test_a_build_of_files_is_served(
    fields: dict[str, Any], files: Files, framework: str, output: str, fallback: str | None
) -> None:
    """From the folder that the framework's build makes, with its page for unknown paths."""
    found = planned(package(**{"dependencies": {}, **fields}) | dict(files))
    assert (found.runtime.kind, found.framework) == ("static", framework)
    assert (found.output, found.fallback, found.processes) == (output, fallback, {})
    assert len(found.build) == 1


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (package(scripts={}, dependencies={}), "Nothing says how to start this node app"),
        (package(scripts={}, dependencies={}) | {"src/server.ts": ""}, "src/server.ts is TypeScript"),
        (
            package(scripts=BUILD, devDependencies={"@sveltejs/kit": "2"})
            | {"svelte.config.js": "from '@sveltejs/adapter-vercel'"},
            "built for vercel.*adapter-node",
        ),
        (
            package(scripts=BUILD, dependencies={"astro": "5"}) | {"astro.config.mjs": "output: 'server'"},
            "no adapter for Node",
        ),
        (package(scripts={"start": "expo start"}, dependencies={"expo": "51"}), "Expo app for phones"),
    ],
)
def test_what_cannot_run_on_a_server_is_refused_with_advice(files: Files, says: str) -> None:
    """The command that helps is in it."""
    assert re.search(says, refused(files))


def test_a_page_beside_a_package_json_that_does_nothing_is_a_static_site() -> None:
    """Its package.json only names the project."""
    found = planned({"package.json": {"name": "site"}, "index.html": ""})
    assert (found.runtime.kind, found.output) == ("static", None)


PYTHON: dict[str, Any] = {"requirements.txt": "flask\n", "Procfile": "web: python app.py"}


def test_a_python_app_with_a_front_end_builds_both_and_node_comes_first() -> None:
    """The front end is there when Python gathers its files."""
    found = planned(PYTHON | package(scripts={"build": "vite build"}))
    assert found.runtime.kind == "python"
    assert [each.language for each in found.packages] == ["node", "python"]
    assert [step.language for step in found.build] == ["node"]


def test_a_package_json_without_a_build_is_passed_over_with_a_note() -> None:
    """As one that only holds a formatter."""
    found = planned(PYTHON | {"package.json": {"devDependencies": {"prettier": "3"}}})
    assert [each.language for each in found.packages] == ["python"]
    assert "package.json: passed over" in said(found)


def test_the_program_in_the_procfile_decides_between_two_languages() -> None:
    """Both are installed."""
    found = planned({"requirements.txt": "x\n", **package(), "Procfile": "web: node server.js"})
    assert found.runtime.kind == "node"
    assert [each.language for each in found.packages] == ["node", "python"]


def test_without_a_procfile_the_language_that_has_a_start_decides() -> None:
    """Python where both have one."""
    scripts = {"requirements.txt": "x\n", **package()}
    assert planned(scripts).runtime.kind == "node"
    assert planned(scripts | {"main.py": "PORT"}).runtime.kind == "python"
