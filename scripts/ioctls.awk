# Reads a C header as `cpp -dD` gives it (definitions of macros left in) and prints a constant for each KVM or XVM ioctl
# whose argument exists on this architecture. bindgen cannot evaluate the macros themselves.
$1 == "struct" && $3 == "{" { known[$2] = 1 }
$1 == "#define" && $2 ~ /^[KX]VM_[A-Z0-9_]+$/ && $3 ~ /^_IO/ { ioctl[++n] = $0 }
END {
	for (i = 1; i <= n; i++) {
		if (match(ioctl[i], /struct [a-z0-9_]+/) && !(substr(ioctl[i], RSTART + 7, RLENGTH - 7) in known))
			continue
		split(ioctl[i], word)
		printf "const unsigned int XVM_CONST_%s = %s;\n", word[2], word[2]
	}
}
