#!/bin/sh
# A redis-server for the tests of several gateways: the one that is here, else Debian's.
# Never fails: without it those tests are skipped, and say so.
set -u

command -v redis-server >/dev/null 2>&1 && exit 0
if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        as_root="none"
    fi
    if [ "$as_root" != none ]; then
        echo "installing redis-server from the system's packages"
        # The tests start their own on a free port: the package must not start one as well.
        { $as_root apt-get update -qq &&
            $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq \
                --no-install-recommends redis-server; } </dev/null >/dev/null 2>&1
    fi
fi
command -v redis-server >/dev/null 2>&1 ||
    echo "no redis-server here: the tests of several gateways will be skipped"
exit 0
