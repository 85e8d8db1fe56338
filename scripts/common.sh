# Sourced by the scripts: where things are, and how a step says what it does.
# shellcheck shell=bash disable=SC2034 # what is set here is used where it is sourced
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Everything that takes long to make is outside the checkout, so that a fresh clone finds it.
cache=${XVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/xvm}
mkdir -p "$cache"

say() { printf '[xvm %4ds] %s\n' "$SECONDS" "$*" >&2; }
die() { printf 'xvm: error: %s\n' "$*" >&2; exit 1; }

# Everything goes on in the toolbox, which is entered by chroot.
need_root() { [ "$(id -u)" = 0 ] || die "the toolbox is entered by chroot: run this as root (sudo -E make …)"; }

# key FILE...: a short name for the contents of the files, to name what was made of them.
key() { cat "$@" | sha256sum | cut -c1-12; }

# make_dir DIR COMMAND...: makes a cache folder once. COMMAND gets the path of an empty folder that takes the name
# DIR only when the command has succeeded, so one that was interrupted anywhere is made again.
make_dir() {
	local dir=$1; shift
	[ -e "$dir" ] && return 0
	exec 9>"$dir.lock"
	flock 9
	if [ ! -e "$dir" ]; then
		rm -rf "$dir.part"
		mkdir -p "$dir.part"
		"$@" "$dir.part"
		mv "$dir.part" "$dir"
	fi
	exec 9>&-
}

# make_dir_in_place DIR COMMAND...: the same for what remembers its own path: a file in it says that it is whole.
make_dir_in_place() {
	local dir=$1; shift
	[ -e "$dir/.whole" ] && return 0
	exec 9>"$dir.lock"
	flock 9
	if [ ! -e "$dir/.whole" ]; then
		rm -rf "$dir"
		mkdir -p "$dir"
		"$@" "$dir"
		touch "$dir/.whole"
	fi
	exec 9>&-
}
