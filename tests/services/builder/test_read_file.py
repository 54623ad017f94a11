"""Files of the app that a builder reads, by name."""

from pathlib import Path

import pytest

from services.builder.adapters.layers.workshop import read_file
from services.builder.errors import CannotBuild


def test_a_link_inside_the_app_is_followed(tmp_path: Path) -> None:
    """As git's own tools and the package managers do."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "prod.txt").write_bytes(b"flask\n")
    (tmp_path / "requirements.txt").symlink_to("conf/prod.txt")
    (tmp_path / "folder").symlink_to("conf")
    assert read_file(tmp_path, "requirements.txt") == b"flask\n"
    assert read_file(tmp_path, "folder/prod.txt") == b"flask\n"
    assert read_file(tmp_path, "gone.txt") is None


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside"])
def test_a_link_that_leads_out_of_the_app_is_refused(tmp_path: Path, target: str) -> None:
    """Whatever the archive's own checks let in."""
    app = tmp_path / "app"
    app.mkdir()
    (tmp_path / "outside").write_bytes(b"secret")
    (app / "Procfile").symlink_to(target)
    with pytest.raises(CannotBuild, match="Procfile leads out of the app's folder"):
        read_file(app, "Procfile")
