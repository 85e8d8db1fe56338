// SPDX-License-Identifier: GPL-2.0

//! Instruction decoder and executor.
