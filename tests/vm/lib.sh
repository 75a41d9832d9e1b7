# shellcheck shell=bash disable=SC2034 # its variables are for the scripts that read it
# What setup, fetch and run share: where things live, and Debian's packages.

set -euo pipefail

vm=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XCTL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/xctl}

die() {
	echo "tests/vm/${0##*/}: $*" >&2
	exit 1
}

# The kernel's name says its architecture: 6.12-arm64 is arm64, all others are amd64.
arch_of() {
	case $1 in *-arm64) echo arm64 ;; *) echo amd64 ;; esac
}

qemu_of() {
	case $1 in arm64) echo qemu-system-aarch64 ;; *) echo qemu-system-x86_64 ;; esac
}

. "$vm/../../scripts/debian.sh"
