// SPDX-License-Identifier: GPL-2.0

//! A vCPU: what belongs to it, and its ioctls (api.rst, section 4, "vcpu ioctl").
//!
//! [`VcpuFile`] is what is behind the file descriptor. [`Vcpu`] is what only the thread in an ioctl touches, behind the
//! file's mutex. [`Shared`] is what other threads reach: the mailbox of its local APIC, and the means to wake or kick it.

use super::bus::BusView;
use super::cpuid::GuestCpuid;
use super::events::Events;
use super::extension;
use super::guest_debug::GuestDebug;
use super::irqchip::IrqChip;
use super::kick::Presence;
use super::mce::Mce;
use super::memory::AsId;
use super::memory::MainView;
use super::memory::Ring;
use super::memory::Spare;
use super::memory::View;
use super::msr::MsrFilter;
use super::msr::Msrs;
use super::ops::Config;
use super::pending::Pending;
use super::platform::halt_poll::HaltPoll;
use super::platform::lapic::Lapic;
use super::platform::lapic::Reset;
use super::platform::mailbox::Mailbox;
use super::processors::Processors;
use super::pv::OffCpu;
use super::pv::Pv;
use super::replay::Replay;
use super::smm::Smm;
use super::stats;
use super::stats::VcpuStats;
use super::tsc;
use super::vm::Vm;
use super::XvmOps;
use crate::linux::anon_file;
use crate::linux::anon_file::AnonFile;
use crate::linux::fpu::GuestFpu;
use crate::linux::run_pages;
use crate::linux::run_pages::RunPages;
use crate::linux::thread::Thread;
use crate::linux::timer::Timed;
use crate::linux::timer::TimerTarget;
use crate::linux::wait::WaitPoint;
use crate::uapi;
use core::sync::atomic::AtomicU32;
use kernel::mm::virt::VmaNew;
use kernel::new_mutex;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::new_spinlock_irq;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;
use kernel::sync::Mutex;
use kernel::sync::SpinLockIrq;

/// Pages of its own that a vCPU shares with its VMM: `struct kvm_run`, the data of port I/O.
const RUN_PAGES: usize = 2;

/// Pages of a mapping of a vCPU: behind its own is the ring of coalesced I/O (`KVM_CAP_COALESCED_MMIO` says where).
pub(crate) const MAPPED_PAGES: usize = RUN_PAGES + 1;

/// The page of a vCPU's file that its dirty ring begins with.
const RING_PAGE: usize = uapi::KVM_DIRTY_LOG_PAGE_OFFSET as usize;

/// Offset of the data of port I/O in them.
pub(crate) const PORT_DATA: usize = PAGE_SIZE;

/// What a vCPU does when it is run (api.rst, 4.38, `KVM_GET_MP_STATE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MpState {
    /// It runs.
    Runnable,
    /// An application processor that waits for INIT.
    Uninitialized,
    /// It waits for a start-up IPI.
    InitReceived,
    /// It waits for an interrupt after HLT.
    Halted,
}

/// What other threads reach of a vCPU. Its timer expires when the local APIC's is due.
#[pin_data]
pub(crate) struct Shared {
    /// The vCPU's number, and the ID of its local APIC.
    pub(crate) id: u32,
    /// Whether it is the bootstrap processor.
    pub(crate) bootstrap: bool,
    /// Whether it is in the guest, and where.
    pub(crate) presence: Arc<Presence>,
    /// Interrupts for it.
    pub(crate) mailbox: Mailbox,
    /// What the scheduler's callbacks know.
    pub(crate) off_cpu: OffCpu,
    /// How many pages are brought in for it, whether or not it waits for them.
    pub(crate) pages_awaited: AtomicU32,
    /// Its TSC, as the other vCPUs may know it.
    pub(crate) tsc: tsc::Published,
    /// The thread that ran it last.
    #[pin]
    pub(crate) thread: SpinLockIrq<Option<Arc<Thread>>>,
    /// What is counted of it.
    pub(crate) stats: VcpuStats,
    /// Where it sleeps in HLT.
    #[pin]
    pub(crate) wait: WaitPoint,
}

impl TimerTarget for Shared {
    fn expired(&self) -> Option<u64> {
        self.mailbox.post_timer();
        self.wake();
        None
    }
}

impl Shared {
    fn new(id: u32, bootstrap: bool, off_cpu: OffCpu) -> Result<Arc<Timed<Self>>> {
        let presence = Arc::new(Presence::new(), GFP_KERNEL_ACCOUNT)?;
        Arc::pin_init(
            Timed::new(pin_init!(Self {
                id,
                bootstrap,
                presence,
                mailbox: Mailbox::new(),
                off_cpu,
                pages_awaited: AtomicU32::new(0),
                tsc: tsc::Published::default(),
                thread <- new_spinlock_irq!(None, "xvm_thread"),
                stats: VcpuStats::default(),
                wait <- WaitPoint::new(),
            })),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Makes the vCPU look for work, whether it sleeps or is in the guest. From any context.
    pub(crate) fn wake(&self) {
        self.wait.wake();
        self.presence.kick();
    }
}

/// What belongs to a vCPU.
pub(crate) struct Vcpu<V: XvmOps> {
    /// Its VM.
    pub(crate) vm: Arc<Vm<V>>,
    /// What others reach.
    pub(crate) shared: Arc<Timed<Shared>>,
    /// The pages shared with the VMM.
    pub(crate) pages: Arc<RunPages>,
    /// The vendor's part: control block and what goes with it.
    pub(crate) arch: V::Vcpu,
    /// FPU and extended state.
    pub(crate) fpu: GuestFpu,
    /// The VM's interrupt controllers in the kernel: there are some before the first vCPU, or none.
    irqchip: Option<Arc<Timed<IrqChip>>>,
    /// The local APIC, if the VM has an in-kernel one.
    pub(crate) lapic: Option<KBox<Lapic>>,
    /// Events that wait for the next entry.
    pub(crate) events: Events,
    /// What CPUID answers, as `KVM_SET_CPUID2` set it, and what follows from it.
    pub(crate) cpuid: GuestCpuid,
    /// Debugging by the VMM.
    pub(crate) guest_debug: GuestDebug,
    /// MSRs that neither the vendor nor the local APIC has.
    pub(crate) msrs: Msrs,
    /// Which of all MSRs the VMM keeps from the guest; the VM's, as of the last update.
    pub(crate) msr_filter: Option<Arc<MsrFilter>>,
    /// System management mode.
    pub(crate) smm: Smm,
    /// Machine-check registers.
    pub(crate) mce: KBox<Mce>,
    /// Whether it runs.
    pub(crate) mp_state: MpState,
    /// How long its HLT is polled.
    pub(crate) halt_poll: HaltPoll,
    /// The thread that ran it last, which the others know as well.
    pub(crate) thread: Option<Arc<Thread>>,
    /// The vCPU that it let go first when it was spinning.
    pub(crate) yielded_to: u32,
    /// The one that the guest has named to go first (`KVM_HC_SCHED_YIELD`).
    pub(crate) yield_to: Option<u32>,
    /// Page of a start-up IPI that the VMM restores (`KVM_MP_STATE_SIPI_RECEIVED`).
    pub(crate) sipi_vector: u8,
    /// What the last exit to userspace left to be done.
    pub(crate) pending: Pending,
    /// Accesses of the instruction under emulation that are already done.
    pub(crate) replay: Replay,
    /// The VM's memory slots.
    pub(crate) slots: View,
    /// The VM's bus, as last looked at.
    pub(crate) bus: BusView,
    /// The end of an interrupt that the VMM's IOAPIC is to be told of.
    pub(crate) ended: Option<u8>,
    /// The last of `Memory::flushes` that this vCPU flushed its TLB for.
    pub(crate) flushed: u64,
    /// The CPU that it ran on last.
    pub(crate) last_cpu: u32,
    /// CR8 as the guest last wrote it; the local APIC, if there is one, has it too.
    pub(crate) cr8: u8,
    /// Tables for the next page that is mapped.
    pub(crate) spare: Spare,
    /// How the VMM wants it to run, as the vendor was told.
    pub(crate) config: Config,
    /// The TSC's frequency in kHz, as the VMM asked for it.
    pub(crate) tsc_khz: u32,
    /// The paravirtual interface.
    pub(crate) pv: Pv,
    /// The local APIC's timer may be due at another time than the host's timer is set to.
    pub(crate) timer_stale: bool,
    /// The VMM wants to know when the guest can take an interrupt (`kvm_run.request_interrupt_window`).
    pub(crate) window_wanted: bool,
    /// Signals blocked while it runs (`KVM_SET_SIGNAL_MASK`).
    pub(crate) signal_mask: Option<u64>,
}

impl<V: XvmOps> Vcpu<V> {
    fn new(
        vm: Arc<Vm<V>>,
        shared: Arc<Timed<Shared>>,
        pages: Arc<RunPages>,
        bus_cycle_ns: u64,
    ) -> Result<Self> {
        let slots = vm.memory.view()?;
        let config = Config {
            root: vm.memory.root(AsId::Main),
            free_hlt: vm.switches.is_free(uapi::KVM_X86_DISABLE_EXITS_HLT),
            free_pause: vm.switches.is_free(uapi::KVM_X86_DISABLE_EXITS_PAUSE),
            free_mwait: vm.switches.is_free(uapi::KVM_X86_DISABLE_EXITS_MWAIT),
            ..Config::default()
        };
        let bootstrap = shared.bootstrap;
        let irqchip = vm.irqchip().cloned();
        let lapic = match irqchip {
            Some(_) => {
                let mut lapic = Lapic::new(shared.id, bootstrap, bus_cycle_ns);
                lapic.open_at_reset(vm.switches.opens_lint0());
                lapic.reset(Reset::PowerUp);
                Some(KBox::new(lapic, GFP_KERNEL_ACCOUNT)?)
            }
            None => None,
        };
        if let Some(lapic) = &lapic {
            shared.mailbox.publish(lapic);
        }
        let mp_state = match lapic {
            Some(_) if !bootstrap => MpState::Uninitialized,
            _ => MpState::Runnable,
        };
        let mut vcpu = Self {
            arch: V::alloc(&vm.machine.caps, config.root)?,
            fpu: GuestFpu::new(vm.machine.fpu)?,
            irqchip,
            lapic,
            events: Events::default(),
            cpuid: GuestCpuid::new(),
            guest_debug: GuestDebug::default(),
            msrs: Msrs::new(bootstrap, vm.switches.stuffs_feature_msrs()),
            msr_filter: None,
            smm: Smm::new(),
            mce: KBox::new(Mce::new(), GFP_KERNEL_ACCOUNT)?,
            mp_state,
            halt_poll: HaltPoll::default(),
            thread: None,
            yielded_to: 0,
            yield_to: None,
            sipi_vector: 0,
            pending: Pending::None,
            replay: Replay::default(),
            slots,
            bus: BusView::new(&vm.bus),
            ended: None,
            flushed: 0,
            last_cpu: u32::MAX,
            cr8: 0,
            spare: Spare::default(),
            config,
            tsc_khz: 0,
            pv: Pv::default(),
            timer_stale: false,
            window_wanted: false,
            signal_mask: None,
            vm,
            shared,
            pages,
        };
        vcpu.start_tsc();
        Ok(vcpu)
    }

    /// The VM's interrupt controllers in the kernel.
    #[inline]
    pub(crate) fn irqchip(&self) -> Option<&Timed<IrqChip>> {
        self.irqchip.as_deref()
    }

    /// Whether the 8259 pair and the IOAPIC are in the kernel, too.
    #[inline]
    pub(crate) fn has_pic(&self) -> bool {
        self.irqchip().is_some_and(|irqchip| !irqchip.is_split())
    }

    /// Tells the vendor of a change in `config`.
    pub(crate) fn configure(&mut self) {
        V::configure(&mut self.arch, &self.config);
    }

    /// Sets CR8, 0 to 15, in the vendor's part alone.
    pub(crate) fn set_cr8(&mut self, cr8: u8) {
        self.cr8 = cr8 & 0xf;
        V::set_tpr(&mut self.arch, self.cr8);
    }

    /// Whether guest-physical `gpa` is memory, which goes before any device.
    pub(crate) fn slots_cover(&mut self, gpa: u64) -> bool {
        self.current_slots().by_gpa(gpa).is_some()
    }

    /// The VM's main address space as it is now, where the structures of the paravirtual interface are, as in KVM, also while the
    /// vCPU is in system management mode.
    #[inline]
    pub(crate) fn main_slots(&mut self) -> MainView<'_> {
        self.slots.refresh();
        self.slots.main()
    }

    /// The VM's slots as they are now, and as the vCPU finds them.
    #[inline]
    pub(crate) fn current_slots(&mut self) -> &View {
        self.slots.refresh();
        &self.slots
    }

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

impl<V: XvmOps> Drop for Vcpu<V> {
    fn drop(&mut self) {
        V::free(&mut self.arch);
    }
}

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
