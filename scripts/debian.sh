# shellcheck shell=bash disable=SC2154 # $arch, $cache and die are of those who read it
# Downloads Debian's packages, of any suite and architecture, without a change to this machine's own apt.

# The Debian mirror that this machine uses. apt is asked for the address, so that this file needs none. The fields of the
# format come from the downloaded Release files. With a format without fields, apt names no target at all.
mirror() {
	local found=${XCTL_DEBIAN_MIRROR:-}
	# shellcheck disable=SC2016 # apt expands these, not the shell
	[ -n "$found" ] || found=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' |
		awk '$1 == "Debian" && $2 == "Debian" { uri = $3 } END { print uri }')
	[ -n "$found" ] || die "apt knows no Debian mirror: run 'apt-get update', or set XCTL_DEBIAN_MIRROR to one"
	echo "$found"
}

# A line for sources.list. apt still checks the suite's signature against Debian's own keys.
source_of() {
	local uri keys=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -e $keys ] || die "no $keys: install debian-archive-keyring"
	uri=$(mirror)
	echo "deb [signed-by=$keys] $uri $1 main"
}

# scratch PARENT: makes an empty folder, $tmp, which is removed on exit. For apt, PARENT is $shared: the user as which apt
# downloads may not enter root's cache, for example.
shared=${TMPDIR:-/var/tmp}
scratch() {
	tmp=$(mktemp -d "$1/xctl-vm.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	trap 'exit 130' INT TERM HUP
	chmod 755 "$tmp"
}

# debian COMMAND...: runs apt-get or apt-cache with a separate state: one suite, one architecture, nothing installed.
debian() {
	"$1" -qq -o Dir::State="$tmp" -o Dir::State::status="$tmp/status" -o Dir::Cache="$tmp/cache" \
		-o Dir::Etc::sourcelist="$tmp/sources" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
		-o APT::Architecture="$arch" -o APT::Architectures="$arch" -o APT::Update::Error-Mode=any \
		-o Acquire::Retries=3 -o Acquire::Languages=none -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false \
		-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "${@:2}"
}

# merged_usr ROOT: makes a root in which /bin and the like are symlinks into /usr.
merged_usr() {
	local name
	for name in bin sbin lib lib64; do
		mkdir -p "$1/usr/$name"
		ln -s "usr/$name" "$1/$name"
	done
}

# unpack SUITE RULE PACKAGE...: unpacks the packages and their dependencies, as far as the names match RULE, into $tmp/tree.
unpack() {
	local suite=$1 rule=$2 names
	rm -rf "${tmp:?}"/*
	mkdir -p "$tmp"/{lists/partial,cache/archives/partial,debs}
	merged_usr "$tmp/tree" # 7.2's packages say usr/lib where older ones say lib: let both be one
	touch "$tmp/status"
	source_of "$suite" >"$tmp/sources"
	debian apt-get update || die "cannot read $suite for $arch; XCTL_DEBIAN_MIRROR can name a mirror that has it"
	mapfile -t names < <(debian apt-cache depends --recurse --no-{recommends,suggests,conflicts,breaks,replaces,enhances} \
		"${@:3}" | grep -E "^($rule)\$" | sort -u)
	[ ${#names[@]} -gt 0 ] || die "$suite has no ${*:3} for $arch"
	[ "$EUID" != 0 ] || ! getent passwd _apt >/dev/null || chown _apt "$tmp/debs"
	(cd "$tmp/debs" && debian apt-get download "${names[@]}")
	for deb in "$tmp"/debs/*.deb; do
		# dpkg-deb -x would replace these symlinks by folders; tar does not
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$tmp/tree" --keep-directory-symlink --no-same-owner
		# shellcheck disable=SC2016 # for dpkg-deb, not the shell
		dpkg-deb --show --showformat='${Package} ${Version}\n' "$deb"
	done >"$tmp/packages"
}
