"""`python -m knarr` is `knarr`."""

from knarr.cli import main

if __name__ == "__main__":
    main()
