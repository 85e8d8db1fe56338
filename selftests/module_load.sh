#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The module comes and goes: what modinfo says, a hundred loads with no memory lost and a clean log, both orders beside KVM.
#
# XVM_MODULE names xvm.ko, if it is neither at /xvm/xvm.ko nor in the checkout that this file is built in.
# SELFTEST_SCALE: percent of the usual loops. busybox is enough. It leaves the modules as it found them.
here=$(cd "$(dirname "$0")" && pwd)
scale=${SELFTEST_SCALE:-100}
number=0 failed=0 skipped=0

ok() { number=$((number + 1)); echo "ok $number $1"; }
skip() { number=$((number + 1)) skipped=$((skipped + 1)); echo "ok $number $1 # SKIP $2"; }
bad() { number=$((number + 1)) failed=$((failed + 1)); echo "not ok $number $1"; }
# check NAME COMMAND...
check() {
	name=$1
	shift
	if "$@"; then ok "$name"; else bad "$name"; fi
}
skip_all() { echo "TAP version 13"; echo "1..0 # SKIP $1"; exit 4; }

module=
for file in "$XVM_MODULE" /xvm/xvm.ko "$here/../../xvm.ko" "$here/../xvm.ko"; do
	[ -n "$file" ] && [ -f "$file" ] && { module=$file; break; }
done
case ${XVM_DEVICE:-/dev/xvm} in *kvm*) skip_all "about xvm itself" ;; esac
[ "$(id -u)" = 0 ] || skip_all "only root may load modules"
[ -n "$module" ] || skip_all "no xvm.ko (set XVM_MODULE)"

[ -r /proc/modules ] || skip_all "this kernel has no modules"
tr '\0' '\n' <"$module" | grep -aq "^vermagic=$(uname -r) " || skip_all "$module is for another kernel"

is_loaded() { grep -q "^$1 " /proc/modules; }
load() { insmod "$module" "$@"; }
unload() { rmmod xvm; }
field() { sed -n "s/^$1: *\([0-9]*\) kB/\1/p" /proc/meminfo; }

# The three fields that every module has to have, and a description of each parameter.
modinfo_is_complete() {
	info=$(modinfo "$module" 2>/dev/null) || info=
	# busybox's modinfo may know no path: then the section itself, which is text.
	[ -n "$info" ] || info=$(tr '\0' '\n' <"$module" | grep -aE '^(author|description|license|parm)=' | sed 's/=/: /')
	for word in author description license; do
		echo "$info" | grep -aq "^$word: *[^ ]" || { echo "# no $word"; return 1; }
	done
	echo "$info" | grep -aq '^license: *GPL' || { echo "# the licence is not GPL"; return 1; }
}

# The kernel's complaints since a line was written to its log.
mark="module_load test $$"
log_is_clean() {
	complaints=$(dmesg | sed -n "/$mark/,\$p" | grep -E 'WARNING:|BUG|Oops|Call Trace|refcount_t|Objects remaining|INFO: task|stall')
	[ -z "$complaints" ] || { echo "$complaints" | head -n 5 | sed 's/^/# /'; return 1; }
}

measure() {
	sync
	echo 3 >/proc/sys/vm/drop_caches
	free=$(field MemFree) slab=$(field SUnreclaim) percpu=$(field Percpu) vmalloc=$(field VmallocUsed)
}

many_loads() {
	count=$((100 * scale / 100))
	[ "$count" -ge 4 ] || count=4
	# The first ones fill caches.
	i=0
	while [ $i -lt $count ]; do
		[ $i != $((count / 4)) ] || { measure; free0=$free slab0=$slab percpu0=$percpu vmalloc0=$vmalloc; }
		load || { echo "# load $i failed"; return 1; }
		[ -c /dev/xvm ] || { echo "# no /dev/xvm after load $i"; return 1; }
		unload || { echo "# unload $i failed"; return 1; }
		[ ! -e /dev/xvm ] || { echo "# /dev/xvm is there after unload $i"; return 1; }
		i=$((i + 1))
	done
	measure
	echo "# $count loads: free $((free - free0)) KiB, slab $((slab - slab0)) KiB, per-CPU $((percpu - percpu0)) KiB, vmalloc $((vmalloc - vmalloc0)) KiB"
	# A page for each load shows; what the system itself does meanwhile does not.
	[ $((slab - slab0)) -lt $((256 + count)) ] && [ $((percpu - percpu0)) -lt 128 ] && [ $((vmalloc - vmalloc0)) -lt 1024 ] &&
		[ $((free0 - free)) -lt $((8192 + 4 * count)) ]
}

# The module can't be loaded twice, nor taken out while a VM is open.
twice() {
	load || return 1
	if load 2>/dev/null; then echo "# loaded twice"; return 1; fi
	unload
}

while_open() {
	load || return 1
	sleep 60 <>/dev/xvm &
	holder=$!
	# Until the holder has it open.
	until [ "$(readlink /proc/$holder/fd/0)" = /dev/xvm ]; do kill -0 $holder || return 1; done
	if rmmod xvm 2>/dev/null; then kill $holder; echo "# unloaded while it was open"; return 1; fi
	kill $holder
	wait $holder 2>/dev/null
	unload
}

# KVM's modules: the initramfs of the test machines has them in a folder, other systems have modprobe.
vendor=$(grep -qw svm /proc/cpuinfo && echo svm || echo vmx)
kvm_list=/lib/modules/kvm-$vendor.list
kvm_name() { [ "$vendor" = svm ] && echo kvm_amd || echo kvm_intel; }
load_kvm() {
	if [ -f "$kvm_list" ]; then
		while read -r file parameters; do
			# shellcheck disable=SC2086 # words
			is_loaded "$(basename "$file" .ko | tr - _)" || insmod "/lib/modules/$file" $parameters || return 1
		done <"$kvm_list"
	else
		modprobe "$(kvm_name)" 2>/dev/null
	fi
	[ -c /dev/kvm ]
}
# Also when only a part of it could be loaded.
unload_kvm() { { ! is_loaded "$(kvm_name)" || rmmod "$(kvm_name)"; } && { ! is_loaded kvm || rmmod kvm; }; }

# A guest on each device, at the same time.
both_run() {
	XVM_DEVICE=/dev/xvm "$here/modes" >/tmp/module_load.xvm.$$ 2>&1 &
	first=$!
	XVM_DEVICE=/dev/kvm "$here/modes" >/tmp/module_load.kvm.$$ 2>&1 &
	second=$!
	wait $first
	one=$?
	wait $second
	two=$?
	[ $one = 0 ] || sed -n '/^not ok/s/^/# xvm: /p' /tmp/module_load.xvm.$$
	[ $two = 0 ] || sed -n '/^not ok/s/^/# kvm: /p' /tmp/module_load.kvm.$$
	rm -f /tmp/module_load.*.$$
	[ $one = 0 ] && [ $two = 0 ]
}

# Whatever the one before has left.
no_modules() {
	! is_loaded xvm || unload || return 1
	! is_loaded kvm || unload_kvm
}

xvm_after_kvm() { no_modules && load_kvm && load && both_run && unload_kvm && "$here/modes" >/dev/null 2>&1 && unload; }
kvm_after_xvm() { no_modules && load && load_kvm && both_run && unload && XVM_DEVICE=/dev/kvm "$here/modes" >/dev/null 2>&1 && unload_kvm; }
xvm_first_out() { no_modules && load_kvm && load && both_run && unload && unload_kvm; }

# /dev/kvm by name: on the number that systems keep a node for, gone again with the module, and never KVM's own.
misc_number() { sed -n "s/^ *\([0-9]*\) $1\$/\1/p" /proc/misc; }
kvm_name_taken() {
	no_modules && load kvm_device=1 || return 1
	[ "$(misc_number kvm)" = 232 ] && [ -c /dev/kvm ] || { echo "# no /dev/kvm"; return 1; }
	XVM_DEVICE=/dev/kvm "$here/modes" >/dev/null 2>&1 || { echo "# no guest runs on it"; return 1; }
	if load_kvm 2>/dev/null && is_loaded "$(kvm_name)"; then echo "# KVM was loaded beside it"; return 1; fi
	unload && [ -z "$(misc_number kvm)" ]
}
kvm_name_refused() {
	no_modules && load_kvm || return 1
	if load kvm_device=1 2>/dev/null; then echo "# loaded over KVM"; return 1; fi
	dmesg | sed -n "/$mark/,\$p" | grep -q 'kvm_device: another module has /dev/kvm' || { echo "# it doesn't say why"; return 1; }
	[ -z "$(misc_number xvm)" ] && XVM_DEVICE=/dev/kvm "$here/modes" >/dev/null 2>&1 && unload_kvm
}

was_loaded=0 kvm_was_loaded=0
is_loaded xvm && was_loaded=1
is_loaded kvm && kvm_was_loaded=1

echo "TAP version 13"
echo "1..10"
echo "$mark" >/dev/kmsg
check "modinfo is complete" modinfo_is_complete
if [ $was_loaded = 1 ] && ! unload; then
	for name in "many loads" "not twice" "not while open" "after KVM" "before KVM" "out before KVM" "as /dev/kvm" "not over KVM" "clean log"; do
		skip "$name" "xvm is in use"
	done
	exit 1
fi
[ $kvm_was_loaded = 0 ] || unload_kvm || kvm_was_loaded=2
check "many loads" many_loads
check "not twice" twice
check "not while open" while_open
if [ $kvm_was_loaded = 2 ]; then
	for name in "after KVM" "before KVM" "out before KVM" "as /dev/kvm" "not over KVM"; do skip "$name" "KVM is in use"; done
elif ! load_kvm; then
	for name in "after KVM" "before KVM" "out before KVM" "as /dev/kvm" "not over KVM"; do skip "$name" "no KVM here"; done
else
	unload_kvm
	check "after KVM" xvm_after_kvm
	check "before KVM" kvm_after_xvm
	check "out before KVM" xvm_first_out
	check "as /dev/kvm" kvm_name_taken
	check "not over KVM" kvm_name_refused
fi
check "clean log" log_is_clean
[ $kvm_was_loaded = 2 ] || no_modules
[ $kvm_was_loaded != 1 ] || is_loaded kvm || load_kvm
is_loaded xvm && [ $was_loaded = 0 ] && unload
[ $was_loaded = 0 ] || is_loaded xvm || load
echo "# Totals: pass:$((number - failed - skipped)) fail:$failed skip:$skipped"
[ $failed = 0 ]
