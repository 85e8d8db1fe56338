// SPDX-License-Identifier: GPL-2.0

//! The pure logic of xvm, as a crate of its own so that its tests run on the host.

#![no_std]
// Nothing here could need it; and the kernel's own lints.
#![forbid(unsafe_code)]
#![warn(missing_docs, rust_2018_idioms, unreachable_pub)]

#[cfg(test)]
extern crate std;

// The one file of a vendor's that is pure logic, for its tests.
#[cfg(test)]
#[path = "../svm/asid.rs"]
mod asid;
pub mod emulate;
pub mod platform;
pub mod vectors;
