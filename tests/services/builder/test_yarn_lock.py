"""Entries of Yarn 1 without an address: found, and given the registry's."""

from services.builder.install.yarn_lock import unresolved, with_addresses

LOCK = """# yarn lockfile v1


"@scope/one@^1.0.0", "@scope/one@^1.1.0":
  version "1.2.0"
  dependencies:
    ms "^2.0.0"

alias@npm:real@^3.0.0:
  version "3.1.0"

"lib@file:./lib":
  version "1.0.0"

ms@^2.0.0:
  version "2.0.0"
  integrity sha512-abc==

"three@acme/three":
  version "1.0.0"

two@1.0.0:
  version "1.0.0"
  resolved "somewhere/two-1.0.0.tgz#1234"
"""


def test_only_packages_of_the_registry_without_an_address_are_named() -> None:
    """Paths, repositories and entries with an address stay as they are."""
    assert unresolved(LOCK) == ("@scope/one@^1.0.0", "alias@npm:real@^3.0.0", "ms@^2.0.0")
    assert unresolved("") == ()


def test_addresses_are_those_of_the_registry_in_use() -> None:
    """By the package's own name, also behind an alias; a second pass finds nothing."""
    done = with_addresses(LOCK, "http://registry/npm/")
    assert '  version "1.2.0"\n  resolved "http://registry/npm/@scope/one/-/one-1.2.0.tgz"\n' in done
    assert '  version "3.1.0"\n  resolved "http://registry/npm/real/-/real-3.1.0.tgz"\n' in done
    assert '  version "2.0.0"\n  resolved "http://registry/npm/ms/-/ms-2.0.0.tgz"\n  integrity sha512-abc==\n' in done
    assert done.count("resolved") == 4
    assert unresolved(done) == ()
