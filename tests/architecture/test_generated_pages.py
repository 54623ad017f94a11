"""Pages that are made from the code say what the code says."""

from knarr import docs


def test_the_messages_page_is_what_the_contracts_say() -> None:
    """`make docs` writes it."""
    assert docs.PAGE.read_text() == docs.page()
