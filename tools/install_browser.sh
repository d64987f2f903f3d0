#!/bin/sh
# A Chromium for the tests that drive the pages: the one that is here, else Debian's.
# Never fails: without a browser those tests are skipped, and say so.
set -u

found() {
    for name in chromium google-chrome; do
        command -v "$name" >/dev/null 2>&1 && return 0
    done
    return 1
}

found && exit 0
if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        as_root="none"
    fi
    if [ "$as_root" != none ]; then
        echo "installing Chromium from the system's packages"
        # fonts: without any, a headless page has no letters to look at
        { $as_root apt-get update -qq &&
            $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
                --no-install-recommends chromium fonts-dejavu-core; } </dev/null >/dev/null 2>&1
    fi
fi
found || echo "no chromium or google-chrome here: the browser tests will be skipped"
exit 0
