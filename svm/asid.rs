// SPDX-License-Identifier: GPL-2.0

//! Address-space identifiers: a small number of tags for the TLB of one physical CPU, given out by generations.
//!
//! A CPU hands out its ASIDs one after the other, each once. When they are used up a new generation begins: the whole TLB is
//! flushed and all ASIDs are free again, so a vCPU whose ASID is of an older generation must take a new one. A [`Tag`] is
//! current on the CPU that gave it, in the generation that it carries, and nowhere else; nobody keeps a list of owners. An ASID
//! given out has no entry in the TLB, because nobody had it since the TLB was flushed. Taking a new one is thus the way to flush a
//! guest's translations on CPUs that can't flush by ASID.
//!
//! ASID 0 is the host's. [`Pool::BORROWED`] is set aside for windows that run beside KVM, see `cpu.rs`.

/// A vCPU's ASID, and where it is good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tag {
    /// The CPU that gave it.
    cpu: u32,
    /// The generation in which it was given; 0 is never current.
    generation: u64,
    asid: u32,
}

impl Tag {
    /// The ASID.
    pub(super) fn asid(self) -> u32 {
        self.asid
    }
}

/// The ASIDs of one physical CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    cpu: u32,
    generation: u64,
    /// The next to be given.
    next: u32,
    /// Number of ASIDs that the CPU has, 0 included.
    count: u32,
}

/// An ASID, and whether the TLB must be flushed before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) tag: Tag,
    pub(super) flush_all: bool,
}

impl Pool {
    /// The ASID of all windows that run beside KVM.
    pub(super) const BORROWED: u32 = 1;
    /// The first that the pool gives.
    const FIRST: u32 = 2;
    /// The least number of ASIDs, 0 included, that a pool can work with.
    pub(super) const MIN_COUNT: u32 = 4;

    /// The `count` ASIDs of CPU `cpu`, of whose TLB nothing is known.
    pub(super) const fn new(cpu: u32, count: u32) -> Self {
        Self {
            cpu,
            generation: 0,
            next: count,
            count,
        }
    }

    /// Whether `tag` may be used as it is.
    pub(super) fn is_current(&self, tag: Tag) -> bool {
        tag.cpu == self.cpu && tag.generation == self.generation && self.generation != 0
    }

    /// Gives an ASID that has no entry in the TLB once `flush_all`, if set, is obeyed.
    pub(super) fn give(&mut self) -> Given {
        let flush_all = self.next >= self.count;
        if flush_all {
            // 2^64 generations don't pass in a machine's life.
            self.generation = self.generation.wrapping_add(1);
            self.next = Self::FIRST;
        }
        let tag = Tag {
            cpu: self.cpu,
            generation: self.generation,
            asid: self.next,
        };
        self.next += 1;
        Given { tag, flush_all }
    }

    /// Somebody else used the CPU's ASIDs: the next one given begins a new generation, and none is current.
    pub(super) fn forget(&mut self) {
        *self = Self {
            generation: self.generation.wrapping_add(1),
            next: self.count,
            ..*self
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_gives_each_asid_once_and_starts_with_a_flush() {
        let mut pool = Pool::new(3, 8);
        let given: [Given; 7] = core::array::from_fn(|_| pool.give());
        assert_eq!(given.map(|g| g.tag.asid()), [2, 3, 4, 5, 6, 7, 2]);
        assert_eq!(
            given.map(|g| g.flush_all),
            [true, false, false, false, false, false, true]
        );
        assert!(!pool.is_current(given[5].tag));
        assert!(pool.is_current(given[6].tag));
    }

    #[test]
    fn the_smallest_pool_never_gives_what_is_set_aside() {
        let mut pool = Pool::new(0, Pool::MIN_COUNT);
        for _ in 0..10 {
            let asid = pool.give().tag.asid();
            assert!(asid > Pool::BORROWED && asid < Pool::MIN_COUNT);
        }
    }

    #[test]
    fn a_tag_is_good_on_its_own_cpu_only() {
        let (mut here, mut there) = (Pool::new(0, 8), Pool::new(1, 8));
        let (a, b) = (here.give(), there.give());
        assert!(here.is_current(a.tag) && there.is_current(b.tag));
        assert!(!here.is_current(b.tag) && !there.is_current(a.tag));
        assert!(!here.is_current(Tag::default()));
        assert!(!Pool::new(0, 8).is_current(Tag::default()));
    }

    #[test]
    fn after_a_stranger_everything_is_flushed_and_taken_anew() {
        let mut pool = Pool::new(0, 8);
        let old = pool.give();
        pool.forget();
        assert!(!pool.is_current(old.tag));
        assert!(pool.give().flush_all);
    }
}
