"""`node_modules` of an app as links into a layer that releases share."""

import shutil
from pathlib import Path

from services.builder.adapters.layers.node_tree import link

MODULES = Path("node_modules")


def test_one_link_is_enough_where_no_package_is_the_app_s_own(tmp_path: Path) -> None:
    """All packages are in the layer."""
    app, layer = tmp_path / "app", tmp_path / "layers" / "node"
    (layer / MODULES / "ms").mkdir(parents=True)
    app.mkdir()
    link(app, layer, [MODULES])
    assert (app / MODULES).readlink() == Path("../layers/node/node_modules")


def test_packages_of_the_app_itself_are_found_where_the_layer_is_elsewhere(tmp_path: Path) -> None:
    """The layer is shared by releases, so a link in it cannot lead into the app of one of them."""
    root = tmp_path / "build"
    app, layer = root / "app", root / "layers" / "node"
    for folder in (app / "lib", app / "ui", layer / MODULES / "ms", layer / MODULES / "@shop" / "far"):
        folder.mkdir(parents=True)
    (layer / MODULES / "lib").symlink_to("../../../app/lib")
    (layer / MODULES / "@shop" / "ui").symlink_to("../../../../app/ui")
    link(app, layer, [MODULES])

    release = tmp_path / "release"
    release.mkdir()
    shutil.move(layer, tmp_path / "shared")
    shutil.move(app, release / "app")
    (release / "layers").mkdir()
    (release / "layers" / "node").symlink_to(tmp_path / "shared")
    found = release / "app" / MODULES
    assert (found / "lib").resolve() == release / "app" / "lib"
    assert (found / "@shop" / "ui").resolve() == release / "app" / "ui"
    assert (found / "ms").resolve() == tmp_path / "shared" / MODULES / "ms"
    assert (found / "@shop" / "far").resolve() == tmp_path / "shared" / MODULES / "@shop" / "far"
