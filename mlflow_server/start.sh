#!/usr/bin/env bash
# Starts the MLflow tracking server. Every setting is an environment variable; README.md explains
# them. By default it serves ./modmix_runs on http://127.0.0.1:5000.
set -euo pipefail

say() { printf 'mlflow_server: %s\n' "$*" >&2; }
refuse() { say "$*"; exit 2; }

# A secret may be given as a file (NAME_FILE), as in Docker and Kubernetes.
secret() {
    local name=$1 file="${1}_FILE"
    if [[ -z ${!name:-} && -n ${!file:-} ]]; then
        [[ -r ${!file} ]] || refuse "$file names ${!file}, which cannot be read: check the path"
        export "$name=$(<"${!file}")"
    fi
}

host=${MLFLOW_HOST:-127.0.0.1}
port=${MLFLOW_PORT:-5000}
auth=${MLFLOW_AUTH:-}
python=${PYTHON:-}
if [[ -z $python ]]; then
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    python=python3
    [[ -x $here/.venv/bin/python ]] && python=$here/.venv/bin/python
fi

"$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("mlflow") is None)' 2>/dev/null ||
    refuse "$python has no MLflow: install modmix into it, or set PYTHON to one that has"

# ---- storage

for name in MLFLOW_BACKEND_STORE_URI PGPASSWORD AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
    secret "$name"
done
if [[ -z ${MLFLOW_BACKEND_STORE_URI:-} || -z ${MLFLOW_ARTIFACTS_DESTINATION:-} ]]; then
    # As modmix reads it: $VARIABLES, then ~ and ~user, then from the working directory.
    home=$("$python" - "${MODMIX_HOME:-modmix_runs}" <<'PY'
import os, re, sys
from pathlib import Path
text = sys.argv[1]
for match in re.finditer(r"\$(?:(\w+)|\{([^}]*)\})", text, re.ASCII):
    if (name := match[1] or match[2]) not in os.environ:
        sys.exit(f"mlflow_server: MODMIX_HOME is {text!r}, and the environment variable {name} is not set")
path = os.path.expandvars(text)
try:
    print(Path(path).expanduser().absolute() if path.startswith("~") else Path(path).absolute())
except RuntimeError:
    sys.exit(f"mlflow_server: the home directory in {path!r} is not known: set MODMIX_HOME to an absolute path")
PY
    ) || exit 2
    mkdir -p "$home" || refuse "$home cannot be made: set MODMIX_HOME to a folder you may write"
    home=$(cd "$home" && pwd)
    database=sqlite:///$home
    # As modmix writes it: the path quoted, and a driver named so that MLflow does not take it literally.
    [[ $home = *[%?]* ]] && database=${home//%/%25} && database=sqlite+pysqlite:///${database//\?/%3F}
fi
export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-$database/mlflow.db}
export MLFLOW_ARTIFACTS_DESTINATION=${MLFLOW_ARTIFACTS_DESTINATION:-$home/artifacts}
case $MLFLOW_BACKEND_STORE_URI in
    *://*) ;;
    *) refuse "MLFLOW_BACKEND_STORE_URI must be a database (sqlite:///… or postgresql+psycopg://…):" \
        "MLflow 3 refuses folders" ;;
esac

# ---- access

loopback=no
case $host in 127.*|localhost|::1) loopback=yes ;; esac
case $auth in
    basic)
        secret MLFLOW_AUTH_ADMIN_USERNAME
        secret MLFLOW_AUTH_ADMIN_PASSWORD
        secret MLFLOW_AUTH_DATABASE_URI
        secret MLFLOW_FLASK_SERVER_SECRET_KEY
        export MLFLOW_AUTH_ADMIN_USERNAME=${MLFLOW_AUTH_ADMIN_USERNAME:-admin}
        [[ -n ${MLFLOW_AUTH_ADMIN_PASSWORD:-} ]] ||
            refuse "MLFLOW_AUTH=basic needs MLFLOW_AUTH_ADMIN_PASSWORD (or …_FILE): there is no default"
        (( ${#MLFLOW_AUTH_ADMIN_PASSWORD} >= 12 )) ||
            refuse "MLFLOW_AUTH_ADMIN_PASSWORD must have 12 characters or more"
        key=${MLFLOW_FLASK_SERVER_SECRET_KEY:-}
        (( ${#key} >= 32 )) ||
            refuse "MLFLOW_AUTH=basic needs MLFLOW_FLASK_SERVER_SECRET_KEY (or …_FILE) of 32" \
                "characters or more, the same at every start: openssl rand -hex 32"
        "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("flask_wtf") is None)' ||
            refuse "MLFLOW_AUTH=basic needs one more package: pip install 'mlflow[auth]'" ;;
    off|'')
        [[ $loopback = yes || $auth = off ]] ||
            refuse "MLFLOW_HOST=$host lets everybody on the network read and write: set" \
                "MLFLOW_AUTH=basic, or MLFLOW_AUTH=off behind a proxy that authenticates" ;;
    *) refuse "MLFLOW_AUTH must be basic or off, got '$auth'" ;;
esac
case ${MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE:-false} in
    [Tt]rue|1) refuse "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE is not supported: list the hosts in" \
        "MLFLOW_SERVER_ALLOWED_HOSTS instead" ;;
esac
if [[ $loopback = no && -z ${MLFLOW_SERVER_ALLOWED_HOSTS:-} ]]; then
    refuse "MLFLOW_HOST=$host needs MLFLOW_SERVER_ALLOWED_HOSTS: its host names in URLs, each" \
        "also with its port, as 'mlflow.lab,mlflow.lab:*,localhost,localhost:*'"
fi

# ---- the port

"$python" - "$host" "$port" <<'PY' || refuse "port $port on $host is in use: set MLFLOW_PORT to another"
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family) as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((sys.argv[1], int(sys.argv[2])))
    except OSError:
        sys.exit(1)
PY

# ---- start

options=(--host "$host" --port "$port" --workers "${MLFLOW_WORKERS:-2}")
if [[ $auth = basic ]]; then
    # Readable by this user only (mktemp); passwords stay in the environment.
    config=$(mktemp "${TMPDIR:-/tmp}/mlflow-auth.XXXXXX")
    trap 'rm -f "$config"' EXIT
    database=${MLFLOW_AUTH_DATABASE_URI:-sqlite:///${home:-$PWD}/mlflow_auth.db}
    {
        echo '[mlflow]'
        echo "default_permission = ${MLFLOW_AUTH_DEFAULT_PERMISSION:-READ}"
        echo "database_uri = ${database//%/%%}"
    } > "$config"
    export MLFLOW_AUTH_CONFIG_PATH=$config
    options+=(--app-name basic-auth)
fi
# Seven processes for evaluating agents, which are not needed.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}
export MLFLOW_DISABLE_TELEMETRY=${MLFLOW_DISABLE_TELEMETRY:-true}

shown=$(sed -E 's#((password|passwd|secret|token)=)[^&@]*#\1***#Ig; s#(=[*]{3})@[^&]*#\1@#g; s#://.*@#://***@#' <<< "$MLFLOW_BACKEND_STORE_URI")
say "http://$host:$port, runs in $shown," \
    "artifacts in $MLFLOW_ARTIFACTS_DESTINATION"
[[ $auth = basic ]] || exec "$python" -m mlflow server "${options[@]}"
# This shell stays, to delete the configuration when the server has ended, whatever ends it.
"$python" -m mlflow server "${options[@]}" &
server=$!
trap 'kill -TERM "$server" || true; code=0; wait "$server" || code=$?; exit "$code"' INT TERM HUP
wait "$server"
