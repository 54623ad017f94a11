"""Languages and generators that a builder does not have: each by its right name, from the file that shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from services.source.plan.findings import Findings
from services.source.plan.static import generator
from services.source.plan.tree import Tree

BuilderName = Literal["layers", "buildx", "buildpacks"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the platform can build."""

    builder: BuilderName = "layers"
    """The builder of the app: the platform's, unless the app's settings name another."""

    @property
    def has_docker(self) -> bool:
        """Whether a Dockerfile can be built."""
        return self.builder != "layers"


_LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "Ruby": ("Gemfile", "config.ru", "gems.rb"),
    "PHP": ("composer.json", "index.php", "artisan"),
    "Java": ("pom.xml", "pom.atom", "pom.kts"),
    "Java or Kotlin": ("build.gradle", "build.gradle.kts", "gradlew", "settings.gradle", "settings.gradle.kts"),
    "Scala": ("build.sbt",),
    "Clojure": ("project.clj", "deps.edn"),
    "Rust": ("Cargo.toml",),
    "Elixir": ("mix.exs",),
    "Gleam": ("gleam.toml",),
    "Deno": ("deno.json", "deno.jsonc", "deno.lock"),
    ".NET": ("*.csproj", "*.fsproj", "*.vbproj", "*.sln", "global.json", "*/*.csproj"),
    "Swift": ("Package.swift",),
    "Dart": ("pubspec.yaml",),
    "Crystal": ("shard.yml",),
    "Haskell": ("stack.yaml", "cabal.project", "*.cabal"),
    "C++": ("CMakeLists.txt", "meson.build"),
    "Perl": ("cpanfile",),
    "R": ("renv.lock", "DESCRIPTION", "init.R"),
    "Julia": ("Project.toml",),
}
"""Languages without a builder in knarr, with the files that show them; the first that fits counts."""
_PROGRAMS = {
    **dict.fromkeys(("bundle", "ruby", "rails", "rake", "puma", "unicorn", "rackup"), "Ruby"),
    **dict.fromkeys(("php", "vendor/bin/heroku-php-apache2", "vendor/bin/heroku-php-nginx"), "PHP"),
    **dict.fromkeys(("heroku-php-apache2", "heroku-php-nginx"), "PHP"),
    **dict.fromkeys(("java", "mvn", "./mvnw", "./gradlew"), "Java"),
    **dict.fromkeys(("cargo",), "Rust"),
    **dict.fromkeys(("mix", "elixir"), "Elixir"),
    **dict.fromkeys(("deno",), "Deno"),
    **dict.fromkeys(("dotnet",), ".NET"),
    **dict.fromkeys(("sbt",), "Scala"),
    **dict.fromkeys(("lein",), "Clojure"),
}
_BUILDPACKS = frozenset({"Ruby", "PHP", "Java", "Java or Kotlin", "Scala", "Clojure", ".NET", "Jekyll"})
"""What Heroku's public buildpacks build."""


def foreign_language(tree: Tree) -> tuple[str, str] | None:
    """The language that the files show, and the file; None: none of these."""
    for language, patterns in _LANGUAGES.items():
        if found := tree.matching(*patterns):
            return language, found[0]
    return None


def language_of_program(program: str) -> str | None:
    """The language of a program in a Procfile, where it is one that knarr cannot build."""
    return _PROGRAMS.get(program) or ("Java" if program.endswith(".jar") else None)


def refuse_language(language: str, file: str, capabilities: Capabilities, findings: Findings) -> None:
    """Say which language the app has, and which builder could build it."""
    article = "an" if language[0] in "AEIO" else "a"
    findings.refuse(
        f"This is {article} {language} app ({file}): the builder `{capabilities.builder}` has no {language}",
        todo=_with_docker(language, capabilities),
    )


def refuse_generator(tree: Tree, capabilities: Capabilities, findings: Findings) -> bool:
    """Refuse a site whose generator is not there; false: there is none."""
    found = generator(tree)
    if found is None:
        return False
    name, file, output = found
    package = "npm install --save-dev hugo-extended && npm pkg set scripts.build=hugo" if name == "Hugo" else ""
    commit = f"Build it and commit the folder `{output}`"
    findings.refuse(
        f"This is a {name} site ({file}): the builder `{capabilities.builder}` has no {name}",
        todo=f"{commit}{', or take it from npm: ' + package if package else ', or add a Dockerfile'}.",
    )
    return True


def _with_docker(language: str, capabilities: Capabilities) -> str:
    if capabilities.has_docker:
        return (
            "Add a Dockerfile, or set KNARR_BUILDER=buildpacks."
            if language in _BUILDPACKS
            else "Add a Dockerfile: the builder `buildx` builds it."
        )
    if language in _BUILDPACKS:
        return "With a Docker engine: set KNARR_BUILDER=buildpacks, or add a Dockerfile and set KNARR_BUILDER=buildx."
    return "With a Docker engine: add a Dockerfile and set KNARR_BUILDER=buildx."


_SYSTEM_PACKAGES = ("Aptfile", "apt.txt", "packages.txt")


def name_system_packages(tree: Tree, findings: Findings) -> None:
    """Lists of packages of the operating system are not installed; they are named."""
    for file in filter(tree.has, _SYSTEM_PACKAGES):
        words = [line.strip() for line in tree.source(file).split("\n")]
        if any(word and not word.startswith("#") for word in words):
            findings.note(f"not honoured: {file}: packages of the operating system are not installed; a Dockerfile can")
