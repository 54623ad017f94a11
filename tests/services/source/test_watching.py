"""Patterns of `watch`: the same answers as git's for `.gitignore`."""

import subprocess
from pathlib import Path

import pytest

from services.source.watching import Watch

PATHS = (
    "package.json",
    "libs/a.py",
    "libs/deep/b.py",
    "apps/libs/c.py",
    "libs.txt",
    "docs/readme.md",
    "docs/deep/readme.md",
    "a b/[x].txt",
    "src/main-1.ts",
    "src/main-2.tsx",
)


@pytest.mark.parametrize(
    "patterns",
    [
        ["libs"],
        ["libs/"],
        ["/libs"],
        ["libs/**"],
        ["**/libs/*.py"],
        ["*.md"],
        ["docs/*.md"],
        ["docs/**/readme.md"],
        ["**/readme.md"],
        ["src/main-?.ts"],
        ["src/main-[0-1].ts*"],
        ["src/main-[!1].tsx"],
        ["src/**", "!src/main-1.ts"],
        ["*.md", "!readme.md"],
        ["a b/\\[x\\].txt"],
        ["/package.json", "docs/deep"],
        ["libs/*"],
        ["**"],
        ["nothing"],
    ],
    ids=" ".join,
)
def test_patterns_mean_what_they_mean_to_git(tmp_path: Path, patterns: list[str]) -> None:
    """Asked of git itself with the same patterns; a negation below a folder that matched is the one difference."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("".join(f"{each}\n" for each in patterns))
    asked = subprocess.run(
        ["git", "-C", tmp_path, "-c", "core.excludesFile=/dev/null", "check-ignore", "--no-index", "--stdin"],
        input="\n".join(PATHS),
        capture_output=True,
        text=True,
        check=False,
    )
    watch = Watch(patterns)
    assert [each for each in PATHS if watch.matches(each)] == asked.stdout.splitlines()


def test_a_negation_counts_also_below_a_folder_that_matched() -> None:
    """Git leaves a folder that it ignores alone; here each file is asked for."""
    assert [each for each in PATHS if not Watch(["*", "!*.md"]).matches(each)] == [
        "docs/readme.md",
        "docs/deep/readme.md",
    ]


def test_a_pattern_of_many_stars_is_no_slower_than_pattern_times_path() -> None:
    """Counted by a path that an expression with backtracking would not finish."""
    watch = Watch(["*a" * 90 + "b", "/".join(["**"] * 60) + "/x"])
    assert not watch.matches("a" * 4000)
    assert not watch.matches("/".join(["a"] * 500))
    assert watch.matches("/".join(["a"] * 500) + "/x")
