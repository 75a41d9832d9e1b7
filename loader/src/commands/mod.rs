//! One file a command.

pub mod btf;
pub mod doctor;
pub mod inspect;
pub mod sockets;
pub mod trace;

use anyhow::Result;

use crate::cli::{LEAST_SOCKETS, MOST_SOCKETS};
use crate::fault::Blocked;
use crate::kernel::{host, privilege};

/// Whether an error only says that nobody reads our output any more (`xctl | head`): no reason to complain.
#[must_use]
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Whether this process may load and attach.
fn check_privilege() -> Result<()> {
    let missing = privilege::missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|capability| capability.name).collect();
    Err(Blocked::new(format!("missing {}", names.join(" and ")), "run it as root, or give it these capabilities")
        .by_host())
}

/// Four times the sockets that exist now, so that the map has room for those to come.
fn default_max_sockets() -> Result<u32> {
    let sockets = host::tcp_sockets()?.saturating_mul(4);
    Ok(sockets.clamp(LEAST_SOCKETS, MOST_SOCKETS))
}
