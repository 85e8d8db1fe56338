// SPDX-License-Identifier: GPL-2.0

//! A vCPU: what belongs to it.
//!
//! [`VcpuFile`](super::vcpu_file::VcpuFile) is what is behind the file descriptor. [`Vcpu`] is what only the thread in an ioctl touches, behind the
//! file's mutex. [`Shared`] is what other threads reach: the mailbox of its local APIC, and the means to wake or kick it.

use super::bus::BusView;
use super::cpuid::GuestCpuid;
use super::events::Events;
use super::guest_debug::GuestDebug;
use super::irqchip::IrqChip;
use super::kick::Presence;
use super::mce::Mce;
use super::memory::AsId;
use super::memory::MainView;
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
use super::pv::OffCpu;
use super::pv::Pv;
use super::replay::Replay;
use super::smm::Smm;
use super::stats::VcpuStats;
use super::tsc;
use super::vm::Vm;
use super::XvmOps;
use crate::linux::fpu::GuestFpu;
use crate::linux::run_pages::RunPages;
use crate::linux::thread::Thread;
use crate::linux::timer::Timed;
use crate::linux::timer::TimerTarget;
use crate::linux::wait::WaitPoint;
use crate::uapi;
use core::sync::atomic::AtomicU32;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::new_spinlock_irq;
use kernel::sync::Arc;
use kernel::sync::SpinLockIrq;

/// Pages of its own that a vCPU shares with its VMM: `struct kvm_run`, the data of port I/O.
pub(super) const RUN_PAGES: usize = 2;

/// Pages of a mapping of a vCPU: behind its own is the ring of coalesced I/O (`KVM_CAP_COALESCED_MMIO` says where).
pub(crate) const MAPPED_PAGES: usize = RUN_PAGES + 1;

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
    pub(super) fn new(id: u32, bootstrap: bool, off_cpu: OffCpu) -> Result<Arc<Timed<Self>>> {
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
    pub(super) fn new(
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
}

impl<V: XvmOps> Drop for Vcpu<V> {
    fn drop(&mut self) {
        V::free(&mut self.arch);
    }
}
