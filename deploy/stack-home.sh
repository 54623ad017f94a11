#!/bin/sh
# Writes down where the stack of docker-compose.yml listens, and its token: `KNARR_HOME=.knarr-stack knarr …` finds both.
set -eu
home=${1:-.knarr-stack}
umask 077
mkdir -p "$home"
docker compose exec -T webhook sed -n 's/^KNARR_TOKEN=//p' .env >"$home/token"
address=$(docker compose port webhook 8701)
printf '{"pid": 0, "host": "%s", "port_base": %s}\n' "${address%:*}" "$((${address##*:} - 1))" >"$home/platform.json"
echo "knarr is ready. Its command line finds it with: export KNARR_HOME=$(cd "$home" && pwd)"
