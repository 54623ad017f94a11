"""Build-time variables in, those that decide what is installed out. Pure.

An installation gets these alone, and its layer's key holds them: after a change of any other config var nothing is
installed again. Where the app's own code runs in an installation (install scripts, a build backend), it gets all.
"""

import re
from collections.abc import Iterable, Mapping

_READ_BY_TOOLS = re.compile(
    # package managers and the interpreters that they start
    r"(PIP|PYPI|UV|POETRY|PDM|PIPENV|NPM|YARN|PNPM|BUN|COREPACK|NVM|GIT|CODEARTIFACT|KEYRING)_.+|(GH|GITHUB|GITLAB)_TOKEN"
    r"|NODE_(?!ENV$).+|PYTHON.*|NETRC|CI|(HTTPS?|ALL|NO)_PROXY"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    # compilers of packages with native code
    r"|CC|CXX|CPP|LD|AR|CPATH|(C|CPLUS)_INCLUDE_PATH|(LD_)?LIBRARY_PATH|(C|CXX|CPP|LD|ARCH|MAKE|RUST)FLAGS|MAX_JOBS"
    r"|(CMAKE|CARGO|RUST|RUSTUP|PKG_CONFIG|SETUPTOOLS|DISTUTILS|SKBUILD|MESON|MATURIN|NPY|CUDA|TORCH|GRPC_PYTHON)_.+"
    # install scripts of packages
    r"|(PUPPETEER|PLAYWRIGHT|CYPRESS|ELECTRON|SHARP|PRISMA|SENTRYCLI|HUSKY|CHROMEDRIVER|GECKODRIVER|OPENCOLLECTIVE)(_.+)?"
    r"|(.+_)?(SKIP|NO)_(.+_)?(DOWNLOADS?|INSTALL|POSTINSTALL)(_.+)?|(.+_)?BUILD_FROM_SOURCE|(.+_)?USE_SYSTEM_.+"
    r"|.+_(MIRROR|BINARY|BINARIES|CDNURL|BINARY_(HOST|PATH|SITE|NAME|URL)|DOWNLOAD_(HOST|URL|PATH|BASE_URL))",
    re.IGNORECASE,
)
_REFERENCE = re.compile(rb"\$\{?([A-Za-z_][A-Za-z0-9_]{0,127})")
"""`${TOKEN}` in `.npmrc`, `.yarnrc.yml`, a requirements file; `$TOKEN` in a Pipfile."""


def install_variables(variables: Mapping[str, str], files: Iterable[bytes]) -> dict[str, str]:
    """Return the variables that install tools, compilers and scripts of packages read, and those that files name.

    Args:
        variables: The app's build-time variables.
        files: Content of the files that say what is installed, and from where.
    """
    if not variables:
        return {}
    named = {found.decode() for content in files for found in _REFERENCE.findall(content)}
    return {name: value for name, value in variables.items() if name in named or _READ_BY_TOOLS.fullmatch(name)}
