#!/usr/bin/env bash
# Makes the secrets that compose.yaml needs, each once, in docker/secrets/. What is there stays.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
mkdir -p secrets
chmod 700 secrets
for name in postgres_password s3_user s3_password mlflow_password mlflow_key ray_token; do
    file=secrets/$name
    if [[ ! -s $file ]]; then
        # The containers' user reads them; the folder keeps everybody else out.
        printf %s "$(openssl rand -hex 24)" > "$file"
        chmod 644 "$file"
        echo "made docker/$file"
    fi
done
