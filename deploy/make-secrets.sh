#!/bin/sh
# make-secrets.sh FOLDER: random passwords and keys of a deployment, a file each, where there are none yet. Nothing is printed.
#
# The folder is its owner's alone. The files in it are readable, since Compose mounts them as they are, for users that are nobody here.
set -eu
folder=${1:?name the folder, such as .secrets}
mkdir -p "$folder"
chmod 0700 "$folder"
cd "$folder"

random() {
  od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

# Standard input becomes the file, whole or not at all; one that is there stays.
keep() {
  if [ -e "$1" ]; then
    cat > /dev/null
  else
    cat > "$1.new"
    chmod 0444 "$1.new"
    mv "$1.new" "$1"
  fi
}

profile() {
  printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$1" "$2"
}

value() {
  sed -n "s/^$2 = //p" "$1"
}

for name in postgres_password dagster_password catalog_password catalog_admin_password; do
  random | keep "$name"
done

# The pipeline reads raw data and may not change it; the admin makes the buckets, and writes raw data.
profile pipeline "$(random)" | keep aws_credentials
profile admin "$(random)" | keep aws_credentials_admin
keep s3_identities <<JSON
{
  "identities": [
    {
      "name": "pipeline",
      "credentials": [{"accessKey": "pipeline", "secretKey": "$(value aws_credentials aws_secret_access_key)"}],
      "actions": ["Read:raw", "List:raw", "Read:lake", "List:lake", "Write:lake"]
    },
    {
      "name": "admin",
      "credentials": [{"accessKey": "admin", "secretKey": "$(value aws_credentials_admin aws_secret_access_key)"}],
      "actions": ["Admin", "Read", "Write", "List", "Tagging"]
    }
  ]
}
JSON
