# SPDX-License-Identifier: GPL-2.0
# What can be done with xvm: `make help`. Everything is built and run in a toolbox (scripts/toolbox), which the first
# target that needs it makes; variables: VENDOR=svm|vmx, CMD='command', KDIR=kernel tree.

VENDOR ?= svm
KDIR ?=
machine_svm := scripts/qemu
machine_vmx := scripts/bochs
machine := $(machine_$(VENDOR))
ifeq ($(machine),)
$(error VENDOR is svm (QEMU) or vmx (Bochs))
endif
export KDIR VENDOR
# The command of `make run` goes through the environment: it may hold any character.
export CMD

.PHONY: help module tool selftests run shell test kselftest kselftest-kvm test-qemu bench profile lint doc rust-analyzer clean distclean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

module: ## build xvm.ko (for Debian's kernel, or KDIR=tree)
	@scripts/module

tool: ## build the userspace tool, statically linked
	@scripts/cargo build --release -p xvm-tool

selftests: ## build the kselftests
	@scripts/selftests

run: module tool ## boot a Linux guest on xvm in an emulated machine (VENDOR=vmx: Bochs; CMD='…': run that in it)
	@scripts/run

shell: module tool selftests ## a root shell in the emulated machine, with xvm.ko inserted (CMD='…': run that in it)
	@$(machine) --guest $${CMD:+-- "$$CMD"}

test: ## everything that is checked before a change goes in
	@scripts/test

kselftest: ## the kselftests alone, on both vendors
	@scripts/test kselftest

test-qemu: ## unmodified QEMU on /dev/xvm (SVM; ten minutes)
	@scripts/test-qemu

kselftest-kvm: ## the KVM selftests of the kernel source, on /dev/kvm and on /dev/xvm (SVM; VENDOR=vmx)
	@scripts/kselftest-kvm

bench: module tool ## the cost of exits, compared with KVM (DOC=1: write docs/comparison.md)
	@scripts/bench $(if $(DOC),--doc)

profile: module tool ## where the instructions of one exit go, on SVM (KIND=cpuid|msr|apic|pio-user|…)
	@scripts/profile $(or $(KIND),cpuid)

lint: ## rustfmt, clippy, build warnings, shellcheck
	@scripts/test lint

doc: ## the API documentation, in build/doc
	@scripts/doc

rust-analyzer: ## rust-project.json for editors
	@scripts/module rust-analyzer

clean: ## remove what was built here
	@scripts/clean

distclean: ## and the toolbox, the kernel tree and all else that is cached
	@scripts/clean --cache
