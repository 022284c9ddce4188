#!/bin/sh
# Runs once, when the database is new: the program's own role, without rights until `tollgate migrate` gives them.
set -eu
psql --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set ON_ERROR_STOP=1 --set password="$APP_PASSWORD" <<'SQL'
create role tollgate_app login nosuperuser nocreatedb nocreaterole password :'password';
SQL
