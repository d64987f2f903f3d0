#!/bin/sh
# A redis-server for the tests of several gateways: the one that is here, else Debian's.
# Never fails: without it those tests are skipped, and say so.
set -u

found() {
    command -v redis-server >/dev/null 2>&1
}

found && exit 0
sh "$(dirname "$0")/apt_install.sh" redis-server redis-server
found || echo "no redis-server here: the tests of several gateways will be skipped"
exit 0
