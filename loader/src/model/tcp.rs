//! Numbers of the kernel for TCP sockets: states, and errors that end connections.

use std::borrow::Cow;

/// States of sockets (include/net/tcp_states.h).
pub mod state {
    /// Both ends may send.
    pub const ESTABLISHED: u8 = 1;
    /// The peer has not answered connect() yet.
    pub const SYN_SENT: u8 = 2;
    /// The handshake's last ACK is missing.
    pub const SYN_RECV: u8 = 3;
    /// The peer has closed its end.
    pub const CLOSE_WAIT: u8 = 8;
    /// A listener.
    pub const LISTEN: u8 = 10;
    /// A request that waits for the handshake's last ACK, and is no connection yet.
    pub const NEW_SYN_RECV: u8 = 12;
}

/// Values of `sk_err` (include/uapi/asm-generic/errno.h).
pub mod error {
    /// The peer has closed its end.
    pub const EPIPE: u32 = 32;
    /// This host ended the connection.
    pub const ECONNABORTED: u32 = 103;
    /// The peer ended the connection.
    pub const ECONNRESET: u32 = 104;
    /// The peer did not answer.
    pub const ETIMEDOUT: u32 = 110;
    /// The peer refused the connection.
    pub const ECONNREFUSED: u32 = 111;
}

/// The names of states by number, without `TCP_`.
const STATES: [&str; 14] = [
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
    "BOUND_INACTIVE",
];

/// The names of the states that sockets in the kernel's tables can have.
pub fn state_names() -> impl Iterator<Item = &'static str> {
    STATES.into_iter().filter(|name| !["", "CLOSE", "BOUND_INACTIVE"].contains(name))
}

/// The state of this name, whatever its case.
#[must_use]
pub fn state_number(name: &str) -> Option<u8> {
    let place = STATES.iter().position(|own| !own.is_empty() && own.eq_ignore_ascii_case(name))?;
    u8::try_from(place).ok()
}

/// A socket state's name, or its number.
#[must_use]
pub fn state_name(state: u8) -> Cow<'static, str> {
    match STATES.get(usize::from(state)) {
        Some(name) if !name.is_empty() => (*name).into(),
        _ => state.to_string().into(),
    }
}
