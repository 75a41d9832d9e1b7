//! One file a command.

pub mod btf;
pub mod trace;

/// Whether an error only says that nobody reads our output any more (`xctl | head`): no reason to complain.
#[must_use]
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
