//! The console: brings standard input to the guest's serial port and waits until the VM ends.

use std::collections::VecDeque;
use std::os::fd::{
    AsFd,
    OwnedFd, //
};
use std::sync::mpsc::Receiver;

use anyhow::{
    Context,
    Result, //
};
use rustix::event::{
    poll,
    PollFd,
    PollFlags, //
};
use rustix::io::Errno;
use rustix::stdio::stdin;

use crate::devices::Devices;
use crate::output::say;
use crate::terminal::{
    EndSignals,
    RawMode, //
};
use crate::vcpu::Outcome;

const CTRL_A: u8 = 0x01;
const HELP: &str =
    "\n[xvm] Ctrl-A x: end the VM and leave   Ctrl-A Ctrl-A: send Ctrl-A   Ctrl-A h: this help";

/// What a byte from the keyboard means.
#[derive(Debug, PartialEq, Eq)]
enum Key {
    Send(u8),
    Wait,
    Leave,
    Help,
}

/// Recognises the keys after Ctrl-A.
#[derive(Default)]
struct Keys {
    after_ctrl_a: bool,
}

impl Keys {
    fn feed(&mut self, byte: u8) -> Key {
        if !self.after_ctrl_a {
            self.after_ctrl_a = byte == CTRL_A;
            return if self.after_ctrl_a {
                Key::Wait
            } else {
                Key::Send(byte)
            };
        }
        self.after_ctrl_a = false;
        match byte {
            b'x' | b'X' => Key::Leave,
            CTRL_A => Key::Send(CTRL_A),
            b'h' | b'H' | b'?' => Key::Help,
            _ => Key::Wait,
        }
    }
}

/// Standard input and the ways to end; it stays when the guest reboots.
pub struct Console {
    signals: EndSignals,
    /// Only there when standard input is a terminal; bytes from a pipe all go to the guest.
    terminal: Option<RawMode>,
    keys: Keys,
    input_open: bool,
    /// Read from standard input, not yet taken by the serial port.
    pending: VecDeque<u8>,
}

impl Console {
    /// Takes the terminal, until dropped.
    pub fn new() -> Result<Self> {
        let signals = EndSignals::catch()?;
        let terminal = RawMode::enter().context("the terminal")?;
        Ok(Self {
            signals,
            terminal,
            keys: Keys::default(),
            input_open: true,
            pending: VecDeque::new(),
        })
    }

    /// Feeds the guest until a vCPU reports how the VM ended (`ended` becomes readable then), a
    /// signal arrives or the user leaves.
    pub fn serve(
        &mut self,
        devices: &Devices,
        ended: &OwnedFd,
        outcomes: &Receiver<Outcome>,
    ) -> Result<Outcome> {
        let drained = devices.serial().drained();
        let output_timer = devices.serial().output_timer();
        loop {
            let want_input = self.input_open && self.pending.is_empty();
            let mut fds = vec![
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(ended, PollFlags::IN),
                PollFd::new(&drained, PollFlags::IN),
                PollFd::new(&output_timer, PollFlags::IN),
            ];
            let input = stdin();
            if want_input {
                fds.push(PollFd::new(&input, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("poll"),
            }
            let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
            let (output_waits, input_ready) = (ready(3), ready(4));
            if let Some(signal) = self.signals.caught() {
                return Ok(Outcome::Signal(signal));
            }
            if let Ok(outcome) = outcomes.try_recv() {
                return Ok(outcome);
            }
            acknowledge(&drained);
            if output_waits {
                acknowledge(&output_timer);
                devices.serial().flush()?;
            }
            if input_ready && self.read_input() == Key::Leave {
                return Ok(Outcome::Left);
            }
            self.feed(devices)?;
        }
    }

    /// Reads what is there; `Key::Leave` if the user wants to.
    fn read_input(&mut self) -> Key {
        let mut buffer = [0_u8; 256];
        let length = match rustix::io::read(stdin(), &mut buffer) {
            Ok(length) => length,
            Err(Errno::INTR | Errno::AGAIN) => return Key::Wait,
            // A terminal that hung up; the guest runs on, as it does at the end of a file.
            Err(_) => 0,
        };
        self.input_open = length > 0;
        for byte in &buffer[..length] {
            let key = if self.terminal.is_some() {
                self.keys.feed(*byte)
            } else {
                Key::Send(*byte)
            };
            match key {
                Key::Send(byte) => self.pending.push_back(byte),
                Key::Help => say(format_args!("{HELP}")),
                Key::Leave => return Key::Leave,
                Key::Wait => {}
            }
        }
        Key::Wait
    }

    /// Hands over what the serial port has room for.
    fn feed(&mut self, devices: &Devices) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let taken = devices.serial().receive(self.pending.make_contiguous())?;
        self.pending.drain(..taken);
        Ok(())
    }
}

/// Makes an eventfd or timerfd unreadable until the next event.
fn acknowledge(event: impl AsFd) {
    // EAGAIN: there was none.
    let _ = rustix::io::read(event, &mut [0_u8; 8]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(input: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        input
            .iter()
            .map(|byte| keys.feed(*byte))
            .filter(|key| *key != Key::Wait)
            .collect()
    }

    #[test]
    fn ctrl_a_is_the_way_out() {
        assert_eq!(keys(b"x\x01x"), [Key::Send(b'x'), Key::Leave]);
        assert_eq!(keys(b"\x01h\x01?"), [Key::Help, Key::Help]);
    }

    #[test]
    fn ctrl_a_can_be_sent() {
        assert_eq!(keys(b"\x01\x01x"), [Key::Send(CTRL_A), Key::Send(b'x')]);
        assert_eq!(keys(b"\x01qx"), [Key::Send(b'x')]);
    }
}
