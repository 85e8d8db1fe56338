// SPDX-License-Identifier: GPL-2.0

//! Which guest memory is private (api.rst, 4.141): in VMs of the type `KVM_X86_SW_PROTECTED_VM` a page is either private, and
//! in the slot's file, or shared, and at the slot's user address. The VMM says which, for addresses with and without a slot.

use super::space::CHUNK;
use super::tables;
use super::AsId;
use super::Memory;
use super::PageFormat;
use crate::linux::task;
use core::ops::Range;
use kernel::prelude::*;
use kernel::rbtree::RBTree;
use kernel::rbtree::RBTreeNodeReservation;

/// Room for one more range.
type Room = RBTreeNodeReservation<u64, u64>;

/// The private ranges of guest-physical addresses, page aligned. None touches another.
pub(super) struct Attributes {
    /// From each range's end, exclusive, to its start.
    private: RBTree<u64, u64>,
}

/// As much memory as has the same attribute.
pub(super) struct Extent {
    pub(super) private: bool,
    pub(super) range: Range<u64>,
}

impl Attributes {
    /// All is shared.
    pub(super) fn new() -> Self {
        Self {
            private: RBTree::new(),
        }
    }

    /// What `gpa` is, and all around it.
    pub(super) fn at(&self, gpa: u64) -> Extent {
        let behind = self.private.cursor_lower_bound(&gpa.saturating_add(1));
        let (before, next) = match &behind {
            None => (
                self.private.cursor_back().map(|last| *last.current().0),
                u64::MAX,
            ),
            Some(cursor) => {
                let (&end, &start) = cursor.current();
                if start <= gpa {
                    return Extent {
                        private: true,
                        range: start..end,
                    };
                }
                (cursor.peek_prev().map(|(end, _)| *end), start)
            }
        };
        Extent {
            private: false,
            range: before.unwrap_or(0)..next,
        }
    }

    fn insert(&mut self, range: Range<u64>, room: &mut Option<Room>) {
        if let Some(room) = room.take() {
            self.private.insert(room.into_node(range.end, range.start));
        }
    }

    /// Makes a range private that is shared. What touches it becomes one range with it. `room` is used, or there was more than is
    /// needed afterwards.
    fn set_private(&mut self, mut range: Range<u64>, room: &mut Option<Room>) {
        while let Some(cursor) = self.private.cursor_lower_bound_mut(&range.start) {
            let (&end, &start) = cursor.current();
            if start > range.end {
                break;
            }
            range = range.start.min(start)..range.end.max(end);
            let (_, node) = cursor.remove_current();
            *room = Some(node.into_reservation());
        }
        self.insert(range, room);
    }

    /// Makes a part of one private range shared. `room` is used if it has something on both sides.
    fn set_shared(&mut self, range: Range<u64>, room: &mut Option<Room>) {
        let Some(mut cursor) = self.private.cursor_lower_bound_mut(&range.end) else {
            return;
        };
        let (&end, start) = cursor.current_mut();
        let before = *start..range.start;
        if end > range.end {
            *start = range.end;
        } else {
            let (_, node) = cursor.remove_current();
            *room = Some(node.into_reservation());
        }
        if !before.is_empty() {
            self.insert(before, room);
        }
    }
}

impl<F: PageFormat> Memory<F> {
    /// `KVM_SET_MEMORY_ATTRIBUTES`: makes a range of page-aligned addresses private or shared. When this returns the guest
    /// finds nothing there any more of what it was before. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; then nothing has changed.
    pub(crate) fn set_private(&self, range: Range<u64>, private: bool) -> Result {
        let _update = self.update.lock();
        // Each step but the first gives back as much room as it takes: what it adds touches what the one before has added.
        let mut room = Some(Room::new(GFP_KERNEL_ACCOUNT)?);
        let mut at = range.start;
        while at < range.end {
            at = self.convert(at..range.end, private, &mut room);
            task::cond_resched();
        }
        self.flush_cleared();
        Ok(())
    }

    /// Converts a first part of a range; returns its end.
    fn convert(&self, range: Range<u64>, private: bool, room: &mut Option<Room>) -> u64 {
        let mut guarded = self.guarded.lock();
        let here = guarded.attributes.at(range.start);
        let mut part = range.start..range.end.min(here.range.end);
        if here.private == private {
            return part.end;
        }
        if part.start < tables::END {
            part.end = part.end.min((part.start / CHUNK + 1) * CHUNK);
        }
        match private {
            true => guarded.attributes.set_private(part.clone(), room),
            false => guarded.attributes.set_shared(part.clone(), room),
        }
        // Whoever has looked before maps nothing.
        guarded.sequence = guarded.sequence.wrapping_add(1);
        if guarded.tables[AsId::Main.index()].unmap(&part) {
            guarded.cleared += 1;
        }
        part.end
    }

    /// What `gpa` is, and the number of changes by which that is known.
    pub(super) fn extent(&self, gpa: u64) -> (Extent, u64) {
        let guarded = self.guarded.lock();
        (guarded.attributes.at(gpa), guarded.sequence)
    }
}
