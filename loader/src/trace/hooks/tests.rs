use super::*;
use crate::error::Exit;
use crate::model::hooks::Purpose;
use crate::trace::target::IN_SOME_KERNELS;

struct Kernel {
    kprobes: bool,
    own_btf: bool,
    trampolines: bool,
    lsms: Option<&'static str>,
    tracepoints: Vec<(&'static str, usize)>,
    functions: Vec<(&'static str, usize)>,
}

fn find(list: &[(&str, usize)], name: &str) -> Option<usize> {
    list.iter().find(|(known, _)| *known == name).map(|(_, args)| *args)
}

impl KernelFeatures for Kernel {
    fn kprobes(&self) -> bool {
        self.kprobes
    }
    fn tracepoint_args(&self, name: &str) -> Option<usize> {
        find(&self.tracepoints, name)
    }
    fn function_args(&self, name: &str) -> Option<usize> {
        find(&self.functions, name)
    }
    fn has_function(&self, name: &str) -> bool {
        assert!(IN_SOME_KERNELS.contains(&name));
        self.function_args(name).is_some()
    }
    fn has_own_btf(&self) -> bool {
        self.own_btf
    }
    fn has_trampolines(&self) -> bool {
        self.trampolines
    }
    fn active_lsms(&self) -> Option<Vec<String>> {
        self.lsms.map(|list| list.split(',').map(str::to_owned).collect())
    }
}

fn kernel(kprobes: bool, more: &[(&'static str, usize)]) -> Kernel {
    let mut tracepoints = vec![("inet_sock_set_state", 3), ("tcp_retransmit_synack", 2)];
    tracepoints.extend(more);
    let functions = vec![("security_sock_graft", 2)];
    Kernel { kprobes, own_btf: true, trampolines: true, lsms: None, tracepoints, functions }
}

fn first(attach: Attach, sends: bool, kernel: &Kernel) -> HookSet {
    choose(attach, sends, kernel).unwrap().remove(0)
}

#[test]
fn auto_prefers_kprobes_and_falls_back() {
    let mut kernel = kernel(true, &[("tcp_retransmit_skb", 2), ("sock_send_length", 3)]);
    kernel.functions = vec![
        ("tcp_sendmsg_locked", 3),
        ("tcp_sendmsg", 3),
        ("tcp_connect", 1),
        ("inet_csk_listen_start", 1),
        ("inet_listen", 2),
        ("inet_csk_accept", 4),
    ];
    let names: Vec<_> = choose(Attach::Auto, false, &kernel).unwrap().iter().map(|plan| plan.name).collect();
    assert_eq!(names, ["kprobe+tracepoint", "fentry+tracepoint", "tracepoint", "kprobe"]);
    kernel.trampolines = false;
    let names: Vec<_> = choose(Attach::Auto, false, &kernel).unwrap().iter().map(|plan| plan.name).collect();
    assert_eq!(names, ["kprobe+tracepoint", "tracepoint", "kprobe"]);
    let error = choose(Attach::Fentry, false, &kernel).unwrap_err();
    assert_eq!(Exit::code_of(&error), 3);
    assert!(format!("{error:#}").contains("bpf_trampoline"), "{error:#}");
    kernel.trampolines = true;
    let plan = first(Attach::Fentry, true, &kernel);
    assert!(plan.has("fe_accept_4") && plan.has("fe_sendmsg") && !plan.has("fe_sendpages"));
    kernel.functions.pop();
    kernel.functions.extend([("inet_csk_accept", 2), ("do_tcp_sendpages", 5), ("mptcp_sendmsg", 3)]);
    let plan = first(Attach::Fentry, false, &kernel);
    assert!(plan.has("fe_accept_2") && !plan.has("fe_sendmsg"));
    assert!(plan.has("fe_sendpages") && plan.has("fe_mptcp_sendmsg"));
}

#[test]
fn an_lsm_program_sees_senders_where_bpf_is_an_active_lsm() {
    let mut kernel = kernel(true, &[("tcp_retransmit_skb", 2)]);
    let refused = |kernel: &Kernel, words: &str| {
        let error = choose(Attach::Lsm, false, kernel).unwrap_err();
        assert_eq!(Exit::code_of(&error), 3);
        assert!(format!("{error:#}").contains(words), "{error:#}");
        assert_eq!(first(Attach::Auto, false, kernel).name, "kprobe+tracepoint");
    };
    refused(&kernel, "no function bpf_lsm_socket_sendmsg");
    kernel.functions.extend([("bpf_lsm_socket_sendmsg", 3), ("mptcp_sendmsg", 3)]);
    refused(&kernel, "not known which LSMs are active");
    kernel.lsms = Some("lockdown,capability,bpfilter");
    refused(&kernel, "bpf is not among the active LSMs (lockdown,capability,bpfilter)");
    refused(&kernel, "boot with lsm=lockdown,capability,bpfilter,bpf");
    kernel.lsms = Some("lockdown,bpf");
    let plan = first(Attach::Auto, true, &kernel);
    assert_eq!(plan, first(Attach::Lsm, false, &kernel));
    assert_eq!(plan.name, "lsm+kprobe+tracepoint");
    assert!(plan.has("lsm_sendmsg") && plan.has("kp_accept") && plan.has("tp_retransmit"));
    assert!(["kp_sendmsg", "kp_sendmsg_locked", "kp_mptcp_sendmsg"].iter().all(|program| !plan.has(program)));
    // Before 6.5 the program does not see sendfile(), and before 6.2 the kernel may skip it.
    kernel.functions.push(("do_tcp_sendpages", 5));
    assert!(first(Attach::Lsm, false, &kernel).has("kp_sendpages"));
    assert_eq!(first(Attach::Auto, false, &kernel).name, "kprobe+tracepoint");
    kernel.functions.pop();
    kernel.own_btf = false;
    refused(&kernel, "kernel's own BTF");
}

#[test]
fn cuts_are_seen_by_the_tracepoint_or_else_by_fentry_and_no_set_depends_on_them() {
    let mut kernel = kernel(true, &[("tcp_retransmit_skb", 2)]);
    let seen = |kernel: &Kernel, attach| first(attach, false, kernel).cuts_seen();
    assert_eq!(seen(&kernel, Attach::Auto), CutsSeen::None);
    kernel.functions.push(("tcp_enter_recovery", 2));
    assert_eq!(seen(&kernel, Attach::Auto), CutsSeen::None, "timeouts are not seen");
    kernel.functions.push(("tcp_enter_loss", 1));
    assert_eq!(seen(&kernel, Attach::Auto), CutsSeen::Losses);
    assert_eq!(seen(&kernel, Attach::Kprobe), CutsSeen::None);
    let cuts = first(Attach::Auto, false, &kernel).hooks.into_iter().filter(|hook| hook.program.starts_with("fe_"));
    assert!(cuts.into_iter().all(|hook| hook.optional && hook.programs().last() == Some(hook.program)));
    kernel.own_btf = false;
    assert_eq!(seen(&kernel, Attach::Auto), CutsSeen::None);
    kernel.tracepoints.push(("tcp_cong_state_set", 2));
    let plan = first(Attach::Auto, false, &kernel);
    assert_eq!(plan.cuts_seen(), CutsSeen::All);
    assert!(!plan.has("fe_recovery") && plan.has("tp2_ca_state"));
}

#[test]
fn accept_is_hooked_at_its_return_only_as_a_last_resort() {
    let mut kernel = kernel(true, &[("tcp_retransmit_skb", 3)]);
    let plan = first(Attach::Auto, false, &kernel);
    assert!(plan.has("kp_accept") && !plan.has("kp_accept_return"));
    kernel.functions.clear();
    let plan = first(Attach::Auto, false, &kernel);
    assert!(plan.has("kp_accept_return") && !plan.has("kp_accept"));
}

#[test]
fn without_the_kernels_own_btf_there_is_no_fentry() {
    let mut kernel = kernel(true, &[("tcp_retransmit_skb", 2), ("sock_send_length", 3)]);
    kernel.own_btf = false;
    let names: Vec<_> = choose(Attach::Auto, false, &kernel).unwrap().iter().map(|plan| plan.name).collect();
    assert_eq!(names, ["kprobe+tracepoint", "tracepoint", "kprobe"]);
    let error = choose(Attach::Fentry, false, &kernel).unwrap_err();
    assert_eq!(Exit::code_of(&error), 3);
    assert!(format!("{error:#}").contains("kernel's own BTF"), "{error:#}");
}

#[test]
fn owners_are_attached_before_retransmits() {
    let kernel = kernel(true, &[("tcp_retransmit_skb", 2), ("sock_send_length", 3)]);
    for attach in [Attach::Auto, Attach::Kprobe, Attach::Tracepoint] {
        for plan in choose(attach, true, &kernel).unwrap() {
            let purposes: Vec<_> = plan.hooks.iter().map(|hook| hook.purpose == Purpose::Retransmit).collect();
            assert!(purposes.is_sorted() && purposes.contains(&true), "{plan:?}");
        }
    }
}

#[test]
fn auto_takes_kprobes_for_owners_and_tracepoints_for_the_rest() {
    let plan = first(Attach::Auto, false, &kernel(true, &[("tcp_retransmit_skb", 2)]));
    assert_eq!(plan.name, "kprobe+tracepoint");
    assert!(plan.has("kp_sendmsg_locked") && plan.has("tp_retransmit") && !plan.has("kp_retransmit"));
    assert!(!plan.births_by_state);
}

#[test]
fn the_arguments_of_the_tracepoint_decide_not_the_version() {
    let with_err = kernel(true, &[("tcp_retransmit_skb", 3)]);
    assert!(first(Attach::Auto, false, &with_err).has("tp_retransmit_err"));
}

#[test]
fn without_kprobes_auto_is_the_tracepoint_set() {
    let no_kprobes = kernel(false, &[("tcp_retransmit_skb", 2), ("sock_send_length", 3)]);
    let plan = first(Attach::Auto, false, &no_kprobes);
    assert_eq!(plan, first(Attach::Tracepoint, false, &no_kprobes));
    assert!(plan.births_by_state && plan.has("tp_send_length"));
    let error = choose(Attach::Kprobe, false, &no_kprobes).unwrap_err();
    assert_eq!(Exit::code_of(&error), 3);
}

#[test]
fn the_later_tracepoint_of_a_send_backs_the_earlier() {
    let both = kernel(false, &[("tcp_retransmit_skb", 3), ("sock_send_length", 3), ("tcp_sendmsg_locked", 4)]);
    for sends in [false, true] {
        let plan = first(Attach::Tracepoint, sends, &both);
        assert!(plan.has("tp_sendmsg") && plan.has("tp_send_length"));
    }
}

#[test]
fn every_set_sees_mptcp_senders_on_kernels_with_mptcp() {
    let mut kernel = kernel(true, &[("tcp_retransmit_skb", 3), ("sock_send_length", 3), ("tcp_sendmsg_locked", 4)]);
    let with = |kernel: &Kernel, attach, program| first(attach, false, kernel).has(program);
    kernel.functions.push(("mptcp_sendmsg", 3));
    assert!(with(&kernel, Attach::Tracepoint, "tp_send_length"));
    assert!(with(&kernel, Attach::Auto, "kp_mptcp_sendmsg"));
    assert!(with(&kernel, Attach::Kprobe, "kp_mptcp_sendmsg"));
}

#[test]
fn a_kprobe_backs_the_hook_on_the_end_of_a_socket() {
    let kernel = kernel(true, &[("tcp_retransmit_skb", 3)]);
    let mut plan = first(Attach::Auto, false, &kernel);
    let of = |plan: &HookSet, program| *plan.hooks.iter().find(|hook| hook.program == program).unwrap();
    assert!(plan.is_backed(&of(&plan, "tp_state")) && plan.is_backed(&of(&plan, "kp_state")));
    assert!(!plan.is_backed(&of(&plan, "kp_connect")) && of(&plan, "kp_state").optional);
    plan.hooks.retain(|hook| hook.program != "kp_state");
    assert!(!plan.is_backed(&of(&plan, "tp_state")));
    let alone = first(Attach::Kprobe, false, &kernel);
    assert!(!of(&alone, "kp_state").optional && !alone.is_backed(&of(&alone, "kp_state")));
}

#[test]
fn auto_takes_kprobes_alone_if_the_btf_has_no_tracepoints() {
    let kernel = Kernel { tracepoints: vec![], ..kernel(true, &[]) };
    let plans = choose(Attach::Auto, false, &kernel).unwrap();
    assert_eq!(plans, [first(Attach::Kprobe, false, &kernel)]);
}

#[test]
fn auto_is_not_suggested_after_auto_failed() {
    let error = || Blocked::new("something else patches that function", TRY_AUTO).by_host();
    assert!(format!("{:#}", adapt_remedy(Attach::Fentry, error())).contains(TRY_AUTO));
    let text = format!("{:#}", adapt_remedy(Attach::Auto, error()));
    assert!(text.contains("xctl doctor") && !text.contains(TRY_AUTO), "{text}");
}

#[test]
fn a_kernel_without_hooks_on_senders_is_refused_with_the_reason() {
    let error = choose(Attach::Auto, false, &kernel(false, &[("tcp_retransmit_skb", 2)])).unwrap_err();
    assert_eq!(Exit::code_of(&error), 3);
    let text = format!("{error:#}");
    assert!(text.contains("kprobe PMU") && text.contains("sock_send_length"), "{text}");
    // The message names each thing once, and does not advise the value that the user tried.
    assert_eq!(text.matches("CONFIG_KPROBE_EVENTS").count(), 1, "{text}");
    assert!(!text.contains("--attach auto"), "{text}");
}

#[test]
fn drops_are_seen_with_their_reason_where_the_tracepoint_has_one() {
    let mut kernel = kernel(false, &[]);
    assert!(format!("{:#}", drops(&kernel).unwrap_err()).contains("kfree_skb"));
    for (arguments, program) in [(2, "tp_drop"), (3, "tp_drop_reason"), (4, "tp_drop_reason")] {
        kernel.tracepoints = vec![("kfree_skb", arguments)];
        assert_eq!(drops(&kernel).unwrap().program, program);
    }
}

#[test]
fn a_set_of_tracepoints_alone_does_not_see_all_timeouts() {
    let points = [("tcp_retransmit_skb", 2), ("sock_send_length", 3), ("tcp_cong_state_set", 2)];
    let mut kernel = kernel(true, &points);
    kernel.functions.push(("tcp_syn_ack_timeout", 1));
    let sees_all = |kernel: &Kernel, attach| {
        let mut set = first(attach, false, kernel);
        set.add_synack_timeouts(kernel);
        set.shows_timeouts()
    };
    assert!(sees_all(&kernel, Attach::Mixed) && !sees_all(&kernel, Attach::Tracepoint));
    assert!(!sees_all(&kernel, Attach::Kprobe), "it does not see cuts");
    kernel.trampolines = false;
    assert!(!sees_all(&kernel, Attach::Mixed));
}
