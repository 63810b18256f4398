#!/usr/bin/env bash
# Tries the manager's API against its own OpenAPI document, on a running cluster.
#
# usage: tests/schemathesis.sh [DIRECTORY WITH THE PROGRAMS]    default: target/debug
#
# Ends with 0 and says so when schemathesis is not installed (pip install schemathesis).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

programs=${1:-target/debug}
if ! command -v schemathesis >/dev/null; then
    printf 'schemathesis is not installed: the API is not tried against its document\n'
    exit 0
fi

scratch=$(mktemp -d "${TMPDIR:-/tmp}/damselfly-api.XXXXXX")
cleanup() {
    local status=$?
    trap - EXIT
    "$programs/testnet" down --dir "$scratch/cluster" >/dev/null 2>&1 || true
    if ((status != 0)); then
        tail -n 20 "$scratch"/cluster/manager/*.log >&2 2>/dev/null || true
    fi
    rm -rf "$scratch"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

"$programs/testnet" up --schedulers 1 --nodes 2 --dir "$scratch/cluster" --detach
field() { python3 -c 'import json, sys; print(eval("json.load(open(sys.argv[1]))" + sys.argv[2]))' "$scratch/cluster/cluster.json" "$1"; }
manager=$(field '["manager"]["http"]')
token=$(<"$(field '["manager"]["admin_token_file"]')")

# A task that can be listed, shown and deleted.
head -c 100000 /dev/urandom >"$scratch/file"
"$programs/dfcache" --socket "$(field '["nodes"][0]["socket"]')" import "$scratch/file" --cid tried --tag api

api=$manager/api/v1
auth="Authorization: Bearer $token"
config=$PWD/tests/schemathesis.toml
# There, because it leaves a folder where it runs.
try() { (cd "$scratch" && schemathesis --config-file "$config" run "$api/openapi.json" --seed 7 "$@"); }

# Left out is what has no end, and so no answer to look at: the stream of events. What changes the ring or puts hosts out
# comes last, so that there are schedulers to ask until then. The admin token is used because nothing that the API does
# takes it back: not a log-out, nor a user or a token that is deleted.
try --header "$auth" --exclude-path /api/v1/events --exclude-path-regex '^/api/v1/(config|revocations)'

# Only sessions make tokens. This user's password and role stay what they are, because users are not tried here.
json='Content-Type: application/json'
password=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
curl -sSf -o /dev/null -H "$auth" -H "$json" "$api/users" \
    -d "{\"name\":\"tried\",\"role\":\"admin\",\"password\":\"$password\"}"
curl -sSf -H "$json" -c "$scratch/cookies" "$api/session" -o "$scratch/session" \
    -d "{\"name\":\"tried\",\"password\":\"$password\"}"
session=$(awk '$6 == "dfmanager_session" { print $7 }' "$scratch/cookies")
csrf=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["csrf_token"])' "$scratch/session")
try --header "Cookie: dfmanager_session=$session" --header "X-CSRF-Token: $csrf" --include-path-regex '^/api/v1/tokens'

try --header "$auth" --include-path-regex '^/api/v1/(config|revocations)'
