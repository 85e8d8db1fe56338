//! The devices that the tool models, and which I/O port leads to which.

mod cmos;
mod pm;
mod serial;

use std::sync::{
    Arc,
    Mutex,
    MutexGuard,
    PoisonError, //
};

use anyhow::Result;
use kvm_ioctls::VmFd;

use crate::acpi;
use cmos::Cmos;
use pm::PowerManagement;
pub use serial::{
    Listener,
    SerialPort, //
};

const COM1_FIRST: u16 = 0x3f8;
const COM1_LAST: u16 = 0x3ff;
const COM1_GSI: u32 = 4;
const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;
const KEYBOARD_COMMAND: u16 = 0x64;
/// Keyboard-controller command: pulse the CPU's reset line.
const PULSE_RESET: u8 = 0xfe;
/// A byte written here ends the VM with that status.
const EXIT_STATUS: u16 = 0xf4;
const PM_FIRST: u16 = acpi::PM1A_EVENT;
const PM_LAST: u16 = acpi::PM_TIMER + 3;

/// What a write to a device asks of the VM as a whole.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Switch the power off.
    PowerOff,
    /// Reset the machine.
    Reset,
    /// End with this exit status.
    Exit(u8),
    /// The console's output is gone.
    Fail(String),
}

/// All devices of one VM, shared by its vCPUs.
pub struct Devices {
    serial: Mutex<SerialPort>,
    cmos: Mutex<Cmos>,
    pm: Mutex<PowerManagement>,
}

/// Each lock protects one device, which is consistent between any two of its operations.
fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Devices {
    /// The devices of `vm`, which has interrupt controllers in the kernel if `irqchip`.
    pub fn new(vm: &Arc<VmFd>, irqchip: bool, listener: Listener) -> Result<Self> {
        let interrupt = irqchip.then(|| (vm.clone(), COM1_GSI));
        Ok(Self {
            serial: Mutex::new(SerialPort::new(interrupt, listener)?),
            cmos: Mutex::new(Cmos::default()),
            pm: Mutex::new(PowerManagement::new()),
        })
    }

    /// The serial port, for the one who feeds it.
    pub fn serial(&self) -> MutexGuard<'_, SerialPort> {
        lock(&self.serial)
    }

    /// One OUT of `data` (1, 2 or 4 bytes).
    pub fn write(&self, port: u16, data: &[u8]) -> Option<Request> {
        let first = *data.first()?;
        match port {
            COM1_FIRST..=COM1_LAST => {
                return self.serial().write((port - COM1_FIRST) as u8, first);
            }
            PM_FIRST..=PM_LAST => return lock(&self.pm).write(port, data),
            CMOS_INDEX => lock(&self.cmos).select(first),
            KEYBOARD_COMMAND if first == PULSE_RESET => return Some(Request::Reset),
            acpi::RESET if first & acpi::RESET_VALUE == acpi::RESET_VALUE => {
                return Some(Request::Reset)
            }
            EXIT_STATUS => return Some(Request::Exit(first)),
            _ => {}
        }
        None
    }

    /// One IN of `data.len()` bytes. What no device answers reads as all ones, as on a bus that
    /// nothing drives.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, data.first_mut()) {
            (COM1_FIRST..=COM1_LAST, Some(first)) => {
                *first = self.serial().read((port - COM1_FIRST) as u8)
            }
            (PM_FIRST..=PM_LAST, _) => lock(&self.pm).read(port, data),
            (CMOS_DATA, Some(first)) => {
                *first = lock(&self.cmos).read(std::time::SystemTime::now())
            }
            // Status: no key pressed, ready for a command, so that a guest that resets that way
            // does not wait.
            (KEYBOARD_COMMAND, Some(first)) => *first = 0,
            // Nothing else may be written there than a reset; 0 tells that none is under way.
            (acpi::RESET, Some(first)) => *first = 0,
            _ => {}
        }
    }
}
