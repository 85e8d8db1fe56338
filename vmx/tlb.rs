// SPDX-License-Identifier: GPL-2.0

//! VPIDs, and the flushing of cached translations (SDM vol 3, 30.4).
//!
//! With EPT the CPU caches guest-physical mappings, tagged by the EPT pointer, and combined ones, tagged by
//! VPID, PCID and EPT pointer. INVEPT drops both kinds; INVVPID drops the combined ones alone. Neither VMXOFF
//! nor VMXON is relied on to drop anything. A vCPU flushes when it comes to another CPU, so that it is harmless
//! when a VPID or the page of an EPT root was somebody else's before, and harmless to share VPIDs with KVM.

use super::instruction;
use super::instruction::Scope;
use super::vmcs::Vmcs;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;

/// Bit n of word w: VPID `64 * w + n` is taken. VPID 0 is the host's.
static TAKEN: [AtomicU64; 1024] = {
    let mut words = [const { AtomicU64::new(0) }; 1024];
    words[0] = AtomicU64::new(1);
    words
};

/// A VPID of one's own.
///
/// # Invariants
///
/// Its bit in [`TAKEN`] was set by this value.
#[derive(Debug)]
pub(super) struct Vpid(u16);

impl Vpid {
    /// Takes a free one; `None` when all 65535 are taken.
    pub(super) fn new() -> Option<Self> {
        for (w, word) in TAKEN.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            while bits != u64::MAX {
                let n = bits.trailing_ones();
                let before = word.fetch_or(1 << n, Ordering::Relaxed);
                if before & (1 << n) == 0 {
                    // INVARIANT: It was clear and is set now.
                    return Some(Self((w * 64) as u16 + n as u16));
                }
                bits = before;
            }
        }
        None
    }

    /// Its number, 1 to 65535.
    pub(super) fn number(&self) -> u16 {
        self.0
    }
}

impl Drop for Vpid {
    fn drop(&mut self) {
        TAKEN[usize::from(self.0 / 64)].fetch_and(!(1 << (self.0 % 64)), Ordering::Relaxed);
    }
}

/// What a vCPU must flush before it enters the guest.
#[derive(Debug)]
pub(super) struct Tlb {
    vpid: Option<Vpid>,
    eptp: u64,
    invept: Scope,
    invvpid: Option<Scope>,
    stale: Stale,
}

/// What of the cached translations may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stale {
    Nothing,
    /// What the guest's own page tables led to.
    Guest,
    /// Everything, of both levels.
    All,
}

impl Tlb {
    pub(super) fn new(
        vpid: Option<Vpid>,
        eptp: u64,
        invept: Scope,
        invvpid: Option<Scope>,
    ) -> Self {
        Self {
            vpid,
            eptp,
            invept,
            invvpid,
            stale: Stale::All,
        }
    }

    /// The EPT pointer.
    pub(super) fn eptp(&self) -> u64 {
        self.eptp
    }

    /// Changes the EPT pointer. Whether it was another; then nothing that CPUs may remember of the new one counts.
    pub(super) fn set_eptp(&mut self, eptp: u64) -> bool {
        let new = self.eptp != eptp;
        if new {
            self.eptp = eptp;
            self.flush_all();
        }
        new
    }

    /// The VPID, 0 if it has none.
    pub(super) fn vpid(&self) -> u16 {
        self.vpid.as_ref().map_or(0, Vpid::number)
    }

    /// Asks for everything to be flushed.
    pub(super) fn flush_all(&mut self) {
        self.stale = Stale::All;
    }

    /// Asks for what came through the guest's page tables to be flushed, when the guest changed how they are
    /// read. Without a VPID every entry does that.
    pub(super) fn flush_guest(&mut self) {
        if self.stale == Stale::Nothing {
            self.stale = Stale::Guest;
        }
    }

    /// Flushes what was asked for. Window only, before an entry.
    #[inline]
    pub(super) fn flush(&mut self, vmcs: &Vmcs) {
        if self.stale != Stale::Nothing {
            self.flush_stale(vmcs);
        }
    }

    #[inline(never)]
    fn flush_stale(&mut self, vmcs: &Vmcs) {
        if self.stale == Stale::All {
            // Combined mappings go too, whatever their VPID.
            // SAFETY: In the window this CPU is in VMX operation; the scope is one that it has.
            vmcs.check("INVEPT", unsafe {
                instruction::invept(self.invept, self.eptp)
            });
        } else if let (Some(vpid), Some(scope)) = (&self.vpid, self.invvpid) {
            // SAFETY: As above.
            vmcs.check("INVVPID", unsafe {
                instruction::invvpid(scope, vpid.number())
            });
        }
        self.stale = Stale::Nothing;
    }
}
