// SPDX-License-Identifier: GPL-2.0

//! `KVM_PRE_FAULT_MEMORY` (api.rst, 4.143): guest memory is mapped before the guest asks for it.

use super::memory::Filled;
use super::vcpu::Vcpu;
use super::XvmOps;
use crate::linux::task;
use crate::linux::user;
use crate::uapi::kvm_pre_fault_memory;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

impl<V: XvmOps> Vcpu<V> {
    /// `KVM_PRE_FAULT_MEMORY`: maps a range as reads by the guest would. The argument says afterwards what is left of it.
    ///
    /// # Errors
    ///
    /// `EINVAL` for flags, a range that isn't of pages, is empty or wraps; and when nothing was mapped: `ENOENT` where there is no
    /// memory, `EFAULT` where it is private and isn't there, `EINTR` for a signal, or as [`Memory::fill`](super::memory::Memory::fill). `EFAULT` for the argument.
    pub(crate) fn pre_fault_memory(&mut self, arg: usize) -> Result<isize> {
        let mut range: kvm_pre_fault_memory = user::read(arg)?;
        let page = PAGE_SIZE as u64;
        let end = range.gpa.checked_add(range.size);
        if range.flags != 0
            || range.gpa % page != 0
            || range.size % page != 0
            || end.is_none_or(|end| end <= range.gpa)
        {
            return Err(EINVAL);
        }
        let asked = range.size;
        let result = self.pre_fault(&mut range);
        user::write(arg, &range)?;
        match result {
            Err(error) if range.size == asked => Err(error),
            _ => Ok(0),
        }
    }

    fn pre_fault(&mut self, range: &mut kvm_pre_fault_memory) -> Result {
        while range.size != 0 {
            if task::signal_pending() {
                return Err(EINTR);
            }
            self.slots.refresh();
            let (slots, spare) = (&self.slots, &mut self.spare);
            match self.vm.memory.fill(slots, range.gpa, false, true, spare)? {
                Filled::Again | Filled::Slow(_) => {}
                Filled::Device => return Err(ENOENT),
                Filled::NotPrivate => return Err(EFAULT),
                Filled::Mapped(size) => {
                    let done = size - (range.gpa & (size - 1));
                    range.gpa = range.gpa.wrapping_add(done.min(range.size));
                    range.size = range.size.saturating_sub(done);
                }
            }
            task::cond_resched();
        }
        Ok(())
    }
}
