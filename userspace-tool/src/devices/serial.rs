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

/// Standard output, written a byte at a time as the guest does.
struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(rustix::stdio::stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port and the event that says when its input is drained.
pub struct SerialPort {
    uart: Serial<InterruptLine, Drained, Output>,
    drained: Arc<OwnedFd>,
}

impl SerialPort {
    /// A port whose interrupt, if it has one, is that GSI of that VM.
    pub fn new(interrupt: Option<(Arc<VmFd>, u32)>) -> Result<Self> {
        let event =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?;
        let drained = Arc::new(event);
        let uart = Serial::with_events(InterruptLine(interrupt), Drained(drained.clone()), Output);
        Ok(Self { uart, drained })
    }

    /// An event that becomes readable when the guest has taken all input.
    pub fn drained(&self) -> Arc<OwnedFd> {
        self.drained.clone()
    }

    /// Gives input to the guest; returns how many bytes the FIFO took.
    pub fn receive(&mut self, input: &[u8]) -> Result<usize> {
        match self.uart.enqueue_raw_bytes(input) {
            Ok(taken) => Ok(taken),
            Err(Error::FullFifo) => Ok(0),
            Err(Error::Trigger(errno)) => Err(errno).context("KVM_IRQ_LINE for the serial port"),
            Err(Error::IOError(error)) => Err(error).context("serial port"),
        }
    }

    /// OUT to a register.
    pub fn write(&mut self, register: u8, value: u8) -> Option<Request> {
        match self.uart.write(register, value) {
            Ok(()) | Err(Error::FullFifo) => None,
            Err(Error::Trigger(errno)) => Some(Request::Fail(format!(
                "KVM_IRQ_LINE for the serial port: {errno}"
            ))),
            Err(Error::IOError(error)) => Some(Request::Fail(format!("standard output: {error}"))),
        }
    }

    /// IN from a register.
    pub fn read(&mut self, register: u8) -> u8 {
        self.uart.read(register)
    }
}
