"""A staged image in; a published, verified, referenced image out."""
