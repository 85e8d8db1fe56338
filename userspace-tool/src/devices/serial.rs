//! The serial port: a 16550A whose output is the tool's standard output.

use std::io::{
    self,
    Write, //
};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{
    Context,
    Result, //
};
use kvm_ioctls::VmFd;
use rustix::event::{
    eventfd,
    EventfdFlags, //
};
use vm_superio::serial::{
    Error,
    SerialEvents, //
};
use vm_superio::{
    Serial,
    Trigger, //
};

use super::Request;
use crate::output::GuestOutput;

/// The interrupt line of the port: a VM and a GSI, or nothing where no controller is in the kernel.
struct InterruptLine(Option<(Arc<VmFd>, u32)>);

impl Trigger for InterruptLine {
    type E = kvm_ioctls::Error;

    /// An ISA interrupt is edge-triggered: the line goes up and down again.
    fn trigger(&self) -> Result<(), Self::E> {
        let Some((vm, gsi)) = &self.0 else {
            return Ok(());
        };
        vm.set_irq_line(*gsi, true)?;
        vm.set_irq_line(*gsi, false)
    }
}

/// Tells the console thread that the guest has read all that was there.
struct Drained(Arc<OwnedFd>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // It fails only when the counter is full, and then the reader has been told often enough.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// The transmitter.
struct Transmitter(GuestOutput);

impl Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().try_for_each(|byte| self.0.put(*byte))?;
        Ok(bytes.len())
    }

    /// The port calls this after each byte; `GuestOutput` knows better when to write.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Registers and bits that tell whether a driver listens (16550 data sheet).
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_ENABLE_RECEIVED: u8 = 1 << 0;
const MODEM_CONTROL: u8 = 4;
const MODEM_CONTROL_DTR: u8 = 1 << 0;
/// Connects the port's interrupt on a PC.
const MODEM_CONTROL_OUT2: u8 = 1 << 3;

/// When input goes to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// At once: whoever polls the port must find it.
    Poll,
    /// Once a driver has opened the port, with DTR, OUT2 and the receive interrupt on: what comes
    /// before that is lost, because drivers empty the FIFO first.
    Driver,
}

/// The port and the event that says when it takes input.
pub struct SerialPort {
    listening: bool,
    uart: Serial<InterruptLine, Drained, Transmitter>,
    drained: Arc<OwnedFd>,
}

impl SerialPort {
    /// A port whose interrupt, if it has one, is that GSI of that VM.
    pub fn new(interrupt: Option<(Arc<VmFd>, u32)>, listener: Listener) -> Result<Self> {
        let event =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?;
        let drained = Arc::new(event);
        let transmitter = Transmitter(GuestOutput::new()?);
        let uart = Serial::with_events(
            InterruptLine(interrupt),
            Drained(drained.clone()),
            transmitter,
        );
        Ok(Self {
            listening: listener == Listener::Poll,
            uart,
            drained,
        })
    }

    /// An event that becomes readable when the guest has taken all input, or begins to listen.
    pub fn drained(&self) -> Arc<OwnedFd> {
        self.drained.clone()
    }

    /// A timer that becomes readable when output has waited for `flush` long enough.
    pub fn output_timer(&self) -> Arc<OwnedFd> {
        self.uart.writer().0.timer()
    }

    /// Writes the output that waits.
    pub fn flush(&mut self) -> Result<()> {
        self.uart.writer_mut().0.flush().context("standard output")
    }

    /// Gives input to the guest; returns how many bytes the FIFO took.
    pub fn receive(&mut self, input: &[u8]) -> Result<usize> {
        if !self.listening {
            return Ok(0);
        }
        match self.uart.enqueue_raw_bytes(input) {
            Ok(taken) => Ok(taken),
            Err(Error::FullFifo) => Ok(0),
            Err(Error::Trigger(errno)) => Err(errno).context("KVM_IRQ_LINE for the serial port"),
            Err(Error::IOError(error)) => Err(error).context("serial port"),
        }
    }

    /// OUT to a register.
    pub fn write(&mut self, register: u8, value: u8) -> Option<Request> {
        let written = self.uart.write(register, value);
        if !self.listening && matches!(register, INTERRUPT_ENABLE | MODEM_CONTROL) {
            self.check_listener();
        }
        match written {
            Ok(()) | Err(Error::FullFifo) => None,
            Err(Error::Trigger(errno)) => Some(Request::Fail(format!(
                "KVM_IRQ_LINE for the serial port: {errno}"
            ))),
            Err(Error::IOError(error)) => Some(Request::Fail(format!("standard output: {error}"))),
        }
    }

    fn check_listener(&mut self) {
        let state = self.uart.state();
        let opened = MODEM_CONTROL_DTR | MODEM_CONTROL_OUT2;
        let interrupt = state.interrupt_enable & INTERRUPT_ENABLE_RECEIVED != 0;
        if interrupt && state.modem_control & opened == opened {
            self.listening = true;
            self.uart.events().in_buffer_empty();
        }
    }

    /// IN from a register.
    pub fn read(&mut self, register: u8) -> u8 {
        self.uart.read(register)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(port: &mut SerialPort) -> Vec<u8> {
        std::iter::from_fn(|| (port.read(5) & 1 != 0).then(|| port.read(0))).collect()
    }

    #[test]
    fn input_waits_for_a_driver() -> Result<()> {
        let mut port = SerialPort::new(None, Listener::Driver)?;
        assert_eq!(port.receive(b"early")?, 0);
        // A probe tries all interrupt bits with DTR off.
        port.write(INTERRUPT_ENABLE, 0x0f);
        port.write(INTERRUPT_ENABLE, 0x00);
        port.write(MODEM_CONTROL, MODEM_CONTROL_DTR | MODEM_CONTROL_OUT2);
        assert_eq!(port.receive(b"early")?, 0);
        port.write(INTERRUPT_ENABLE, INTERRUPT_ENABLE_RECEIVED);
        assert_eq!(port.receive(b"in time")?, 7);
        assert_eq!(received(&mut port), b"in time");
        Ok(())
    }

    #[test]
    fn a_polling_guest_gets_input_at_once_and_no_more_than_the_fifo_holds() -> Result<()> {
        let mut port = SerialPort::new(None, Listener::Poll)?;
        let taken = port.receive(&[b'x'; 1000])?;
        assert!((16..1000).contains(&taken));
        assert_eq!(port.receive(b"y")?, 0);
        assert_eq!(received(&mut port).len(), taken);
        Ok(())
    }
}
