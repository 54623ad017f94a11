"""Which config vars an installation depends on."""

import pytest

from services.builder.install.variables import install_variables

READ = (
    *("NPM_CONFIG_REGISTRY", "npm_config_build_from_source", "NPM_TOKEN", "NODE_AUTH_TOKEN", "NODE_OPTIONS"),
    *("PIP_INDEX_URL", "UV_INDEX_OURS_PASSWORD", "POETRY_HTTP_BASIC_OURS_PASSWORD", "YARN_NPM_AUTH_TOKEN"),
    *("HTTPS_PROXY", "no_proxy", "GITHUB_TOKEN", "GIT_CONFIG_COUNT", "CFLAGS", "LD_LIBRARY_PATH", "CARGO_HOME"),
    *("PUPPETEER_SKIP_DOWNLOAD", "CYPRESS_INSTALL_BINARY", "PLAYWRIGHT_BROWSERS_PATH", "SASS_BINARY_SITE", "HUSKY"),
)
NOT_READ = (
    *("API_KEY", "DATABASE_URL", "SECRET_KEY_BASE", "NODE_ENV", "PORT", "NEXT_PUBLIC_API", "GOOGLE_API_KEY"),
    *("GITHUB_CLIENT_SECRET", "SKIP_AUTH", "CIRCLE", "LEDGER", "VITE_TITLE"),
)


@pytest.mark.parametrize("name", READ)
def test_an_installation_depends_on_what_its_tools_read(name: str) -> None:
    """Package managers, compilers, install scripts of packages."""
    assert install_variables({name: "x"}, []) == {name: "x"}


@pytest.mark.parametrize("name", NOT_READ)
def test_an_installation_does_not_depend_on_what_only_the_app_reads(name: str) -> None:
    """Of these a change installs nothing again."""
    assert install_variables({name: "x"}, []) == {}


def test_an_installation_depends_on_what_its_files_name() -> None:
    """Credentials of a private index have names of the project's choice."""
    files = [b"//npm.test/:_authToken=${OURS}\n", b'url = "https://$PIPENV_USER:${THEIRS-none}@pypi.test/simple"']
    given = dict.fromkeys(("OURS", "THEIRS", "PIPENV_USER", "OTHER"), "x")
    assert set(install_variables(given, files)) == {"OURS", "THEIRS", "PIPENV_USER"}
