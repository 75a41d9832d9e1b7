//! The records that the programs write, and the settings that they read: mirrors of `bpf-src/events.h`.
//!
//! [`check`] compares every offset and size here with the BTF inside the object, so C and Rust cannot drift apart.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Result, anyhow, bail};

use crate::fault::Exit;
use crate::object::Btf;

/// Length of a task's name, with its NUL (TASK_COMM_LEN).
pub const COMM_LEN: usize = 16;

/// Length of a table by [`Kind`].
pub const KINDS: usize = 8;

/// A value as it lies in memory, in this machine's byte order.
pub trait Plain: Sized {
    /// Read it from exactly its size.
    fn get(bytes: &[u8]) -> Self;
    /// Write it to exactly its size.
    fn put(&self, to: &mut [u8]);
}

macro_rules! plain_numbers {
    ($($number:ty)*) => { $(impl Plain for $number {
        fn get(bytes: &[u8]) -> Self {
            let mut all = [0; size_of::<Self>()];
            all.copy_from_slice(bytes);
            Self::from_ne_bytes(all)
        }
        fn put(&self, to: &mut [u8]) {
            to.copy_from_slice(&self.to_ne_bytes());
        }
    })* };
}
plain_numbers!(u8 u16 u32 u64 i32);

impl<T: Plain + Copy + Default, const N: usize> Plain for [T; N] {
    fn get(bytes: &[u8]) -> Self {
        let mut all = [T::default(); N];
        for (value, bytes) in all.iter_mut().zip(bytes.chunks_exact(size_of::<T>())) {
            *value = T::get(bytes);
        }
        all
    }
    fn put(&self, to: &mut [u8]) {
        for (value, bytes) in self.iter().zip(to.chunks_exact_mut(size_of::<T>())) {
            value.put(bytes);
        }
    }
}

/// Name, offset and size of a field, in bytes.
type Field = (&'static str, usize, usize);

/// A struct of `events.h`.
pub trait Mirror: Plain {
    /// Its name in C.
    const C_NAME: &'static str;
    /// Its fields.
    const FIELDS: &'static [Field];
}

/// Define a struct, its place in memory, and how to read and write it without `unsafe`.
macro_rules! mirror {
    ($(#[$meta:meta])* $c_name:literal $name:ident { $($(#[$field_meta:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name { $($(#[$field_meta])* pub $field: $ty,)* }

        impl Plain for $name {
            fn get(bytes: &[u8]) -> Self {
                Self { $($field: {
                    let start = std::mem::offset_of!($name, $field);
                    <$ty>::get(&bytes[start..start + size_of::<$ty>()])
                },)* }
            }
            fn put(&self, to: &mut [u8]) {
                $({
                    let start = std::mem::offset_of!($name, $field);
                    self.$field.put(&mut to[start..start + size_of::<$ty>()]);
                })*
            }
        }

        impl Mirror for $name {
            const C_NAME: &'static str = $c_name;
            const FIELDS: &'static [Field] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field), size_of::<$ty>()),)*];
        }
    };
}

mirror! {
    /// A four-tuple in its network namespace, seen from this host.
    "flow" Flow {
        /// Local address, network order; IPv4 as ::ffff:a.b.c.d.
        saddr: [u8; 16],
        /// Remote address, likewise.
        daddr: [u8; 16],
        /// The socket's kernel address, for an entry of a socket without a four-tuple; else 0.
        sk: u64,
        /// Inode number of the network namespace.
        netns: u32,
        /// Local port, host order.
        sport: u16,
        /// Remote port, host order.
        dport: u16,
    }
}

mirror! {
    /// The process behind a socket.
    "owner" Owner {
        /// The socket that the entry belongs to; 0: not known yet.
        sk: u64,
        /// When the process started, ns of CLOCK_BOOTTIME in steps of 10 ms.
        born: u64,
        /// Address of the process's `struct pid`, or 0; while `sk` is 0, the inode number of the socket's file. For the
        /// programs alone.
        pid: u64,
        /// cgroup v2 id.
        cgroup: u64,
        /// The process, in the initial PID namespace.
        tgid: u32,
        /// The thread that last acted on the socket.
        tid: u32,
        /// User id, in the initial user namespace.
        uid: u32,
        /// `enum how`; see [`How`].
        how: u8,
        /// 1 inside the cgroup that was asked for.
        in_cgroup: u8,
        /// Padding.
        zero: [u8; 2],
        /// The process's name, NUL-terminated.
        comm: [u8; COMM_LEN],
    }
}

mirror! {
    /// What every record begins with.
    "event_header" Header {
        /// CLOCK_MONOTONIC, ns.
        mono_ns: u64,
        /// `enum event_type`.
        kind: u32,
        /// Where it happened.
        cpu: u32,
    }
}

mirror! {
    /// A segment was sent again, or failed to be.
    "retransmit_event" Retransmit {
        /// When and where.
        header: Header,
        /// Of which connection.
        flow: Flow,
        /// Whose.
        owner: Owner,
        /// The process that softirq interrupted.
        current_tgid: u32,
        /// Its running thread's name.
        current_comm: [u8; COMM_LEN],
        /// 0 or a negative errno.
        err: i32,
        /// Segments.
        segs: u32,
        /// Payload bytes.
        bytes: u32,
        /// Smoothed round-trip time, microseconds.
        srtt_us: u32,
        /// Congestion window, segments.
        cwnd: u32,
        /// Slow start threshold, segments.
        ssthresh: u32,
        /// Segment size, bytes.
        mss: u32,
        /// Earlier retransmissions in a row.
        sk_retrans: u32,
        /// `enum kind`; see [`Kind`].
        kind: u8,
        /// Socket state.
        state: u8,
        /// 1 if the segment carries FIN.
        fin: u8,
        /// Padding.
        zero: u8,
    }
}

mirror! {
    /// A process sent.
    "send_event" Send {
        /// When and where.
        header: Header,
        /// On which connection.
        flow: Flow,
        /// Who.
        owner: Owner,
        /// How many bytes.
        bytes: u64,
    }
}

mirror! {
    /// An entry of the kernel's tables of TCP sockets.
    "socket_record" SocketRecord {
        /// Its addresses. `sk` is always set; it is never printed.
        flow: Flow,
        /// Whose.
        owner: Owner,
        /// Socket state.
        state: u8,
        /// 1: some file is behind it.
        held: u8,
        /// Padding.
        zero: [u8; 6],
    }
}

mirror! {
    /// Whose totals.
    "process_key" ProcessKey {
        /// When the process started, ns of CLOCK_BOOTTIME in steps of 10 ms.
        born: u64,
        /// The process.
        tgid: u32,
        /// Where there is no process: `enum how`, plus 1.
        nobody: u32,
    }
}

mirror! {
    /// What the kernel side counted.
    "totals" Totals {
        /// Segments by [`Kind`].
        segs: [u64; KINDS],
        /// Payload bytes.
        bytes: u64,
        /// Retransmissions that went out.
        retransmits: u64,
        /// Attempts that did not.
        failed: u64,
        /// The process's name.
        comm: [u8; COMM_LEN],
    }
}

mirror! {
    /// What the programs are told before they are loaded.
    "settings" Settings {
        /// cgroup v2 id to keep to; 0: any.
        cgroup: u64,
        /// Its depth.
        cgroup_level: u32,
        /// Network namespace to keep to; 0: any.
        netns: u32,
        /// Process to keep to; 0: any.
        tgid: u32,
        /// Port to keep to, local or remote, host order; 0: any.
        port: u16,
        /// 4 or 6; 0: both.
        family: u8,
        /// Mask of 1 << [`Kind`]; 0: all.
        kinds: u8,
        /// Process name to keep to; empty: any.
        comm: [u8; COMM_LEN],
        /// 1: emit retransmits.
        retransmits: u8,
        /// 1: emit sends.
        sends: u8,
        /// 1: connect() and listen() are seen through inet_sock_set_state.
        births_by_state: u8,
        /// 1: count by network namespace too.
        by_netns: u8,
        /// 1: there are entries under inode numbers.
        by_inode: u8,
        /// Padding.
        zero: [u8; 3],
    }
}

/// Why a segment was sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// None of the others.
    Other = 0,
    /// The retransmission timer ran out.
    Rto = 1,
    /// Fast retransmit, in recovery.
    Fast = 2,
    /// After an RTO, driven by ACKs.
    SlowStart = 3,
    /// Tail loss probe.
    Tlp = 4,
    /// SYN.
    Syn = 5,
    /// SYN-ACK.
    Synack = 6,
}

impl Kind {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::Other, Self::Rto, Self::Fast, Self::SlowStart, Self::Tlp, Self::Syn, Self::Synack];

    /// Its name in the output and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Rto => "rto",
            Self::Fast => "fast",
            Self::SlowStart => "slow_start",
            Self::Tlp => "tlp",
            Self::Syn => "syn",
            Self::Synack => "synack",
        }
    }
}

/// How an owner is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum How {
    /// Not known.
    Unknown = 0,
    /// It sent.
    Send = 1,
    /// It called connect().
    Connect = 2,
    /// accept() gave it the socket: seen there, or when it closes it.
    Accept = 3,
    /// It called listen().
    Listen = 4,
    /// It held the socket before xctl came.
    Seed = 5,
    /// The socket is the kernel's own.
    Kernel = 6,
}

impl How {
    const ALL: [Self; 7] =
        [Self::Unknown, Self::Send, Self::Connect, Self::Accept, Self::Listen, Self::Seed, Self::Kernel];

    /// Its name in the output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Send => "send",
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Listen => "listen",
            Self::Seed => "seed",
            Self::Kernel => "kernel",
        }
    }
}

/// Socket states by number (include/net/tcp_states.h), without `TCP_`.
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

/// A socket state's name, or its number.
#[must_use]
pub fn state_name(state: u8) -> String {
    match STATES.get(usize::from(state)) {
        Some(name) if !name.is_empty() => (*name).into(),
        _ => state.to_string(),
    }
}

/// An address as people write it: IPv4 if that is what it holds.
#[must_use]
pub fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// A task's name as text. It may hold any bytes: those that are not UTF-8 are replaced.
#[must_use]
pub fn comm(bytes: &[u8; COMM_LEN]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(COMM_LEN);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

impl Owner {
    /// How it is known. A number that this program does not know is not known.
    #[must_use]
    pub fn how(&self) -> How {
        How::ALL.get(usize::from(self.how)).copied().unwrap_or(How::Unknown)
    }

    /// Whether there is a process.
    #[must_use]
    pub fn is_process(&self) -> bool {
        !matches!(self.how(), How::Unknown | How::Kernel)
    }
}

impl Retransmit {
    /// Why it was sent again.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::ALL.get(usize::from(self.kind)).copied().unwrap_or(Kind::Other)
    }
}

/// A record of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Type 1.
    Retransmit(Retransmit),
    /// Type 2.
    Send(Send),
}

impl Event {
    /// Read a record: exactly an event, and up to 7 bytes of padding.
    ///
    /// # Errors
    /// If it is of no known type or too short.
    pub fn parse(record: &[u8]) -> Result<Self> {
        let header = record.get(..size_of::<Header>()).map(Header::get);
        let whole = |size: usize| record.get(..size).filter(|_| record.len() < size + 8);
        let event = match header.map(|header| header.kind) {
            Some(1) => whole(size_of::<Retransmit>()).map(|bytes| Self::Retransmit(Retransmit::get(bytes))),
            Some(2) => whole(size_of::<Send>()).map(|bytes| Self::Send(Send::get(bytes))),
            _ => bail!("a perf record of {} bytes, of no known type", record.len()),
        };
        event.ok_or_else(|| anyhow!("a perf record of {} bytes, which is not its type's size", record.len()))
    }

    /// Where it happened.
    #[must_use]
    pub fn cpu(&self) -> u32 {
        match self {
            Self::Retransmit(event) => event.header.cpu,
            Self::Send(event) => event.header.cpu,
        }
    }

    /// When it happened, ns of CLOCK_MONOTONIC.
    #[must_use]
    pub fn mono_ns(&self) -> u64 {
        match self {
            Self::Retransmit(event) => event.header.mono_ns,
            Self::Send(event) => event.header.mono_ns,
        }
    }
}

/// Compare every layout of this file with the BTF of the object that is about to be loaded.
///
/// # Errors
/// [`Exit::Object`], naming the first field that differs.
pub fn check(object: &Btf) -> Result<()> {
    check_one::<Flow>(object)?;
    check_one::<Owner>(object)?;
    check_one::<Header>(object)?;
    check_one::<Retransmit>(object)?;
    check_one::<Send>(object)?;
    check_one::<SocketRecord>(object)?;
    check_one::<ProcessKey>(object)?;
    check_one::<Totals>(object)?;
    check_one::<Settings>(object)
}

fn check_one<T: Mirror>(object: &Btf) -> Result<()> {
    let name = T::C_NAME;
    let refuse = |why: String| Err(anyhow!(why).context(Exit::Object));
    let Some(id) = object.find(crate::object::Kind::Struct, name) else {
        return refuse(format!("its BTF has no struct {name}, so it is not an object of this xctl"));
    };
    let size = object.size_of(id);
    if size != Some(size_of::<T>() as u64) {
        return refuse(format!("struct {name} has {size:?} bytes there and {} in this xctl", size_of::<T>()));
    }
    let theirs = object.members(id).count();
    if theirs != T::FIELDS.len() {
        return refuse(format!("struct {name} has {theirs} members there and {} in this xctl", T::FIELDS.len()));
    }
    for (member, &(field, offset, size)) in object.members(id).zip(T::FIELDS) {
        // `type` is a word of Rust: there the field is called `kind`.
        let same_name = member.name == field || (member.name == "type" && field == "kind");
        let there = (u64::from(member.bit_offset), object.size_of(member.ty));
        if !same_name || there != (offset as u64 * 8, Some(size as u64)) {
            return refuse(format!(
                "struct {name}: {} at bit {}, {:?} bytes there; {field} at bit {}, {size} bytes in this xctl",
                member.name,
                there.0,
                there.1,
                offset * 8
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bytes<T: Plain>(value: &T) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<T>()];
        value.put(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let header = Header { mono_ns: 7, kind: 1, cpu: 3 };
        let mut event = Retransmit { header, ..Retransmit::default() };
        event.flow.saddr = [9; 16];
        event.owner.comm = *b"0123456789abcde\0";
        event.err = -11;
        event.fin = 1;
        assert_eq!(Event::parse(&bytes(&event)).unwrap(), Event::Retransmit(event));
    }

    #[test]
    fn padding_is_allowed_and_nothing_else() {
        let event = Send { header: Header { kind: 2, ..Header::default() }, ..Send::default() };
        let mut record = bytes(&event);
        assert!(Event::parse(&record[..record.len() - 1]).is_err());
        record.extend([0xaa; 7]);
        assert_eq!(Event::parse(&record).unwrap(), Event::Send(event));
        record.push(0);
        assert!(Event::parse(&record).is_err());
        assert!(Event::parse(&[]).is_err());
        assert!(Event::parse(&[0; 64]).is_err());
    }

    #[test]
    fn no_struct_has_padding_of_its_own() {
        fn gapless<T: Mirror>() {
            let end = T::FIELDS.iter().fold(0, |at, &(name, offset, size)| {
                assert_eq!(offset, at, "{}.{name}", T::C_NAME);
                at + size
            });
            assert_eq!(end, size_of::<T>(), "{}", T::C_NAME);
        }
        gapless::<Flow>();
        gapless::<Owner>();
        gapless::<Header>();
        gapless::<Retransmit>();
        gapless::<Send>();
        gapless::<SocketRecord>();
        gapless::<ProcessKey>();
        gapless::<Totals>();
        gapless::<Settings>();
    }

    #[test]
    fn addresses_are_written_in_their_own_family() {
        let mapped: Ipv6Addr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(address(mapped.octets()).to_string(), "192.0.2.1");
        let v6: Ipv6Addr = "2001:db8::1".parse().unwrap();
        assert_eq!(address(v6.octets()).to_string(), "2001:db8::1");
    }

    #[test]
    fn a_name_may_hold_anything() {
        assert_eq!(comm(b"nginx\0xxxxxxxxxx"), "nginx");
        assert_eq!(comm(b"\xff\xfe\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "\u{fffd}\u{fffd}");
        assert_eq!(comm(&[b'a'; 16]).len(), 16);
    }
}
