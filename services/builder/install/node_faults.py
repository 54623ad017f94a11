"""The output of a failed package manager of Node in; whose fault that is, in words, out. Pure.

An install script (`preinstall`, `install`, `postinstall` of a package or of the app) is code of the app's build. What
it downloads or compiles, and what it prints about that, says nothing about the package registry. Only the package
manager's own line about a connection does.
"""

import re
from collections.abc import Sequence

from services.builder.errors import BuildFailed, RegistryUnavailable
from services.source.contract import Packages

SCRIPT_FAILED = "install_script_failed"
"""Code of the error of a failed install script."""
_CODES = (
    rb"(?:ECONNRESET|ECONNREFUSED|ECONNABORTED|EHOSTUNREACH|ENETUNREACH|ETIMEDOUT|ESOCKETTIMEDOUT|ENOTFOUND|EAI_AGAIN"
    rb"|EPIPE|ERR_SOCKET_TIMEOUT|E5\d\d|E429)\b"
)
AWAY = re.compile(
    rb"^(?:npm (?:error |ERR! ))+(?:code|errno) " + _CODES  # also of an npm that a script of the app starts
    + rb"|^[\s\xe2\x80\x89]*ERR_PNPM_(?:(?:\w+_)?FETCH_(?:5\d\d|429)|META_FETCH_FAIL)"
    + rb"|^[\s\xe2\x80\x89]*" + _CODES + rb"(?:  |\xe2\x80\x89)"
    + rb"|^error (?:An unexpected error occurred: .*|Error: .*)(?:" + _CODES + rb"|request failed \W*(?:5\d\d|429))"
    rb"|^error .*: Request failed \W*(?:5\d\d|429)"
    rb"|YN00(?:01|35): .*(?:" + _CODES + rb"|Response Code\W+(?:5\d\d|429)|Timeout awaiting)"
    rb"|^error: (?:ConnectionRefused|ConnectionClosed|ConnectionReset|FailedToOpenSocket|Timeout|DNS\w*) "
    rb"|^error: GET \S+ - (?:5\d\d|429)\b"
)  # fmt: skip
"""A line of npm, pnpm, Yarn or Bun itself that says that the registry did not answer."""
_TROUBLE = re.compile(rb"There appears to be trouble with your network connection")
"""A warning of Yarn 1, after which the next attempt may have been answered."""
_SCRIPT = re.compile(
    rb"^npm (?:error|ERR!) (?P<npm>command) (?:failed|sh -c|/bin/sh -c)"
    rb"|^npm ERR! (?P<npm6>(?:@[\w.-]+/)?[\w.-]+)@\S+ (?P<npm6_script>\w+): `"
    rb"|^(?:\S*/node_modules/)?+(?P<pnpm>\S++) (?P<pnpm_script>\w+): Failed$|^\s*(?P<lifecycle>ELIFECYCLE)\b"
    rb"|^error (?P<yarn>\S*): Command failed\.|^error (?P<yarn_own>Command failed) with"
    rb"|YN0009: \W*(?P<berry>@?[^@\s]+)@\S+ couldn't be built"
    rb"|^error: (?P<bun_script>\w+) script from \"(?P<bun>[^\"]+)\" "
)
_PATH = re.compile(rb"^npm (?:error|ERR!) path (\S+)")
_OF_PATH = re.compile(rb".*/node_modules/((?:@[^/\s]+/)?[^/\s]+)$")
_MARKS = re.compile(
    rb"^(?:(?:npm (?:error|ERR!) ?)+|\S+ (?:pre|post)?(?:install|prepare)(?:: |\$ )"
    rb"|\xe2\x9e\xa4 YN\d+: \xe2\x94\x82 \S+ STD(?:ERR|OUT) )"
)
_OF_THE_TOOL = re.compile(
    rb"^(?:code \w+|path |command |errno |A complete log|.*/_logs/|.*`$|Exit status|Failed at the |This is probably not"
    rb"|(?:npm |)(?:WARN|warn|notice|info|warning)\b|(?:Exit code|Command|Arguments|Directory|Output):|.*Command failed"
    rb"|\xe2\x9e\xa4|Progress: |Packages: |\++$|Failed$|> |\[\d/\d\]|.* script from \".*\" |yarn install v"
    rb"|node:|at |Done in)"
)
_NO_COMPILER = re.compile(rb"gyp ERR! find Python|not found: make|gyp ERR! stack Error: Could not find any Python")
_DOWNLOAD = re.compile(
    rb"\b(?:ENOTFOUND|ECONNREFUSED|ETIMEDOUT|EAI_AGAIN|ECONNRESET|ENETUNREACH)\b|Could not resolve host"
)
_OUT_OF_DATE = re.compile(
    rb"are in sync|ERR_PNPM_OUTDATED_LOCKFILE|ERR_PNPM_LOCKFILE_CONFIG_MISMATCH|Your lockfile needs to be updated"
    rb"|YN0028|lockfile had changes, but lockfile is frozen|ERR_PNPM_FROZEN_LOCKFILE"
)
_REASON = re.compile(
    rb"^(?:npm (?:error|ERR!)\s*(?P<npm>.*)|.*(?P<pnpm>ERR_PNPM_.*)|(?:[Uu]sage )?[Ee]rror:? (?P<yarn>.*)"
    rb"|.*\xe2\x9e\xa4 (?P<berry>YN(?!00(?:00|02|07|13|19|60|61|68|76|85|86))\d+: .*)"
    rb"|(?P<plain>Failure reason:.*|specifiers in the lockfile.*|\s*\* .*))"
)
_NOISE = re.compile(
    rb"^(code \w+|A complete log of this run.*|Clean install a project|Usage:.*|errno .*|\[?-.*|.*/_logs/.*"
    rb"|`npm ci` can only install packages.*|Options:|aliases?: .*|Run \"npm help.*|npm ci|\[--.*)$"
)
_THIN_SPACE = "\u2009".encode()
"""pnpm surrounds its codes with it; in an expression on bytes it is no white space."""
_MAX_REASONS = 6
_MAX_REASON_BYTES = 300
_MAX_SAID = 3
"""Last lines of an install script that the error repeats."""
_REFRESH = {
    "npm": "npm install --package-lock-only",
    "pnpm": "pnpm install --lockfile-only",
    "yarn": "yarn install",
    "bun": "bun install --lockfile-only",
}


def reasons(lines: Sequence[bytes]) -> tuple[str, ...]:
    """Return the lines of a tool's output that say why it failed, without its usage text; the first few."""
    found: list[str] = []
    for line in lines:
        match = _REASON.match(line)
        text = next((group for group in match.groups() if group is not None), b"").strip() if match else b""
        if text.startswith((b"Clean install a project", b"Usage:")):
            break
        if text and not _NOISE.match(text):
            shown = text[:_MAX_REASON_BYTES].decode(errors="replace")
            if shown not in found:
                found.append(shown)
    return tuple(found[:_MAX_REASONS])


def install_failed(packages: Packages, ending: str, lines: Sequence[bytes]) -> BuildFailed | RegistryUnavailable:
    """Return the error for an installation that failed: the tool's own first reasons, not its usage text."""
    lines = _plain(lines)
    why = "; ".join(reasons(lines)) or ending
    if any(_OUT_OF_DATE.search(line) for line in lines):
        refresh = _REFRESH[packages.tool]
        return BuildFailed(
            f"package.json and {packages.lock or 'its lock file'} do not agree",
            why=why,
            todo=f"Run `{refresh}` and commit {packages.lock or 'the lock file'}.",
            code="lock_out_of_date",
        )
    if any(AWAY.search(line) for line in lines):
        return RegistryUnavailable("The npm registry did not answer", why=why)
    if (script := script_failed(lines, ending)) is not None:
        return script
    if any(_TROUBLE.search(line) for line in lines):
        return RegistryUnavailable("The npm registry did not answer", why=why)
    return BuildFailed(
        f"The packages of {packages.lock or 'package.json'} could not be installed",
        why=f"{why} ({packages.tool}: {ending})" if why != ending else ending,
        todo="The last lines of the log say why.",
    )


def _plain(lines: Sequence[bytes]) -> list[bytes]:
    return [line.replace(_THIN_SPACE, b" ") for line in lines]


def script_failed(lines: Sequence[bytes], ending: str) -> BuildFailed | None:
    """Return the error for an install script that failed, with its package and last lines; None: none did.

    Args:
        lines: The last lines of the output.
        ending: How the tool ended: `exit code 1`.
    """
    lines = _plain(lines)
    found = [match for line in lines if (match := _SCRIPT.search(line))]
    if not found:
        return None
    name = next((each for match in found if (each := _package_of(match, lines))), "")
    said = [text for line in lines if (text := _MARKS.sub(b"", line).strip()) and not _OF_THE_TOOL.match(text)]
    output = b"\n".join(said)
    todo = "The last lines of the log say why."
    if _NO_COMPILER.search(output):
        todo = "It compiles code: the machine that builds needs Python, make and a C++ compiler."
    elif _DOWNLOAD.search(output):
        todo = (
            "It downloads a file: use a version of the package that needs none, or let the builder reach that address."
        )
    return BuildFailed(
        f"An install script of {name[:200]} failed" if name else "An install script of the app failed",
        why="; ".join(text[:_MAX_REASON_BYTES].decode(errors="replace") for text in said[-_MAX_SAID:]) or ending,
        todo=todo,
        code=SCRIPT_FAILED,
    )


def _package_of(match: re.Match[bytes], lines: Sequence[bytes]) -> str:
    """Name of the package whose script failed; empty: the app itself, or not known."""
    groups = match.groupdict()
    if groups["npm"]:
        path = next((found[1] for line in lines if (found := _PATH.match(line))), b"")
    else:
        path = groups["yarn"] or b""
    if inside := _OF_PATH.match(path):
        return inside[1].decode(errors="replace")
    if groups["berry"] and b"@workspace:" in match.string:
        return ""
    name = groups["npm6"] or groups["pnpm"] or groups["berry"] or groups["bun"] or b""
    return "" if name == b"." else name.decode(errors="replace")
