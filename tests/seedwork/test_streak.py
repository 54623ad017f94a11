"""Failures in a row are noticed, and an answer about an app ends the row."""

from seedwork.streak import Streak


def test_only_faults_of_the_platform_make_a_row() -> None:
    """One may pass by itself; a success or a final failure ends it."""
    streak = Streak()
    streak.note("FetchSource", retryable=True, message="no folder")
    assert streak.trouble == ""
    streak.note("FetchSource", retryable=True, message="no folder mirrors")
    assert streak.trouble == "the last 2 attempts failed, the latest of FetchSource: no folder mirrors"
    streak.note("FetchSource", retryable=False, message="There is no branch main")
    assert streak.trouble == ""
