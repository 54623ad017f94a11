"""Pure rules that turn `Packages` into commands; the builders `layers` and `buildx` share them."""
