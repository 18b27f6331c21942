#!/bin/sh
# Install the Debian packages of a list that are missing; say and do nothing when none is.
#   demo/prerequisites.sh apt-packages.txt
set -eu

missing=
for package in $(sed 's/#.*//' "$1"); do
    case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true) in
        *' installed') ;;
        *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "prerequisites: root must install:$missing" >&2
    exit 1
fi
echo "prerequisites: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get -q=2 update
# Recommends would bring a desktop's worth of hypervisor front ends.
# shellcheck disable=SC2086  # a list of words
apt-get -q=2 -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing >/dev/null
