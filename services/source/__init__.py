"""The exact commit in; an archive by digest and the app's description out."""
