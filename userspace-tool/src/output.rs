//! What the tool itself says, on standard error, and how the guest's output reaches standard
//! output.

use std::fmt;
use std::io::{
    self,
    Write, //
};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{
    Context,
    Result, //
};
use rustix::time::{
    timerfd_create,
    timerfd_settime,
    Itimerspec,
    TimerfdClockId,
    TimerfdFlags,
    TimerfdTimerFlags,
    Timespec, //
};

/// How long a line that has no end yet may wait, so that a prompt appears at once for a human.
const DELAY: Duration = Duration::from_millis(5);
/// How much may wait at most.
const BUFFER: usize = 1024;

/// Prints a line to standard error. When even that is gone, nobody is left to tell.
pub fn say(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The guest's output: written a line at a time, although it comes a byte at a time; an unfinished
/// line after `DELAY`.
///
/// Whoever polls `timer` calls `flush` when it is readable.
pub struct GuestOutput {
    buffer: Vec<u8>,
    timer: Arc<OwnedFd>,
}

impl GuestOutput {
    /// Nothing written yet.
    pub fn new() -> Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        );
        let timer = Arc::new(timer.context("timerfd_create")?);
        Ok(Self {
            buffer: Vec::with_capacity(BUFFER),
            timer,
        })
    }

    /// Becomes readable when an unfinished line has waited long enough.
    pub fn timer(&self) -> Arc<OwnedFd> {
        self.timer.clone()
    }

    /// Takes a byte from the guest.
    pub fn put(&mut self, byte: u8) -> io::Result<()> {
        if self.buffer.is_empty() {
            self.start_timer()?;
        }
        self.buffer.push(byte);
        if byte == b'\n' || self.buffer.len() == BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what waits.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut rest = &self.buffer[..];
        let mut result = Ok(());
        while !rest.is_empty() && result.is_ok() {
            match rustix::io::retry_on_intr(|| rustix::io::write(rustix::stdio::stdout(), rest)) {
                Ok(written) => rest = &rest[written..],
                Err(errno) => result = Err(errno.into()),
            }
        }
        self.buffer.clear();
        result
    }

    fn start_timer(&self) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: 0,
                tv_nsec: DELAY.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}
