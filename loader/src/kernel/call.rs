//! A recorded call as data. The module [`super::calls`] records it.

use std::collections::HashMap;
use std::time::Duration;

use libbpf_sys as sys;
use serde::Serialize;

/// The originator of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// xctl made the call.
    Xctl,
    /// libbpf made the call, to load the object.
    Libbpf,
    /// libbpf made the call, to find out what this kernel can do. The call holds nothing of the object.
    LibbpfProbe,
}

/// The memory behind a pointer in the attributes, as it was when the call was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointed {
    /// Offset of the pointer in the attributes, in bytes.
    pub at: usize,
    /// The memory behind the pointer.
    pub bytes: Vec<u8>,
}

/// The arguments of a call, as they were before the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The bpf(2) system call.
    Bpf {
        /// `enum bpf_cmd`
        command: u32,
        /// As many bytes of `union bpf_attr` as the caller passed.
        attributes: Vec<u8>,
        /// The memory behind the pointers that are part of the question.
        pointed: Vec<Pointed>,
    },
    /// The perf_event_open(2) system call.
    PerfEventOpen {
        /// `struct perf_event_attr`, as many bytes as its `size` says.
        attributes: Vec<u8>,
        /// The name of a kprobe's function.
        pointed: Vec<Pointed>,
        /// -1: every process.
        pid: i32,
        /// -1: every CPU.
        cpu: i32,
        /// -1: in no group.
        group: i32,
        /// `PERF_FLAG_*`
        flags: u64,
    },
    /// The ioctl(2) system call on a perf event.
    PerfIoctl {
        /// The descriptor of the perf event.
        fd: i32,
        /// `PERF_EVENT_IOC_*`
        request: u64,
        /// The argument; its meaning depends on the request.
        argument: u64,
    },
}

/// A call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The arguments of the call.
    pub request: Request,
    /// The originator of the call.
    pub by: By,
    /// The value that the kernel returned; -1 is a failure.
    pub result: i64,
    /// The reason of a failure, else 0.
    pub errno: i32,
    /// The duration of the call.
    pub took: Duration,
}

/// The object behind a file descriptor that a recorded call made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// A map, with the attributes of the call that created it.
    Map(Vec<u8>),
    /// A program.
    Program(Sent),
    /// Something else.
    Other,
}

/// A program as it was passed to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The attributes of the call that loaded it.
    pub attributes: Vec<u8>,
    /// Instructions, 8 bytes each.
    pub insns: Vec<u8>,
    /// The verifier's log, if the call asked for one.
    pub log: Option<Vec<u8>>,
    /// The time that the kernel took to verify, compile and install the program.
    pub took: Duration,
}

/// The objects behind the file descriptors.
#[derive(Debug, Default)]
pub struct Known {
    pub(super) by_fd: HashMap<i32, Made>,
    /// The `type` of the kprobe PMU. Perf events of this type have a function's name.
    pub(super) kprobe_pmu: Option<u32>,
}

impl Known {
    /// The name that was given to a map or program, as far as the kernel keeps it; none for an object without a name.
    #[must_use]
    pub fn name(&self, fd: i32) -> Option<String> {
        let (attributes, at) = match self.by_fd.get(&fd)? {
            Made::Map(attributes) => (attributes, 28),
            Made::Program(sent) => (&sent.attributes, 48),
            Made::Other => return None,
        };
        let name = attributes.get(at..at + sys::BPF_OBJ_NAME_LEN as usize)?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let name = name.get(..end).filter(|name| !name.is_empty())?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    pub(super) fn map_sizes(&self, fd: i32) -> Option<(usize, usize)> {
        match self.by_fd.get(&fd)? {
            Made::Map(attributes) => Some((word(attributes, 4)? as usize, word(attributes, 8)? as usize)),
            _ => None,
        }
    }
}

/// The 32 bits at byte `at`, if the bytes reach that far.
#[must_use]
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The 64 bits at byte `at`, if the bytes reach that far.
#[must_use]
pub fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes)
}
