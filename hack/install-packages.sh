#!/usr/bin/env bash
# Installs the Debian packages named in the given files (one a line, # begins a comment), if any is missing.
# Database servers among them must not start a cluster of their own on this machine.
set -euo pipefail

missing=()
while read -r package; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done < <(sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$@" | sort -u)

if [ "${#missing[@]}" -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "missing Debian packages: ${missing[*]}; install them or run this as root" >&2
    exit 1
fi
echo "▸ install Debian packages: ${missing[*]} …"
export DEBIAN_FRONTEND=noninteractive
mkdir -p /etc/postgresql-common
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
fi
install() { apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}"; }
install >/dev/null 2>&1 || { apt-get update -q >/dev/null && install; }
echo "✓ install Debian packages ($SECONDS s)"
