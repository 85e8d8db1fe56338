// SPDX-License-Identifier: GPL-2.0

//! A vCPU's file: its ioctls (api.rst, section 4, "vcpu ioctl") and what it maps.

use super::extension;
use super::memory::Ring;
use super::processors::Processors;
use super::pv::OffCpu;
use super::stats;
use super::vcpu::Shared;
use super::vcpu::Vcpu;
use super::vcpu::RUN_PAGES;
use super::vm::Vm;
use super::XvmOps;
use crate::linux::anon_file;
use crate::linux::anon_file::AnonFile;
use crate::linux::run_pages;
use crate::linux::run_pages::RunPages;
use crate::linux::timer::Timed;
use crate::uapi;
use kernel::mm::virt::VmaNew;
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;
use kernel::sync::Mutex;

/// The page of a vCPU's file that its dirty ring begins with.
const RING_PAGE: usize = uapi::KVM_DIRTY_LOG_PAGE_OFFSET as usize;

/// What is behind a vCPU's file descriptor.
#[pin_data(PinnedDrop)]
pub(crate) struct VcpuFile<V: XvmOps> {
    vm: Arc<Vm<V>>,
    shared: Arc<Timed<Shared>>,
    pages: Arc<RunPages>,
    /// The dirty ring, if it has one.
    ring: Option<Arc<Ring>>,
    #[pin]
    vcpu: Mutex<KBox<Vcpu<V>>>,
}

impl<V: XvmOps> VcpuFile<V> {
    /// Makes vCPU `id` of `vm` and returns its file descriptor.
    ///
    /// # Errors
    ///
    /// `EEXIST` when there is one of that number, `ENOMEM`, or as [`anon_file::create`].
    pub(crate) fn create(vm: Arc<Vm<V>>, id: u32, processors: &Processors) -> Result<isize> {
        let pages = Arc::new(
            RunPages::followed(RUN_PAGES, vm.bus.ring_page())?,
            GFP_KERNEL_ACCOUNT,
        )?;
        let off_cpu = OffCpu::new(vm.memory.current());
        let shared = Shared::new(id, id == processors.boot, off_cpu)?;
        let cycle = processors.bus_cycle_ns;
        let vcpu = Vcpu::new(vm.clone(), shared.clone(), pages.clone(), cycle)?;
        let vcpu = KBox::new(vcpu, GFP_KERNEL_ACCOUNT)?;
        let file = Arc::pin_init(
            pin_init!(Self {
                vm,
                shared,
                pages,
                ring: vcpu.slots.ring().cloned(),
                vcpu <- new_mutex!(vcpu, "xvm_vcpu"),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        // The drop of `file` takes it out of the VM's list again, also after a failure.
        file.vm.add_vcpu(file.shared.clone())?;
        // What the VM told its vCPUs before.
        file.shared.mailbox.post_update();
        file.vm.tscs_changed();
        let vm = file.vm.clone();
        // Nobody has seen the number then.
        anon_file::create(file).inspect_err(|_| vm.targets().forget(id))
    }
}

#[pinned_drop]
impl<V: XvmOps> PinnedDrop for VcpuFile<V> {
    fn drop(self: Pin<&mut Self>) {
        self.vm.remove_vcpu(&self.shared);
        self.vm.tscs_changed();
        self.shared.cancel_timer();
    }
}

impl<V: XvmOps> AnonFile for VcpuFile<V> {
    const NAME: &'static CStr = c"xvm-vcpu";

    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        if !this.vm.address_space().is_current() {
            return Err(EIO);
        }
        let mut vcpu = this.vcpu.lock();
        match cmd {
            uapi::KVM_RUN if arg != 0 => Err(EINVAL),
            uapi::KVM_RUN => vcpu.run(&this.shared, &this.vm.machine).map(|()| 0),
            _ => vcpu.other_ioctl(cmd, arg),
        }
    }

    fn mmap(this: ArcBorrow<'_, Self>, vma: &VmaNew) -> Result {
        let first = run_pages::first_page(vma);
        match (&this.ring, first.checked_sub(RING_PAGE)) {
            (Some(ring), Some(first)) => ring.map(vma, first),
            _ => this.pages.map(vma, first),
        }
    }
}

impl<V: XvmOps> Vcpu<V> {
    /// The ioctls but `KVM_RUN`, which is apart from them because their variables would be on its stack.
    #[inline(never)]
    fn other_ioctl(&mut self, cmd: u32, arg: usize) -> Result<isize> {
        let vcpu = self;
        match cmd {
            uapi::KVM_GET_REGS => vcpu.get_regs(arg),
            uapi::KVM_SET_REGS => vcpu.set_regs(arg),
            uapi::KVM_GET_SREGS => vcpu.get_sregs(arg),
            uapi::KVM_SET_SREGS => vcpu.set_sregs(arg),
            uapi::KVM_GET_SREGS2 => vcpu.get_sregs2(arg),
            uapi::KVM_SET_SREGS2 => vcpu.set_sregs2(arg),
            uapi::KVM_GET_FPU => vcpu.get_fpu(arg),
            uapi::KVM_SET_FPU => vcpu.set_fpu(arg),
            uapi::KVM_GET_XSAVE | uapi::KVM_GET_XSAVE2 => vcpu.get_xsave(arg),
            uapi::KVM_SET_XSAVE => vcpu.set_xsave(arg),
            uapi::KVM_GET_XCRS => vcpu.get_xcrs(arg),
            uapi::KVM_SET_XCRS => vcpu.set_xcrs(arg),
            uapi::KVM_GET_MSRS => vcpu.get_msrs(arg),
            uapi::KVM_SET_MSRS => vcpu.set_msrs(arg),
            uapi::KVM_GET_ONE_REG => vcpu.one_reg(arg, false),
            uapi::KVM_SET_ONE_REG => vcpu.one_reg(arg, true),
            uapi::KVM_GET_REG_LIST => vcpu.reg_list(arg),
            uapi::KVM_GET_CPUID2 => vcpu.get_cpuid2(arg),
            uapi::KVM_SET_CPUID => vcpu.set_cpuid(arg),
            uapi::KVM_SET_CPUID2 => vcpu.set_cpuid2(arg),
            uapi::KVM_GET_LAPIC => vcpu.get_lapic(arg),
            uapi::KVM_SET_LAPIC => vcpu.set_lapic(arg),
            uapi::KVM_SET_VAPIC_ADDR => vcpu.set_vapic_address(arg),
            uapi::KVM_GET_MP_STATE => vcpu.get_mp_state(arg),
            uapi::KVM_SET_MP_STATE => vcpu.set_mp_state(arg),
            uapi::KVM_GET_VCPU_EVENTS => vcpu.get_vcpu_events(arg),
            uapi::KVM_SET_VCPU_EVENTS => vcpu.set_vcpu_events(arg),
            uapi::KVM_GET_DEBUGREGS => vcpu.get_debugregs(arg),
            uapi::KVM_SET_DEBUGREGS => vcpu.set_debugregs(arg),
            uapi::KVM_GET_TSC_KHZ => Ok(vcpu.tsc_khz as isize),
            uapi::KVM_SET_TSC_KHZ => vcpu.set_tsc_khz(arg),
            uapi::KVM_GET_STATS_FD => stats::create(vcpu.shared.clone()),
            uapi::KVM_SET_GUEST_DEBUG => vcpu.set_guest_debug(arg),
            uapi::KVM_X86_SETUP_MCE => vcpu.setup_mce(arg),
            uapi::KVM_X86_SET_MCE => vcpu.set_mce(arg),
            uapi::KVM_HAS_DEVICE_ATTR | uapi::KVM_GET_DEVICE_ATTR | uapi::KVM_SET_DEVICE_ATTR => {
                vcpu.device_attr(cmd, arg)
            }
            uapi::KVM_KVMCLOCK_CTRL => vcpu.set_guest_stopped(),
            uapi::KVM_ENABLE_CAP => vcpu.enable_cap(arg),
            uapi::KVM_INTERRUPT => vcpu.queue_interrupt(arg),
            uapi::KVM_NMI => vcpu.queue_nmi(),
            uapi::KVM_SMI => vcpu.queue_smi(),
            uapi::KVM_PRE_FAULT_MEMORY => vcpu.pre_fault_memory(arg),
            uapi::KVM_TRANSLATE => vcpu.translate(arg),
            uapi::KVM_SET_SIGNAL_MASK => vcpu.set_signal_mask(arg),
            _ => Err(extension::refusal(uapi::Fd::Vcpu, cmd)),
        }
    }
}
