//! The hook that a program's section name asks for: `SEC("kprobe/tcp_sendmsg")`. The names are libbpf's conventions
//! (`section_defs` in libbpf's src/libbpf.c).

use super::btf::Kind;

/// The meaning of a section name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook<'a> {
    /// The kind of hook. Where libbpf has several spellings, the long one: `raw_tracepoint` for `raw_tp`.
    pub kind: &'a str,
    /// The target of the hook, such as a kernel function; empty if the name gives none, or the kind has none.
    pub target: &'a str,
    /// The program's type as libbpf and bpftool call it. `None` for names that libbpf does not know; for those the loader of
    /// the object must set the type.
    pub program_type: Option<&'static str>,
    /// The program may sleep.
    pub sleepable: bool,
    /// libbpf loads the program by default: the name has no `?` in front.
    pub autoload: bool,
}

impl Hook<'_> {
    /// The kind and name of a type that a kernel's BTF has if the kernel has the target of this hook. None where BTF does
    /// not decide that: kprobes also attach to functions that BTF does not list.
    #[must_use]
    pub fn in_btf(&self) -> Option<(Kind, String)> {
        let (kind, prefix) = match self.kind {
            "fentry" | "fexit" | "fsession" | "fmod_ret" => (Kind::Func, ""),
            "tp_btf" | "raw_tracepoint" | "raw_tracepoint.w" => (Kind::Typedef, "btf_trace_"),
            "iter" => (Kind::Func, "bpf_iter_"),
            "lsm" | "lsm_cgroup" => (Kind::Func, "bpf_lsm_"),
            _ => return None,
        };
        // MODULE:FUNCTION names a module, which has its own BTF.
        (!self.target.is_empty() && !self.target.contains(':')).then(|| (kind, format!("{prefix}{}", self.target)))
    }
}

/// Kinds that are followed by a target: spelling, kind, program type, and whether a sleepable variant exists.
const ON_SOMETHING: &[(&str, &str, &str, bool)] = &[
    ("kprobe", "kprobe", "kprobe", false),
    ("kretprobe", "kretprobe", "kprobe", false),
    ("uprobe", "uprobe", "kprobe", true),
    ("uretprobe", "uretprobe", "kprobe", true),
    ("ksyscall", "ksyscall", "kprobe", false),
    ("kretsyscall", "kretsyscall", "kprobe", false),
    ("usdt", "usdt", "kprobe", true),
    ("kprobe.multi", "kprobe.multi", "kprobe", false),
    ("kretprobe.multi", "kretprobe.multi", "kprobe", false),
    ("kprobe.session", "kprobe.session", "kprobe", false),
    ("uprobe.multi", "uprobe.multi", "kprobe", true),
    ("uretprobe.multi", "uretprobe.multi", "kprobe", true),
    ("uprobe.session", "uprobe.session", "kprobe", true),
    ("tracepoint", "tracepoint", "tracepoint", false),
    ("tp", "tracepoint", "tracepoint", false),
    ("raw_tracepoint", "raw_tracepoint", "raw_tracepoint", false),
    ("raw_tp", "raw_tracepoint", "raw_tracepoint", false),
    ("raw_tracepoint.w", "raw_tracepoint.w", "raw_tracepoint_writable", false),
    ("raw_tp.w", "raw_tracepoint.w", "raw_tracepoint_writable", false),
    ("tp_btf", "tp_btf", "tracing", false),
    ("fentry", "fentry", "tracing", true),
    ("fexit", "fexit", "tracing", true),
    ("fsession", "fsession", "tracing", true),
    ("fmod_ret", "fmod_ret", "tracing", true),
    ("iter", "iter", "tracing", true),
    ("freplace", "freplace", "ext", false),
    ("lsm", "lsm", "lsm", true),
    ("lsm_cgroup", "lsm_cgroup", "lsm", false),
    ("struct_ops", "struct_ops", "struct_ops", true),
];

/// Names without a target, with the program type.
const ON_THEIR_OWN: &[(&str, &str)] = &[
    ("socket", "socket_filter"),
    ("sk_reuseport", "sk_reuseport"),
    ("sk_reuseport/migrate", "sk_reuseport"),
    ("tc", "sched_cls"),
    ("tc/ingress", "sched_cls"),
    ("tc/egress", "sched_cls"),
    ("tcx/ingress", "sched_cls"),
    ("tcx/egress", "sched_cls"),
    ("classifier", "sched_cls"),
    ("action", "sched_act"),
    ("netkit/primary", "sched_cls"),
    ("netkit/peer", "sched_cls"),
    ("syscall", "syscall"),
    ("xdp", "xdp"),
    ("xdp/devmap", "xdp"),
    ("xdp/cpumap", "xdp"),
    ("xdp.frags", "xdp"),
    ("xdp.frags/devmap", "xdp"),
    ("xdp.frags/cpumap", "xdp"),
    ("perf_event", "perf_event"),
    ("lwt_in", "lwt_in"),
    ("lwt_out", "lwt_out"),
    ("lwt_xmit", "lwt_xmit"),
    ("lwt_seg6local", "lwt_seg6local"),
    ("sockops", "sock_ops"),
    ("sk_skb", "sk_skb"),
    ("sk_skb/stream_parser", "sk_skb"),
    ("sk_skb/stream_verdict", "sk_skb"),
    ("sk_skb/verdict", "sk_skb"),
    ("sk_msg", "sk_msg"),
    ("lirc_mode2", "lirc_mode2"),
    ("flow_dissector", "flow_dissector"),
    ("cgroup_skb/ingress", "cgroup_skb"),
    ("cgroup_skb/egress", "cgroup_skb"),
    ("sk_lookup", "sk_lookup"),
    ("netfilter", "netfilter"),
];

/// The program type of `cgroup/NAME`.
fn cgroup(name: &str) -> Option<&'static str> {
    Some(match name {
        "skb" => "cgroup_skb",
        "sock_create" | "sock_release" | "sock" | "post_bind4" | "post_bind6" => "cgroup_sock",
        "sysctl" => "cgroup_sysctl",
        "getsockopt" | "setsockopt" => "cgroup_sockopt",
        "dev" => "cgroup_device",
        _ => {
            let verbs = ["bind", "connect", "sendmsg", "recvmsg", "getpeername", "getsockname"];
            let rest = verbs.iter().find_map(|verb| name.strip_prefix(verb))?;
            if !matches!(rest, "4" | "6" | "_unix") || name == "bind_unix" {
                return None;
            }
            "cgroup_sock_addr"
        }
    })
}

/// The meaning of a section name.
pub fn hook(section: &str) -> Hook<'_> {
    let (name, autoload) = match section.strip_prefix('?') {
        Some(name) => (name, false),
        None => (section, true),
    };
    let (kind, target) = name.split_once('/').unwrap_or((name, ""));
    let (awake, sleepable) = kind.strip_suffix(".s").map_or((kind, false), |awake| (awake, true));
    let known =
        ON_SOMETHING.iter().find(|(spelling, _, _, may_sleep)| *spelling == awake && (*may_sleep || !sleepable));
    if let Some((_, kind, program_type, _)) = known {
        return Hook { kind, target, program_type: Some(program_type), sleepable, autoload };
    }
    let program_type = match name.strip_prefix("cgroup/") {
        Some(target) => cgroup(target),
        None => ON_THEIR_OWN.iter().find(|(spelling, _)| *spelling == name).map(|(_, program_type)| *program_type),
    };
    Hook { kind: name, target: "", program_type, sleepable: name == "syscall", autoload }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_libbpf_would_make_of_it() {
        let says = |section| {
            let hook = hook(section);
            (hook.kind, hook.target, hook.program_type, hook.sleepable, hook.autoload)
        };
        let in_btf = |section| hook(section).in_btf().map(|(_, name)| name);
        assert_eq!(in_btf("fexit.s/f"), Some("f".to_owned()));
        assert_eq!(in_btf("raw_tp/t"), Some("btf_trace_t".to_owned()));
        assert_eq!(in_btf("lsm/file_open"), Some("bpf_lsm_file_open".to_owned()));
        assert!(["kprobe/f", "fentry/module:f", "fentry", "xdp"].iter().all(|section| in_btf(section).is_none()));
        assert_eq!(says("kprobe/tcp_sendmsg"), ("kprobe", "tcp_sendmsg", Some("kprobe"), false, true));
        assert_eq!(says("raw_tp/sys_enter"), ("raw_tracepoint", "sys_enter", Some("raw_tracepoint"), false, true));
        assert_eq!(says("?fentry.s/f"), ("fentry", "f", Some("tracing"), true, false));
        assert_eq!(
            says("tp/sched/sched_switch"),
            ("tracepoint", "sched/sched_switch", Some("tracepoint"), false, true)
        );
        assert_eq!(says("cgroup/connect4"), ("cgroup/connect4", "", Some("cgroup_sock_addr"), false, true));
        assert_eq!(says("cgroup/nonsense"), ("cgroup/nonsense", "", None, false, true));
        assert_eq!(says("xdp"), ("xdp", "", Some("xdp"), false, true));
        assert_eq!(says("tc/ingress"), ("tc/ingress", "", Some("sched_cls"), false, true));
        assert_eq!(says("mine"), ("mine", "", None, false, true));
        assert_eq!(says("syscall"), ("syscall", "", Some("syscall"), true, true));
        // Names that libbpf does not take, although they look valid.
        for unknown in
            ["kprobe.s/f", "raw_tp.s/f", "xdp/foo", "tc/x", "cgroup_skb", "netkit", "syscall.s", "lsm_cgroup.s/f"]
        {
            assert_eq!(says(unknown), (unknown, "", None, false, true));
        }
        for known in
            ["xdp/devmap", "xdp.frags/cpumap", "tcx/egress", "sk_skb/verdict", "sk_reuseport/migrate", "uprobe.multi.s"]
        {
            assert!(says(known).2.is_some(), "{known}");
        }
    }
}
