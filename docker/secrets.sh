#!/usr/bin/env bash
# Creates the secrets for compose.yaml in docker/secrets/; existing ones are kept.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
mkdir -p secrets
chmod 700 secrets
for name in postgres_password s3_user s3_password mlflow_password mlflow_key ray_token; do
    file=secrets/$name
    if [[ ! -s $file ]]; then
        # An assignment: the script ends here where openssl is missing, without an empty file.
        value=$(openssl rand -hex 24)
        # Readable for the user in the containers; the folder is closed to others.
        printf %s "$value" > "$file"
        chmod 644 "$file"
        echo "created docker/$file"
    fi
done
