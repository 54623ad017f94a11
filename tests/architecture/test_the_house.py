"""What every reader looks for is there, and numbered."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_decisions_are_numbered_without_gaps() -> None:
    """`docs/adr/0001-….md`, `0002-….md` …: a missing number would be a lost decision."""
    numbers = sorted(int(each.name[:4]) for each in (ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert numbers, "there are no decisions yet"
    assert numbers == list(range(1, len(numbers) + 1))


def test_each_decision_says_context_options_decision_and_price() -> None:
    """A decision without its price is an advertisement."""
    for page in (ROOT / "docs" / "adr").glob("[0-9]*.md"):
        text = page.read_text().lower()
        for part in ("context", "options", "decision", "price"):
            assert re.search(rf"^#+ .*{part}|^\*\*{part}", text, re.MULTILINE), (page.name, part)


def test_the_changelog_begins_with_what_is_not_released() -> None:
    """Each change that a user would notice is a line in it."""
    assert "## " in (ROOT / "CHANGELOG.md").read_text()


def test_every_make_target_has_a_sentence() -> None:
    """`make help` lists every target that people call."""
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    described = set(re.findall(r"^([a-z-]+):.*## .+\.$", text, re.MULTILINE))
    assert described == set(phony.split())


def test_make_help_lists_the_targets() -> None:
    """It is also what plain `make` does."""
    answer = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("run", "test", "install", "help"):
        assert re.search(rf"^  {target} .+\.$", answer.stdout, re.MULTILINE)


def test_links_between_pages_lead_somewhere() -> None:
    """A relative link in the documentation names a file that exists."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
