//! The terminal in raw mode, and the signals that end the tool.

use std::os::fd::{
    AsFd,
    BorrowedFd, //
};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{
    AtomicUsize,
    Ordering, //
};
use std::sync::Arc;

use anyhow::{
    Context,
    Result, //
};
use rustix::stdio::stdin;
use rustix::termios::{
    isatty,
    tcgetattr,
    tcsetattr,
    OptionalActions,
    OutputModes,
    Termios, //
};
use signal_hook::consts::{
    SIGHUP,
    SIGINT,
    SIGQUIT,
    SIGTERM, //
};

/// Standard input in raw mode, until dropped.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Sets raw mode if standard input is a terminal. Output stays cooked, so that this tool's own
    /// messages look right.
    pub fn enter() -> Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let before = tcgetattr(stdin()).context("tcgetattr")?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes |= before.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
        tcsetattr(stdin(), OptionalActions::Now, &raw).context("tcsetattr")?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // When the terminal is gone, as after SIGHUP, nobody is left to tell.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// The signals that ask the tool to end, as something that can be polled.
pub struct EndSignals {
    pipe: UnixStream,
    last: Arc<AtomicUsize>,
}

impl EndSignals {
    /// Catches SIGHUP, SIGINT, SIGQUIT and SIGTERM from now on.
    pub fn catch() -> Result<Self> {
        let (pipe, writer) = UnixStream::pair().context("socketpair")?;
        let last = Arc::new(AtomicUsize::new(0));
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            // In this order the number is there once the pipe is readable.
            signal_hook::flag::register_usize(signal, last.clone(), signal as usize)
                .context("sigaction")?;
            signal_hook::low_level::pipe::register(signal, writer.try_clone()?)
                .context("sigaction")?;
        }
        Ok(Self { pipe, last })
    }

    /// The signal that arrived last, if one did.
    pub fn caught(&self) -> Option<u8> {
        u8::try_from(self.last.load(Ordering::Acquire))
            .ok()
            .filter(|signal| *signal != 0)
    }
}

impl AsFd for EndSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
