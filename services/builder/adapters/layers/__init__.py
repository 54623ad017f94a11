"""The builder `layers`: an OCI image without a daemon, from the app's description and its language's package manager.

What an image looks like inside:

    /app                    the archive, unchanged; every process starts here
    /layers/python          bin/ (python and the packages' scripts), lib/ (packages), site/ (isolation from the host)
    /layers/node            bin/ (node, npm, npx), node_modules/ (/app/node_modules is a relative link to it)
    /layers/static          bin/, the file server's module

There is no operating system in it: label `io.knarr.base` is `host`, and `bin/python` or `bin/node` is a two-line script
that starts the interpreter of the machine that built it. Dependencies are a layer of their own, kept in a cache by what
went into them, so that a changed line of the app makes one small new layer. Layers are uncompressed tars: packing costs
little more than reading the files, and their digest is their diff id (OCI image-spec 1.1, "layer").
"""
