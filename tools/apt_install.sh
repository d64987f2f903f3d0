#!/bin/sh
# Install Debian packages where that can be done without a question: as root, or by sudo without a
# password. sh apt_install.sh WHAT PACKAGE... ; WHAT is how they are called in one line to the reader.
# Never fails, and says nothing where it can't: the caller looks for what it wanted.
set -u

what=$1
shift
command -v apt-get >/dev/null 2>&1 || exit 0
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    exit 0
fi
echo "installing $what from the system's packages"
# RUNLEVEL: the package of a server must not start it.
{ $as_root apt-get update -qq &&
    $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq \
        --no-install-recommends "$@"; } </dev/null >/dev/null 2>&1
exit 0
