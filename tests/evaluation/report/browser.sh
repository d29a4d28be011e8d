#!/usr/bin/env bash
# The browser that looks at reports in tests: Chromium without a window.
#
#   tests/evaluation/report/browser.sh check    prints its path, or says that there is none (exit status 1)
#   tests/evaluation/report/browser.sh install  installs it (Debian, as root)
set -euo pipefail

check() {
  local name
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    type -P "$name" && return
  done
  echo "there is no Chromium here; as root on Debian: tests/evaluation/report/browser.sh install"
  return 1
}

install() {
  check >/dev/null && return
  if ((EUID != 0)) || ! type -P apt-get >/dev/null; then
    echo "Chromium cannot be installed: that takes root and apt-get (package chromium)" >&2
    return 1
  fi
  local log
  log=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "Chromium cannot be installed: apt-get failed (above, the end of $log); the package is chromium" >&2
    return 1
  fi
  rm -f "$log"
  check >/dev/null
}

case "${1:-}" in
check) check ;;
install) install ;;
*)
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
  exit 2
  ;;
esac
