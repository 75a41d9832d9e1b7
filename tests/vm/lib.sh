# shellcheck shell=bash disable=SC2034 # its variables are for the scripts that read it
# What setup, fetch and run share: where things live, and Debian's packages without touching this machine's own apt.

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

# The Debian mirror that this machine uses. Its address is asked for, so that none has to be written down here.
# The fields come from the downloaded Release files: without any, apt names no target at all.
mirror() {
	local found=${XCTL_DEBIAN_MIRROR:-}
	# shellcheck disable=SC2016 # apt expands these, not the shell
	[ -n "$found" ] || found=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' |
		awk '$1 == "Debian" && $2 == "Debian" { uri = $3 } END { print uri }')
	[ -n "$found" ] || die "apt knows no Debian mirror: run 'apt-get update', or set XCTL_DEBIAN_MIRROR to one"
	echo "$found"
}

# A line for sources.list. apt checks the suite's signature against Debian's own keys, as ever.
source_of() {
	local uri keys=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -e $keys ] || die "no $keys: install debian-archive-keyring"
	uri=$(mirror)
	echo "deb [signed-by=$keys] $uri $1 main"
}

# scratch PARENT: makes an empty folder, $tmp, gone on exit. For apt that is below $shared: the user that apt downloads as
# may not enter root's cache, say.
shared=${TMPDIR:-/var/tmp}
scratch() {
	tmp=$(mktemp -d "$1/xctl-vm.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	trap 'exit 130' INT TERM HUP
	chmod 755 "$tmp"
}
