//! The table of hooks: every program that may be attached, and where.

use HookKind::{Fentry, Fexit, Kprobe, Kretprobe, Lsm, RawTracepoint};

use crate::model::hooks::{BackupRuns, Hook, HookKind};

/// Owners, by send(), connect() and listen(). All of these run in process context, and so does accept().
pub(super) const OWNERS_BY_KPROBE: [Hook; 4] = [
    Hook::owner(Kprobe, c"tcp_sendmsg", "kp_sendmsg"),
    Hook::owner(Kprobe, c"tcp_connect", "kp_connect"),
    Hook::owner(Kprobe, c"inet_csk_listen_start", "kp_listen"),
    Hook::owner(Kprobe, c"inet_listen", "kp_listen_again"),
];
/// The end of accept(), for any number of processes that wait in it.
pub(super) const ACCEPT_BY_KPROBE: Hook = Hook::owner(Kprobe, c"security_sock_graft", "kp_accept");
/// The end of accept(), for kernels without security_sock_graft. The kretprobe misses calls beyond its `maxactive` at a
/// time.
pub(super) const ACCEPT_BY_KRETPROBE: Hook = Hook::owner(Kretprobe, c"inet_csk_accept", "kp_accept_return");
/// The program that sees each call of send() once, for send events.
pub(super) const SENDS_BY_KPROBE: &str = "kp_sendmsg";
/// Senders that do not pass tcp_sendmsg: sendfile and kTLS until 6.4.
pub(super) const SENDPAGES_BY_KPROBE: Hook = Hook::owner(Kprobe, c"do_tcp_sendpages", "kp_sendpages");
/// kTLS from 6.5 on, where sendfile passes tcp_sendmsg.
pub(super) const SENDMSG_LOCKED_BY_KPROBE: Hook = Hook::owner(Kprobe, c"tcp_sendmsg_locked", "kp_sendmsg_locked");
/// MPTCP: the process sends on the parent socket.
pub(super) const MPTCP_BY_KPROBE: Hook = Hook::owner(Kprobe, c"mptcp_sendmsg", "kp_mptcp_sendmsg");
/// The end of a socket, and the process that closes it. inet_sk_state_store also runs for MPTCP, where tcp_set_state does
/// not. It is a function of its own since 4.16, called across files (net/ipv4/af_inet.c): only link-time optimization may
/// remove it.
pub(super) const STATE_BY_KPROBE: Hook = Hook::end(Kprobe, c"inet_sk_state_store", "kp_state");
/// Retransmitted segments. Entry probes are attached after return probes and detached before them. A return without its entry
/// is counted as lost; an entry without its return would be taken for a part of the task's next call.
pub(super) const RETRANSMITS_BY_KPROBE: [Hook; 8] = [
    Hook::retransmit(Kretprobe, c"tcp_retransmit_skb", "kp_retransmit_return"),
    Hook::retransmit(Kretprobe, c"__tcp_retransmit_skb", "kp_inner_return"),
    // A part that the compiler split off. In Debian's 6.12 for arm64 a loss probe calls this part and not the whole
    // function.
    Hook::retransmit(Kretprobe, c"__tcp_retransmit_skb.part.0", "kp_inner_return").optional(),
    Hook::retransmit(Kretprobe, c"tcp_rtx_synack", "kp_synack_return"),
    Hook::retransmit(Kprobe, c"tcp_retransmit_skb", "kp_retransmit"),
    Hook::retransmit(Kprobe, c"__tcp_retransmit_skb", "kp_inner"),
    Hook::retransmit(Kprobe, c"__tcp_retransmit_skb.part.0", "kp_inner").optional(),
    Hook::retransmit(Kprobe, c"tcp_rtx_synack", "kp_synack"),
];

/// Every sender except those of MPTCP: tcp_sendmsg and, from 6.5 on, kTLS call tcp_sendmsg_locked.
pub(super) const SENDER_BY_FENTRY: Hook =
    Hook::owner(Fentry, c"tcp_sendmsg_locked", "fe_sendmsg_locked").with_backup("fe2_sendmsg_locked");
/// Runs once for each call, for send events.
pub(super) const SENDS_BY_FENTRY: Hook = Hook::owner(Fentry, c"tcp_sendmsg", "fe_sendmsg");
pub(super) const SENDPAGES_BY_FENTRY: Hook =
    Hook::owner(Fentry, c"do_tcp_sendpages", "fe_sendpages").with_backup("fe2_sendpages");
pub(super) const MPTCP_BY_FENTRY: Hook =
    Hook::owner(Fentry, c"mptcp_sendmsg", "fe_mptcp_sendmsg").with_backup("fe2_mptcp_sendmsg");
pub(super) const CONNECT_BY_FENTRY: Hook = Hook::owner(Fentry, c"tcp_connect", "fe_connect").with_backup("fe2_connect");
pub(super) const LISTEN_BY_FENTRY: Hook =
    Hook::owner(Fentry, c"inet_csk_listen_start", "fe_listen").with_backup("fe2_listen");
pub(super) const LISTEN_AGAIN_BY_FENTRY: Hook =
    Hook::owner(Fentry, c"inet_listen", "fe_listen_again").with_backup("fe2_listen_again");
/// The return value comes after the arguments. There are four arguments, or two since 6.10.
pub(super) const ACCEPT_4_BY_FEXIT: Hook =
    Hook::owner(Fexit, c"inet_csk_accept", "fe_accept_4").with_backup("fe2_accept_4");
pub(super) const ACCEPT_2_BY_FEXIT: Hook =
    Hook::owner(Fexit, c"inet_csk_accept", "fe_accept_2").with_backup("fe2_accept_2");

/// Every sender, on sockets of every family and protocol, before the kernel locks the socket. Senders of pages
/// do not pass here ([`SENDPAGES_BY_KPROBE`]).
pub(super) const SENDER_BY_LSM: Hook = Hook::owner(Lsm, c"socket_sendmsg", "lsm_sendmsg");

/// The end of a socket, and the process that closes it. If no better hook shows connect() and listen(), this one does.
pub(super) const STATE: Hook =
    Hook::end(RawTracepoint, c"inet_sock_set_state", "tp_state").with_counted_backup("tp2_state", BackupRuns::State);
/// A sender, before its bytes leave (6.16 and newer).
pub(super) const SENDER: Hook = Hook::owner(RawTracepoint, c"tcp_sendmsg_locked", "tp_sendmsg");
/// A sender, when its call returns (6.3 and newer); MPTCP's senders too. It remembers those for which [`SENDER`] was skipped.
pub(super) const SEND_LENGTH: Hook = Hook::owner(RawTracepoint, c"sock_send_length", "tp_send_length");
/// A reader owns its socket too. This matters if accept() ran before xctl started and the socket was on its way between
/// processes. The kprobe set has no such hook: while a kprobe runs in process context, the kernel skips the kprobes of
/// softirqs that interrupt it.
pub(super) const READER: Hook = Hook::owner(RawTracepoint, c"tcp_rcv_space_adjust", "tp_read").with_backup("tp2_read");
pub(super) const RETRANSMIT: Hook = Hook::retransmit(RawTracepoint, c"tcp_retransmit_skb", "tp_retransmit")
    .with_counted_backup("tp2_retransmit", BackupRuns::Retransmit);
/// The same tracepoint on kernels where it tells whether the attempt failed.
pub(super) const RETRANSMIT_ERR: Hook = Hook::retransmit(RawTracepoint, c"tcp_retransmit_skb", "tp_retransmit_err")
    .with_counted_backup("tp2_retransmit_err", BackupRuns::Retransmit);
/// Cuts of congestion windows, with every reason (5.19 and newer).
pub(super) const CUTS: Hook = Hook::retransmit(RawTracepoint, c"tcp_cong_state_set", "tp_ca_state")
    .with_counted_backup("tp2_ca_state", BackupRuns::Retransmit);
/// Cuts after losses and after timeouts, on older kernels with trampolines.
pub(super) const CUTS_BY_FENTRY: [Hook; 2] = [
    Hook::retransmit(Fentry, c"tcp_enter_recovery", "fe_recovery")
        .with_counted_backup("fe2_recovery", BackupRuns::Retransmit)
        .optional(),
    Hook::retransmit(Fentry, c"tcp_enter_loss", "fe_loss")
        .with_counted_backup("fe2_loss", BackupRuns::Retransmit)
        .optional(),
];
/// Packets that this host drops. Only with `--drops`.
pub(super) const DROPS: Hook =
    Hook::retransmit(RawTracepoint, c"kfree_skb", "tp_drop").with_counted_backup("tp2_drop", BackupRuns::Drop);
/// The same tracepoint on kernels where it tells the reason (5.17 and newer).
pub(super) const DROPS_REASON: Hook = Hook::retransmit(RawTracepoint, c"kfree_skb", "tp_drop_reason")
    .with_counted_backup("tp2_drop_reason", BackupRuns::Drop);
/// A SYN-ACK that was not answered in time. Only with `--verify`.
pub(super) const SYNACK_TIMEOUTS: Hook = Hook::retransmit(Fentry, c"tcp_syn_ack_timeout", "fe_synack_timeout")
    .with_counted_backup("fe2_synack_timeout", BackupRuns::Retransmit)
    .optional();
pub(super) const SYNACK: Hook = Hook::retransmit(RawTracepoint, c"tcp_retransmit_synack", "tp_synack")
    .with_counted_backup("tp2_synack", BackupRuns::Retransmit);
