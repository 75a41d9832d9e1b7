# shellcheck shell=bash disable=SC2034 # its variables are for the scripts that read it
# Functions and settings that setup, fetch and run share: the places of files, and Debian's packages.

set -euo pipefail

vm=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XCTL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/xctl}

die() {
	echo "tests/vm/${0##*/}: $*" >&2
	exit 1
}

# The name of a kernel gives its architecture: 6.12-arm64 is for arm64, and all others are for amd64.
arch_of() {
	case $1 in *-arm64) echo arm64 ;; *) echo amd64 ;; esac
}

qemu_of() {
	case $1 in arm64) echo qemu-system-aarch64 ;; *) echo qemu-system-x86_64 ;; esac
}

. "$vm/../../scripts/debian.sh"
