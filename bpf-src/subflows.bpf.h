/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Finds the subflows of a connection of MPTCP. */
#ifndef XCTL_SUBFLOWS_BPF_H
#define XCTL_SUBFLOWS_BPF_H

#define SUBFLOWS 64	/* the greatest number that is found: a connection has at most 65 subflows (MPTCP_PM_ADDR_MAX) */

/*
 * The subflow with this number in the list of a connection of MPTCP. NULL: there is none, or the walk lost its way, since nobody has
 * locked the list, and a subflow was removed meanwhile. The latter is counted.
 */
static __always_inline const struct sock *subflow_of(const struct sock *parent, __u64 number)
{
	const struct mptcp_sock *msk = (const void *)parent;
	const struct mptcp_subflow_context *subflow = NULL;
	const struct list_head *list, *at;

	if (!bpf_core_field_exists(msk->conn_list) || !bpf_core_field_exists(subflow->node))
		return NULL;
	list = __builtin_preserve_access_index(&msk->conn_list);
	at = BPF_CORE_READ(list, next);
#pragma unroll
	for (__u64 i = 0; i < SUBFLOWS; i++) {
		if (!at || at == list || i == number)
			break;
		at = BPF_CORE_READ(at, next);
	}
	if (!at)
		count_lost(LOST_LEDGER);
	if (!at || at == list)
		return NULL;
	subflow = (const void *)at - bpf_core_field_offset(struct mptcp_subflow_context, node);
	return BPF_CORE_READ(subflow, tcp_sock);
}

#endif
