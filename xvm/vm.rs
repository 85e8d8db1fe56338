// SPDX-License-Identifier: GPL-2.0

//! A VM and its ioctls (api.rst, section 4, "vm ioctl").

use super::bus::Bus;
use super::enable_cap::Switches;
use super::extension;
use super::irqchip::IrqChip;
use super::irqchip::Kind;
use super::irqfd::IrqFds;
use super::kick::Kick;
use super::machine::Machine;
use super::memory::Memory;
use super::memory::Region;
use super::msr::MsrFilter;
use super::platform::lapic::Shorthand;
use super::platform::Message;
use super::processors::Processors;
use super::pv::Clock;
use super::stats;
use super::targets::Targets;
use super::tsc::Tsc;
use super::vcpu::Shared;
use super::vcpu_file::VcpuFile;
use super::XvmOps;
use crate::linux::anon_file;
use crate::linux::anon_file::AnonFile;
use crate::linux::mmu_notifier;
use crate::linux::preempt::Watching;
use crate::linux::task::AddressSpace;
use crate::linux::timer::Timed;
use crate::linux::user;
use crate::uapi;
use core::ops::DerefMut;
use kernel::mm::virt::VmaNew;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::new_mutex;
use kernel::sync::new_spinlock;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;
use kernel::sync::Mutex;
use kernel::sync::SetOnce;
use kernel::sync::SpinLock;

/// The fewest shadow pages that `KVM_SET_NR_MMU_PAGES` may ask for.
const SHADOW_PAGES_LEAST: usize = 64;

/// What is behind a VM's file descriptor: the virtual platform, and what its vCPUs share.
///
/// # Locks
///
/// 1. a vCPU's mutex; 2. `setup`; 3. the locks in [`Memory`]; 4. those in [`IrqChip`], [`Targets`] and [`Kick`].
#[pin_data]
pub(crate) struct Vm<V: XvmOps> {
    /// The physical machine.
    pub(crate) machine: Arc<Machine<V>>,
    /// The time-stamp counter that its vCPUs have in common.
    #[pin]
    pub(crate) tsc: Tsc,
    /// The clock that its guest reads (kvmclock).
    #[pin]
    pub(crate) clock: Clock,
    /// Guest-physical memory.
    pub(crate) memory: Arc<Memory<V::Pages>>,
    /// Only kept: it holds a reference to the memory, which its callbacks use, and ends them when it is dropped.
    _notifier: Pin<KBox<mmu_notifier::Registration<Memory<V::Pages>>>>,
    /// Which MSRs the VMM keeps from its guest. Taken for an instant, alone.
    #[pin]
    msr_filter: SpinLock<Option<Arc<MsrFilter>>>,
    /// Allows vCPUs to be told when they leave their CPU.
    pub(crate) watching: Watching,
    /// What `KVM_ENABLE_CAP` has turned on.
    pub(crate) switches: Switches,
    mm: Arc<AddressSpace>,
    kick: Arc<Kick>,
    targets: Arc<Targets>,
    irqchip: SetOnce<Arc<Timed<IrqChip>>>,
    /// Writes that the VMM hears of without an exit.
    pub(crate) bus: Arc<Bus>,
    /// Eventfds that raise interrupts.
    #[pin]
    pub(super) irqfds: IrqFds,
    /// Held while the irqchip or a vCPU is made, of which each depends on the other's absence.
    #[pin]
    setup: Mutex<Processors>,
}

impl<V: XvmOps> Vm<V> {
    /// Makes a VM of a type, `KVM_X86_*_VM`, and returns its file descriptor.
    ///
    /// # Errors
    ///
    /// `EINVAL` for another type; `ENOMEM`, `EINTR`, or as [`anon_file::create`].
    pub(crate) fn create(machine: Arc<Machine<V>>, kind: usize) -> Result<isize> {
        let protected = match u32::try_from(kind)? {
            uapi::KVM_X86_DEFAULT_VM => false,
            uapi::KVM_X86_SW_PROTECTED_VM => true,
            _ => return Err(EINVAL),
        };
        let kick = Kick::new()?;
        let mm = Arc::new(AddressSpace::current()?, GFP_KERNEL_ACCOUNT)?;
        let memory = Memory::new(kick.clone(), protected)?;
        let notifier = mmu_notifier::Registration::new(memory.clone(), mm.clone())?;
        let targets = Targets::new()?;
        let bus = Bus::new()?;
        let vm = Arc::pin_init(
            pin_init!(Self {
                machine,
                tsc <- Tsc::new(),
                clock <- Clock::new(),
                memory,
                _notifier: notifier,
                msr_filter <- new_spinlock!(None, "xvm_msr_filter"),
                watching: Watching::new(),
                switches: Switches::default(),
                mm,
                kick,
                targets,
                irqchip: SetOnce::new(),
                bus,
                irqfds <- IrqFds::new(),
                setup <- new_mutex!(Processors::DEFAULT, "xvm_vm_setup"),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        anon_file::create(vm)
    }

    /// The address space that guest memory is in: no other process may run the VM.
    pub(crate) fn address_space(&self) -> &Arc<AddressSpace> {
        &self.mm
    }

    /// The vCPUs as destinations.
    pub(super) fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Has all vCPUs write again what they keep in guest memory. None is in the guest, or enters it, before it has done so once
    /// this returns. Does not sleep; interrupts must be on.
    pub(super) fn request_updates(&self) {
        self.targets.post_updates();
        self.kick.all_and_wait();
    }

    /// Does what is allowed before there is a vCPU alone.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is one.
    pub(super) fn before_vcpus(&self, action: impl FnOnce()) -> Result {
        let _setup = self.setup.lock();
        if self.has_vcpus() {
            return Err(EINVAL);
        }
        action();
        Ok(())
    }

    /// What is settled before there are vCPUs. While it is held none is made.
    pub(super) fn processors(&self) -> impl DerefMut<Target = Processors> + '_ {
        self.setup.lock()
    }

    /// Which MSRs the VMM keeps from its guest.
    pub(crate) fn msr_filter(&self) -> Option<Arc<MsrFilter>> {
        self.msr_filter.lock().clone()
    }

    /// Replaces that; returns the old one, which is dropped when no vCPU has it any more.
    pub(crate) fn replace_msr_filter(&self, new: Arc<MsrFilter>) -> Option<Arc<MsrFilter>> {
        self.msr_filter.lock().replace(new)
    }

    /// The in-kernel interrupt controllers, once they were made.
    #[inline]
    pub(crate) fn irqchip(&self) -> Option<&Arc<Timed<IrqChip>>> {
        self.irqchip.as_ref()
    }

    /// Whether a vCPU was made.
    pub(super) fn has_vcpus(&self) -> bool {
        self.targets.count() != 0
    }

    /// Delivers an interrupt between processors.
    pub(crate) fn send(&self, message: &Message, shorthand: Shorthand, from: u32) {
        self.targets.send_ipi(message, shorthand, from);
    }

    /// Makes a vCPU known to the others. May sleep.
    ///
    /// # Errors
    ///
    /// `EEXIST`, `ENOMEM`.
    pub(crate) fn add_vcpu(&self, vcpu: Arc<Timed<Shared>>) -> Result {
        self.kick.add(vcpu.presence.clone())?;
        self.targets.add(vcpu)
    }

    /// Undoes `add_vcpu`.
    pub(crate) fn remove_vcpu(&self, vcpu: &Arc<Timed<Shared>>) {
        self.targets.remove(vcpu);
        self.kick.remove(&vcpu.presence);
    }

    fn set_region(&self, slot: u32, flags: u32, gpa: u64, size: u64, user: u64) -> Result<isize> {
        self.memory
            .set_region(Region::new(slot, flags, gpa, size, user)?)?;
        Ok(0)
    }

    /// Gives the vCPUs that are made from now on dirty rings of `bytes`.
    ///
    /// # Errors
    ///
    /// As [`Memory::use_rings`]; `EINVAL` when there is a vCPU already.
    pub(super) fn use_dirty_rings(&self, bytes: u64) -> Result {
        let _setup = self.setup.lock();
        if self.has_vcpus() {
            return Err(EINVAL);
        }
        self.memory.use_rings(bytes)
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`: `struct kvm_memory_attributes` is an address, a size, the attributes, and flags.
    ///
    /// # Errors
    ///
    /// `EINVAL` for flags, attributes that the VM's memory can't have, and a range that isn't of pages, is empty or wraps; `EFAULT`, `ENOMEM`.
    fn set_memory_attributes(&self, arg: usize) -> Result<isize> {
        let [start, size, attributes, flags]: [u64; 4] = user::read(arg)?;
        let known = self.memory_attributes();
        let end = start.checked_add(size).ok_or(EINVAL)?;
        if flags != 0
            || attributes & !known != 0
            || size == 0
            || (start | size) % PAGE_SIZE as u64 != 0
        {
            return Err(EINVAL);
        }
        self.memory.set_private(start..end, attributes != 0)?;
        Ok(0)
    }

    /// The attributes that its memory can have, `KVM_MEMORY_ATTRIBUTE_*`.
    pub(super) fn memory_attributes(&self) -> u64 {
        match self.memory.is_protected() {
            true => uapi::KVM_MEMORY_ATTRIBUTE_PRIVATE.into(),
            false => 0,
        }
    }

    /// `KVM_GET_DIRTY_LOG`: `struct kvm_dirty_log` is the slot with padding, and an address.
    fn get_dirty_log(&self, arg: usize) -> Result<isize> {
        let [slot, to]: [u64; 2] = user::read(arg)?;
        self.memory.get_dirty_log(slot as u32, to as usize)?;
        Ok(0)
    }

    /// `KVM_CLEAR_DIRTY_LOG`: `struct kvm_clear_dirty_log` is the slot and the number of pages, the first page, and an address.
    fn clear_dirty_log(&self, arg: usize) -> Result<isize> {
        let [slot, first, from]: [u64; 3] = user::read(arg)?;
        self.memory
            .clear_dirty_log(slot as u32, first, (slot >> 32) as u32, from as usize)?;
        Ok(0)
    }

    fn create_vcpu(this: ArcBorrow<'_, Self>, id: usize) -> Result<isize> {
        let id = u32::try_from(id).map_err(|_| EINVAL)?;
        let mut processors = this.setup.lock();
        if this.targets.count() >= extension::MAX_VCPUS as usize {
            return Err(EINVAL);
        }
        processors.check_id(id)?;
        VcpuFile::create(this.into(), id, &processors)
    }

    /// Makes the interrupt controllers that are to be in the kernel.
    ///
    /// # Errors
    ///
    /// `EEXIST` when there are some; `late` when there is a vCPU; `ENOMEM`.
    pub(super) fn create_irqchip(&self, kind: Kind, late: Error) -> Result<isize> {
        let _setup = self.setup.lock();
        if self.irqchip().is_some() {
            return Err(EEXIST);
        }
        if self.targets.count() != 0 {
            return Err(late);
        }
        self.irqchip
            .populate(IrqChip::new(self.targets.clone(), kind)?);
        Ok(0)
    }
}

impl<V: XvmOps> AnonFile for Vm<V> {
    const NAME: &'static CStr = c"xvm-vm";

    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        if !this.mm.is_current() {
            return Err(EIO);
        }
        match cmd {
            uapi::KVM_CHECK_EXTENSION => this.check_extension(arg),
            uapi::KVM_ENABLE_CAP => this.enable_cap(arg),
            uapi::KVM_GET_STATS_FD => stats::create::<Self>(this.into()),
            uapi::KVM_X86_SET_MSR_FILTER => this.set_msr_filter(arg),
            uapi::KVM_SET_USER_MEMORY_REGION => {
                let region: uapi::kvm_userspace_memory_region = user::read(arg)?;
                let (gpa, size) = (region.guest_phys_addr, region.memory_size);
                this.set_region(region.slot, region.flags, gpa, size, region.userspace_addr)
            }
            uapi::KVM_SET_USER_MEMORY_REGION2 => {
                let region: uapi::kvm_userspace_memory_region2 = user::read(arg)?;
                this.memory.set_region(Region::with_file(&region)?)?;
                Ok(0)
            }
            uapi::KVM_CREATE_GUEST_MEMFD => {
                let asked: uapi::kvm_create_guest_memfd = user::read(arg)?;
                Memory::create_file(&this.memory, asked.size, asked.flags)
            }
            uapi::KVM_SET_MEMORY_ATTRIBUTES => this.set_memory_attributes(arg),
            uapi::KVM_GET_DIRTY_LOG => this.get_dirty_log(arg),
            uapi::KVM_CLEAR_DIRTY_LOG => this.clear_dirty_log(arg),
            uapi::KVM_RESET_DIRTY_RINGS => this.memory.reset_rings(),
            // With second-level tables there are no shadow pages to be limited.
            uapi::KVM_SET_NR_MMU_PAGES if arg < SHADOW_PAGES_LEAST => Err(EINVAL),
            uapi::KVM_SET_NR_MMU_PAGES => Ok(0),
            uapi::KVM_CREATE_VCPU => Self::create_vcpu(this, arg),
            uapi::KVM_SET_BOOT_CPU_ID => this.set_boot_cpu_id(arg),
            uapi::KVM_SET_TSS_ADDR => this.set_tss_address(arg),
            uapi::KVM_SET_IDENTITY_MAP_ADDR => this.set_identity_map_address(arg),
            uapi::KVM_CREATE_IRQCHIP => this.create_irqchip(Kind::Full, EINVAL),
            uapi::KVM_GET_IRQCHIP => this.get_irqchip(arg),
            uapi::KVM_SET_IRQCHIP => this.set_irqchip(arg),
            uapi::KVM_CREATE_PIT => this.create_pit(),
            uapi::KVM_GET_PIT => this.get_pit(arg),
            uapi::KVM_SET_PIT => this.set_pit(arg),
            uapi::KVM_CREATE_PIT2 => this.create_pit2(arg),
            uapi::KVM_GET_PIT2 => this.get_pit2(arg),
            uapi::KVM_SET_PIT2 => this.set_pit2(arg),
            uapi::KVM_REINJECT_CONTROL => this.reinject_control(arg),
            uapi::KVM_IRQ_LINE => this.irq_line(arg, false),
            uapi::KVM_IRQ_LINE_STATUS => this.irq_line(arg, true),
            uapi::KVM_SET_GSI_ROUTING => this.set_gsi_routing(arg),
            uapi::KVM_IRQFD => this.irqfd(arg),
            uapi::KVM_IOEVENTFD => this.ioeventfd(arg),
            uapi::KVM_REGISTER_COALESCED_MMIO => this.register_coalesced(arg),
            uapi::KVM_UNREGISTER_COALESCED_MMIO => this.unregister_coalesced(arg),
            uapi::KVM_SIGNAL_MSI => this.signal_msi(arg),
            uapi::KVM_GET_TSC_KHZ => Ok(this.tsc.default_khz() as isize),
            uapi::KVM_SET_TSC_KHZ => this.set_default_tsc_khz(arg),
            uapi::KVM_GET_CLOCK => this.get_clock(arg),
            uapi::KVM_SET_CLOCK => this.set_clock(arg),
            _ => Err(extension::refusal(uapi::Fd::Vm, cmd)),
        }
    }

    fn mmap(_: ArcBorrow<'_, Self>, _: &VmaNew) -> Result {
        Err(ENODEV)
    }

    /// vCPUs may keep the VM, but its descriptor is what irqfds belong to.
    fn release(this: Arc<Self>) {
        this.irqfds.clear();
    }
}
