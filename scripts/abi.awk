# SPDX-License-Identifier: GPL-2.0
# Makes Rust of uapi/abi.h: the capabilities that there are, and the ioctls that are refused with an errno of their own.
function fields() {
	gsub(/^[A-Z_]+\(|\)$/, "")
	split($0, field, /, */)
}
/^XVM_CAP\(.*, IMPLEMENTED,/ {
	fields()
	value = field[3] == "XVM_COMPUTED" ? "None" : "Some(" field[3] ")"
	capability = capability sprintf("    (super::%s, %s),\n", field[1], value)
}
/^XVM_IOCTL\(.*, REFUSED,/ {
	fields()
	refused = refused sprintf("    (Fd::%s, super::%s, kernel::error::code::%s),\n", \
		substr(field[2], 1, 1) tolower(substr(field[2], 2)), field[1], field[4])
}
END {
	print "// SPDX-License-Identifier: GPL-2.0\n"
	print "//! Made from abi.h by scripts/abi.awk.\n"
	print "use super::Fd;\n"
	print "/// Capabilities that there are; `None`: the value depends on the machine."
	print "pub(crate) const CAPABILITIES: &[(u32, Option<i32>)] = &[\n" capability "];\n"
	print "/// Ioctls that are refused with an errno of their own."
	print "pub(crate) const REFUSED: &[(Fd, u32, kernel::error::Error)] = &[\n" refused "];"
}
