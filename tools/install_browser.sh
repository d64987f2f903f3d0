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
# fonts: without any, a headless page has no letters to look at
sh "$(dirname "$0")/apt_install.sh" Chromium chromium fonts-dejavu-core
found || echo "no chromium or google-chrome here: the browser tests will be skipped"
exit 0
