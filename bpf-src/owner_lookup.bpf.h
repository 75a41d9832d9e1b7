/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Looks up the owner of the socket that a segment belongs to. For a SYN-ACK, retransmit.bpf.h chooses the socket. */
#ifndef XCTL_OWNER_LOOKUP_BPF_H
#define XCTL_OWNER_LOOKUP_BPF_H

/*
 * Write the owner of the socket with this flow to `to`. If no owner is known, `to->how` says whether the kernel owns the
 * socket. The answer is never a guess. This runs wherever TCP retransmits: mostly in softirq, where the current task is the
 * one that was interrupted.
 */
static __always_inline void owner_of(const struct sock *sk, const struct flow *flow, struct owner *to)
{
	const struct sock *parent = mptcp_parent(sk);
	struct flow by_address = flow_by_address(parent);
	const struct sock *used = sk;

	if (parent && copy_of(parent, &by_address, to)) {	/* the process acts on the parent, so that entry is the newest */
		used = parent;
	} else {
		by_address.socket = (__u64)sk;
		if (!copy_of(sk, flow, to) && !copy_of(sk, &by_address, to) && !copy_seeded(sk, flow, &by_address, to)) {
			if (is_kernels_own(sk))
				to->how = HOW_KERNEL;
			return;
		}
	}
	if (is_shared(to)) {
		share(to);
		return;
	}
	to->tid = last_thread(used, to->tgid, to->tid);
	refresh_name(to);
	to->born = born_for_totals(to->born);
}

#endif
