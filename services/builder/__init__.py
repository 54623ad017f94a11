"""An archive in; a staged image out."""
