"""The runtime of a laptop: local processes behind a stable port per app, no container and no daemon.

Apps run as the user who runs knarr, with that user's rights: for code that you trust.
"""
