//! A recorded call in readable form: names instead of numbers, and the memory behind a pointer instead of its address.
//! The layouts are those of `union bpf_attr` (include/uapi/linux/bpf.h) and `struct perf_event_attr`
//! (include/uapi/linux/perf_event.h).

use std::borrow::Cow;

use libbpf_sys as sys;
use nix::errno::Errno;
use serde::{Serialize, Serializer};

use crate::kernel::call::{By, Call, Known, Pointed, Request, long, word};
use crate::object::elf::INSN_SIZE;
use crate::object::facts::hex;
use crate::object::maps;

/// The format of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    /// 32 bits.
    U32,
    /// 32 bits: a file descriptor or a process id.
    Signed,
    /// 64 bits.
    U64,
    /// A string in 16 bytes, NUL-terminated.
    Name,
    /// An address, which is shown as it is, or null.
    Pointer,
    /// A pointer to a string.
    Text,
    /// A pointer to bytes.
    Bytes,
    /// A pointer to bytes that are too many to show.
    Blob,
    /// A pointer to instructions.
    Insns,
    /// A descriptor of a map.
    Map,
    /// A descriptor of a program.
    Program,
    /// `enum bpf_map_type`
    MapType,
    /// `enum bpf_prog_type`
    ProgramType,
}

/// An attribute: its name, its offset in bytes, its format.
type Attribute = (&'static str, usize, As);

const MAP_CREATE: &[Attribute] = &[
    ("map_type", 0, As::MapType),
    ("key_size", 4, As::U32),
    ("value_size", 8, As::U32),
    ("max_entries", 12, As::U32),
    ("map_flags", 16, As::U32),
    ("inner_map_fd", 20, As::Signed),
    ("numa_node", 24, As::U32),
    ("map_name", 28, As::Name),
    ("map_ifindex", 44, As::U32),
    ("btf_fd", 48, As::Signed),
    ("btf_key_type_id", 52, As::U32),
    ("btf_value_type_id", 56, As::U32),
    ("btf_vmlinux_value_type_id", 60, As::U32),
    ("map_extra", 64, As::U64),
    ("value_type_btf_obj_fd", 72, As::Signed),
    ("map_token_fd", 76, As::Signed),
    ("excl_prog_hash", 80, As::Pointer),
    ("excl_prog_hash_size", 88, As::U32),
];
const MAP_ELEM: &[Attribute] =
    &[("map_fd", 0, As::Map), ("key", 8, As::Bytes), ("value", 16, As::Bytes), ("flags", 24, As::U64)];
const MAP_NEXT_KEY: &[Attribute] = &[("map_fd", 0, As::Map), ("key", 8, As::Bytes), ("next_key", 16, As::Pointer)];
const MAP_FREEZE: &[Attribute] = &[("map_fd", 0, As::Map)];
const PROG_LOAD: &[Attribute] = &[
    ("prog_type", 0, As::ProgramType),
    ("insn_cnt", 4, As::U32),
    ("insns", 8, As::Insns),
    ("license", 16, As::Text),
    ("log_level", 24, As::U32),
    ("log_size", 28, As::U32),
    ("log_buf", 32, As::Pointer),
    ("kern_version", 40, As::U32),
    ("prog_flags", 44, As::U32),
    ("prog_name", 48, As::Name),
    ("prog_ifindex", 64, As::U32),
    ("expected_attach_type", 68, As::U32),
    ("prog_btf_fd", 72, As::Signed),
    ("func_info_rec_size", 76, As::U32),
    ("func_info", 80, As::Pointer),
    ("func_info_cnt", 88, As::U32),
    ("line_info_rec_size", 92, As::U32),
    ("line_info", 96, As::Pointer),
    ("line_info_cnt", 104, As::U32),
    ("attach_btf_id", 108, As::U32),
    ("attach_btf_obj_fd", 112, As::Signed),
    ("core_relo_cnt", 116, As::U32),
    ("fd_array", 120, As::Pointer),
    ("core_relos", 128, As::Pointer),
    ("core_relo_rec_size", 136, As::U32),
    ("log_true_size", 140, As::U32),
    ("prog_token_fd", 144, As::Signed),
    ("fd_array_cnt", 148, As::U32),
    ("signature", 152, As::Pointer),
    ("signature_size", 160, As::U32),
    ("keyring_id", 164, As::Signed),
];
const BTF_LOAD: &[Attribute] = &[
    ("btf", 0, As::Blob),
    ("btf_log_buf", 8, As::Pointer),
    ("btf_size", 16, As::U32),
    ("btf_log_size", 20, As::U32),
    ("btf_log_level", 24, As::U32),
    ("btf_log_true_size", 28, As::U32),
    ("btf_flags", 32, As::U32),
    ("btf_token_fd", 36, As::Signed),
];
const OBJ_INFO: &[Attribute] = &[("bpf_fd", 0, As::Signed), ("info_len", 4, As::U32), ("info", 8, As::Pointer)];
const RAW_TRACEPOINT: &[Attribute] = &[("name", 0, As::Text), ("prog_fd", 8, As::Program), ("cookie", 16, As::U64)];
const LINK_CREATE: &[Attribute] = &[
    ("prog_fd", 0, As::Program),
    ("target_fd", 4, As::Signed),
    ("attach_type", 8, As::U32),
    ("flags", 12, As::U32),
    // The rest depends on the type: parameters of an iterator, or a cookie.
    ("iter_info_or_cookie", 16, As::U64),
    ("iter_info_len", 24, As::U32),
];
const ITER_CREATE: &[Attribute] = &[("link_fd", 0, As::Signed), ("flags", 4, As::U32)];
const BIND_MAP: &[Attribute] = &[("prog_fd", 0, As::Program), ("map_fd", 4, As::Map), ("flags", 8, As::U32)];
const TOKEN_CREATE: &[Attribute] = &[("flags", 0, As::U32), ("bpffs_fd", 4, As::Signed)];
const NEXT_ID: &[Attribute] = &[("start_id", 0, As::U32), ("next_id", 4, As::U32), ("open_flags", 8, As::U32)];
const FD_BY_ID: &[Attribute] = &[("id", 0, As::U32), ("next_id", 4, As::U32), ("open_flags", 8, As::U32)];
const PERF_EVENT: &[Attribute] = &[
    ("type", 0, As::U32),
    ("size", 4, As::U32),
    ("config", 8, As::U64),
    ("sample_period", 16, As::U64),
    ("sample_type", 24, As::U64),
    ("read_format", 32, As::U64),
    ("bits", 40, As::U64),
    ("wakeup_events", 48, As::U32),
    ("bp_type", 52, As::U32),
    // This field is kprobe_func of a kprobe, else config1.
    ("config1", 56, As::Text),
    ("config2", 64, As::U64),
];

/// The name of a command, and those of its attributes that this file knows.
fn command(number: u32) -> (Option<&'static str>, &'static [Attribute]) {
    let attributes = match number {
        sys::BPF_MAP_CREATE => MAP_CREATE,
        sys::BPF_MAP_LOOKUP_ELEM
        | sys::BPF_MAP_UPDATE_ELEM
        | sys::BPF_MAP_DELETE_ELEM
        | sys::BPF_MAP_LOOKUP_AND_DELETE_ELEM => MAP_ELEM,
        sys::BPF_MAP_GET_NEXT_KEY => MAP_NEXT_KEY,
        sys::BPF_MAP_FREEZE => MAP_FREEZE,
        sys::BPF_PROG_LOAD => PROG_LOAD,
        sys::BPF_BTF_LOAD => BTF_LOAD,
        sys::BPF_OBJ_GET_INFO_BY_FD => OBJ_INFO,
        sys::BPF_RAW_TRACEPOINT_OPEN => RAW_TRACEPOINT,
        sys::BPF_LINK_CREATE => LINK_CREATE,
        sys::BPF_ITER_CREATE => ITER_CREATE,
        sys::BPF_PROG_BIND_MAP => BIND_MAP,
        sys::BPF_TOKEN_CREATE => TOKEN_CREATE,
        sys::BPF_PROG_GET_NEXT_ID | sys::BPF_MAP_GET_NEXT_ID | sys::BPF_BTF_GET_NEXT_ID | sys::BPF_LINK_GET_NEXT_ID => {
            NEXT_ID
        }
        sys::BPF_PROG_GET_FD_BY_ID
        | sys::BPF_MAP_GET_FD_BY_ID
        | sys::BPF_BTF_GET_FD_BY_ID
        | sys::BPF_LINK_GET_FD_BY_ID => FD_BY_ID,
        _ => &[],
    };
    (COMMANDS.get(number as usize).copied(), attributes)
}

/// The names of `enum bpf_cmd`, by number.
#[rustfmt::skip]
const COMMANDS: [&str; 37] = [
    "BPF_MAP_CREATE", "BPF_MAP_LOOKUP_ELEM", "BPF_MAP_UPDATE_ELEM", "BPF_MAP_DELETE_ELEM", "BPF_MAP_GET_NEXT_KEY",
    "BPF_PROG_LOAD", "BPF_OBJ_PIN", "BPF_OBJ_GET", "BPF_PROG_ATTACH", "BPF_PROG_DETACH", "BPF_PROG_TEST_RUN",
    "BPF_PROG_GET_NEXT_ID", "BPF_MAP_GET_NEXT_ID", "BPF_PROG_GET_FD_BY_ID", "BPF_MAP_GET_FD_BY_ID",
    "BPF_OBJ_GET_INFO_BY_FD", "BPF_PROG_QUERY", "BPF_RAW_TRACEPOINT_OPEN", "BPF_BTF_LOAD", "BPF_BTF_GET_FD_BY_ID",
    "BPF_TASK_FD_QUERY", "BPF_MAP_LOOKUP_AND_DELETE_ELEM", "BPF_MAP_FREEZE", "BPF_BTF_GET_NEXT_ID",
    "BPF_MAP_LOOKUP_BATCH", "BPF_MAP_LOOKUP_AND_DELETE_BATCH", "BPF_MAP_UPDATE_BATCH", "BPF_MAP_DELETE_BATCH",
    "BPF_LINK_CREATE", "BPF_LINK_UPDATE", "BPF_LINK_GET_FD_BY_ID", "BPF_LINK_GET_NEXT_ID", "BPF_ENABLE_STATS",
    "BPF_ITER_CREATE", "BPF_LINK_DETACH", "BPF_PROG_BIND_MAP", "BPF_TOKEN_CREATE",
];

/// The names of `enum bpf_prog_type`, by number, as bpftool writes them.
#[rustfmt::skip]
const PROGRAM_TYPES: [&str; 33] = [
    "unspec", "socket_filter", "kprobe", "sched_cls", "sched_act", "tracepoint", "xdp", "perf_event", "cgroup_skb",
    "cgroup_sock", "lwt_in", "lwt_out", "lwt_xmit", "sock_ops", "sk_skb", "cgroup_device", "sk_msg", "raw_tracepoint",
    "cgroup_sock_addr", "lwt_seg6local", "lirc_mode2", "sk_reuseport", "flow_dissector", "cgroup_sysctl",
    "raw_tracepoint_writable", "cgroup_sockopt", "tracing", "struct_ops", "ext", "lsm", "sk_lookup", "syscall",
    "netfilter",
];

/// A program type's name, as bpftool writes it, or its number.
pub(super) fn program_type(number: u32) -> Cow<'static, str> {
    PROGRAM_TYPES.get(number as usize).map_or_else(|| number.to_string().into(), |name| (*name).into())
}

/// An attribute's value.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Value {
    Number(u64),
    Signed(i32),
    Text(Cow<'static, str>),
    Blob { bytes: usize, sha256: String },
    Insns { count: usize, sha256: String, code: String },
    Null,
}

/// Names and values, in the kernel's order.
#[derive(Debug)]
struct Attributes(Vec<(&'static str, Value)>);

impl Serialize for Attributes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

fn text(bytes: &[u8]) -> Value {
    Value::Text(String::from_utf8_lossy(bytes).into_owned().into())
}

fn sha256(bytes: &[u8]) -> String {
    hex(&hmac_sha256::Hash::hash(bytes))
}

/// An attribute's value; none if the caller passed too few bytes.
fn value(bytes: &[u8], pointed: &[Pointed], at: usize, how: As) -> Option<Value> {
    let there = pointed.iter().find(|pointed| pointed.at == at).map(|pointed| pointed.bytes.as_slice());
    Some(match how {
        As::U32 => Value::Number(word(bytes, at)?.into()),
        As::Signed | As::Map | As::Program => Value::Signed(word(bytes, at)? as i32),
        As::U64 => Value::Number(long(bytes, at)?),
        As::Name => {
            let name = bytes.get(at..at + sys::BPF_OBJ_NAME_LEN as usize)?;
            text(name.split(|&byte| byte == 0).next().unwrap_or_default())
        }
        As::MapType => Value::Text(maps::map_type_name(word(bytes, at)?)),
        As::ProgramType => Value::Text(program_type(word(bytes, at)?)),
        As::Pointer | As::Text | As::Bytes | As::Blob | As::Insns => match (how, there, long(bytes, at)?) {
            (As::Text, Some(string), _) => text(string),
            (As::Bytes, Some(bytes), _) => Value::Text(hex(bytes).into()),
            (As::Blob, Some(blob), _) => Value::Blob { bytes: blob.len(), sha256: sha256(blob) },
            (As::Insns, Some(code), _) => {
                Value::Insns { count: code.len() / INSN_SIZE as usize, sha256: sha256(code), code: hex(code) }
            }
            (_, _, 0) => Value::Null,
            (.., address) => Value::Text(format!("{address:#x}").into()),
        },
    })
}

fn width(how: As) -> usize {
    match how {
        As::U32 | As::Signed | As::Map | As::Program | As::MapType | As::ProgramType => 4,
        As::Name => sys::BPF_OBJ_NAME_LEN as usize,
        _ => 8,
    }
}

/// All attributes. Bytes beyond the known attributes are shown as they are, unless all of them are zero.
fn attributes(bytes: &[u8], pointed: &[Pointed], layout: &[Attribute]) -> Attributes {
    let known = layout.iter().filter_map(|&(name, at, how)| Some((name, value(bytes, pointed, at, how)?)));
    let mut all: Vec<_> = known.collect();
    let end = layout.iter().map(|(_, at, how)| at + width(*how)).max().unwrap_or(0);
    let rest = bytes.get(end..).unwrap_or_default();
    if rest.iter().any(|&byte| byte != 0) {
        all.push(("rest", Value::Text(hex(rest).into())));
    }
    Attributes(all)
}

/// The name of the map or program behind the first attribute of this format.
fn named(bytes: &[u8], layout: &[Attribute], kind: As, known: &Known) -> Option<String> {
    let (_, at, _) = layout.iter().find(|(.., how)| *how == kind)?;
    known.name(word(bytes, *at)? as i32)
}

/// A call, as it is written to the record.
#[derive(Debug, Serialize)]
pub(super) struct Decoded {
    number: u64,
    call: &'static str,
    /// For bpf(2), the command; for ioctl(2), the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<Cow<'static, str>>,
    by: By,
    /// The names of the map and the program that descriptors among the attributes stand for.
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<String>,
    /// Bytes of attributes that were passed to the kernel.
    size: usize,
    attributes: Attributes,
    result: i64,
    /// The name or number of the errno; null if the call succeeded.
    errno: Option<String>,
    took_ns: u64,
}

/// The name of an errno. The kernel has some errnos for which user space has no name.
fn errno(number: i32) -> Option<String> {
    /// This errno is internal to the kernel, and yet bpf(2) returns it.
    const ENOTSUPP: i32 = 524;
    match (number, Errno::from_raw(number)) {
        (0, _) => None,
        (ENOTSUPP, _) => Some("ENOTSUPP".into()),
        (_, Errno::UnknownErrno) => Some(number.to_string()),
        (_, known) => Some(format!("{known:?}")),
    }
}

/// Decode the call with this number, counted from 1.
pub(super) fn decode(number: u64, call: &Call, known: &Known) -> Decoded {
    let mut decoded = Decoded {
        number,
        call: "bpf",
        command: None,
        by: call.by,
        map: None,
        program: None,
        size: 0,
        attributes: Attributes(Vec::new()),
        result: call.result,
        errno: errno(call.errno),
        took_ns: u64::try_from(call.took.as_nanos()).unwrap_or(u64::MAX),
    };
    match &call.request {
        Request::Bpf { command: command_number, attributes: bytes, pointed } => {
            let (name, layout) = command(*command_number);
            decoded.command = Some(name.map_or_else(|| command_number.to_string().into(), Cow::Borrowed));
            decoded.map = named(bytes, layout, As::Map, known);
            decoded.program = named(bytes, layout, As::Program, known);
            decoded.size = bytes.len();
            decoded.attributes = attributes(bytes, pointed, layout);
            if layout == OBJ_INFO {
                decoded.map = word(bytes, 0).and_then(|fd| known.name(fd as i32));
            }
        }
        Request::PerfEventOpen { attributes: bytes, pointed, pid, cpu, group, flags } => {
            decoded.call = "perf_event_open";
            decoded.size = bytes.len();
            decoded.attributes = attributes(bytes, pointed, PERF_EVENT);
            decoded.attributes.0.extend([
                ("pid", Value::Signed(*pid)),
                ("cpu", Value::Signed(*cpu)),
                ("group_fd", Value::Signed(*group)),
                ("flags", Value::Number(*flags)),
            ]);
        }
        Request::PerfIoctl { fd, request, argument } => {
            decoded.call = "ioctl";
            decoded.command = Some(match request & 0xff {
                0 => "PERF_EVENT_IOC_ENABLE".into(),
                1 => "PERF_EVENT_IOC_DISABLE".into(),
                5 => "PERF_EVENT_IOC_SET_OUTPUT".into(),
                8 => "PERF_EVENT_IOC_SET_BPF".into(),
                _ => format!("{request:#x}").into(),
            });
            decoded.program = (request & 0xff == 8).then(|| known.name(*argument as i32)).flatten();
            decoded.attributes.0 = vec![("fd", Value::Signed(*fd)), ("argument", Value::Number(*argument))];
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shown(request: Request, result: i64, errno: i32) -> serde_json::Value {
        let call = Call { request, by: By::Xctl, result, errno, took: Duration::from_nanos(7) };
        serde_json::to_value(decode(3, &call, &Known::default())).unwrap()
    }

    #[test]
    fn layouts_are_those_of_the_kernel() {
        // libbpf-sys has the kernel's own header, laid out by a compiler.
        let mut attributes = sys::bpf_attr::default();
        attributes.__bindgen_anon_3.prog_btf_fd = 0x0102_0304;
        attributes.__bindgen_anon_3.attach_btf_id = 17;
        attributes.__bindgen_anon_3.insn_cnt = 5;
        let bytes = crate::kernel::calls::tests::bytes_of(&attributes);
        let shown = serde_json::to_value(super::attributes(&bytes, &[], PROG_LOAD)).unwrap();
        assert_eq!((&shown["prog_btf_fd"], &shown["attach_btf_id"]), (&0x0102_0304.into(), &17.into()));
        assert_eq!((&shown["insn_cnt"], &shown["insns"]), (&5.into(), &serde_json::Value::Null));
        assert!(shown.get("rest").is_none());
    }

    #[test]
    fn attributes_beyond_the_given_size_are_not_shown() {
        let request = Request::Bpf { command: sys::BPF_MAP_FREEZE, attributes: vec![4, 0, 0, 0], pointed: vec![] };
        let shown = shown(request, -1, libc::EPERM);
        assert_eq!(shown["attributes"], serde_json::json!({ "map_fd": 4 }));
        assert_eq!((&shown["errno"], &shown["command"]), (&"EPERM".into(), &"BPF_MAP_FREEZE".into()));
        assert_eq!((&shown["number"], &shown["size"], &shown["took_ns"]), (&3.into(), &4.into(), &7.into()));
    }

    #[test]
    fn an_unknown_command_is_its_number_and_its_bytes() {
        let request = Request::Bpf { command: 999, attributes: vec![0, 1, 2], pointed: vec![] };
        let shown = shown(request, -1, 524);
        assert_eq!((&shown["command"], &shown["attributes"]["rest"]), (&"999".into(), &"000102".into()));
        assert_eq!(shown["errno"], "ENOTSUPP");
    }

    #[test]
    fn a_pointer_is_shown_as_its_content() {
        let mut bytes = vec![0; 16];
        bytes[0] = 1;
        let pointed = vec![Pointed { at: 0, bytes: b"tcp_probe".to_vec() }];
        let request = Request::Bpf { command: sys::BPF_RAW_TRACEPOINT_OPEN, attributes: bytes, pointed };
        assert_eq!(shown(request, 5, 0)["attributes"], serde_json::json!({ "name": "tcp_probe", "prog_fd": 0 }));
    }
}
