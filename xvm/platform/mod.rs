// SPDX-License-Identifier: GPL-2.0

//! The virtual platform: interrupt controllers, timers and interrupt routing.
