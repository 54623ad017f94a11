# One image for all six services and the command line:
#
#   docker build --tag knarr .
#   docker run … knarr python -m services.builder
#   docker run … knarr knarr db upgrade
#
# Another package index, or a certificate authority for it: a pip.conf as a secret, which no layer keeps:
#
#   docker build --secret id=pip,src=$HOME/.config/pip/pip.conf --tag knarr .
#
# Written for the Dockerfile frontend of BuildKit 0.8 (Docker 20.10): no here-documents, no `# syntax=`.

ARG PYTHON_IMAGE=python:3.11-slim
ARG TOOLS_IMAGE=debian:trixie-slim

# --- the Docker client and buildx, which the builder `buildx` runs; no engine ---------------------------------------
FROM ${TOOLS_IMAGE} AS tools
RUN apt-get update \
    && apt-get install --yes --no-install-recommends docker-cli docker-buildx

# --- Python packages, each with the hash that is written down: a layer that a change of knarr does not touch ---------
FROM ${PYTHON_IMAGE} AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/knarr
WORKDIR /build
COPY requirements-stack.txt ./
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m pip --python /opt/knarr/bin/python install --no-compile --only-binary=:all: --require-hashes \
        --requirement requirements-stack.txt \
    && find /opt/knarr \( -name '*.c' -o -name '*.pyx' \) -delete \
    && python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/knarr/lib

# --- knarr itself ---------------------------------------------------------------------------------------------------
FROM packages AS knarr
COPY pyproject.toml README.md LICENSE ./
COPY libs libs
COPY services services
COPY knarr knarr
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m pip --python /opt/knarr/bin/python install --no-compile --no-deps --root /out . \
    && python -m compileall -q -j 0 --invalidation-mode unchecked-hash -s /out -p / /out
COPY deploy/ask.py /out/opt/knarr/ask.py

# --- what runs ------------------------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE}
# git: `source` fetches and `webhook` asks with it. tini: orphans of killed tools are reaped, signals are passed on.
# libjemalloc2: see ADR 23.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git libjemalloc2 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/knarr --shell /usr/sbin/nologin knarr \
    && install --directory --mode 0700 --owner knarr --group knarr /var/lib/knarr /srv/repositories
COPY --from=tools /usr/bin/docker /usr/local/bin/docker
COPY --from=tools /usr/libexec/docker/cli-plugins/docker-buildx /usr/local/libexec/docker/cli-plugins/docker-buildx
COPY --from=packages /opt/knarr /opt/knarr
COPY --from=knarr /out/ /
# The working folder is the home: settings that are secret may stand in the file .env of its volume.
ENV PATH=/opt/knarr/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/knarr KNARR_HOME=/var/lib/knarr KNARR_HOST=0.0.0.0 KNARR_LOG_FORMAT=json \
    LD_PRELOAD=libjemalloc.so.2
USER 10001:10001
WORKDIR /var/lib/knarr
EXPOSE 8701-8706
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 CMD ["python", "-I", "-S", "/opt/knarr/ask.py", "/livez"]
ENTRYPOINT ["tini", "--"]
CMD ["knarr", "--help"]
