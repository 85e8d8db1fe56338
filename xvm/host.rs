// SPDX-License-Identifier: GPL-2.0

//! The pure logic of xvm, as a crate of its own so that its tests run on the host.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod emulate;
pub mod platform;
