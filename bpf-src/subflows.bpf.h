/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Finds the subflows of a connection of MPTCP. */
#ifndef XCTL_SUBFLOWS_BPF_H
#define XCTL_SUBFLOWS_BPF_H

#define SUBFLOWS 64	/* the most that are found; the kernel's own path manager makes no more (MPTCP_PM_ADDR_MAX) */

/* The list of the subflows of a connection of MPTCP; NULL: this kernel has no such list. */
static __always_inline const struct list_head *subflows_of(const struct sock *parent)
{
	const struct mptcp_sock *msk = (const void *)parent;
	const struct mptcp_subflow_context *subflow = NULL;

	if (!bpf_core_field_exists(msk->conn_list) || !bpf_core_field_exists(subflow->node))
		return NULL;
	return __builtin_preserve_access_index(&msk->conn_list);
}

/* The number of subflows. If there are more than can be found, the rest is counted as lost. */
static __noinline int count_subflows(const struct sock *parent)
{
	const struct list_head *list = subflows_of(parent), *at;

	if (!list)
		return 0;
	at = BPF_CORE_READ(list, next);
#pragma unroll
	for (int i = 0; i < SUBFLOWS; i++) {
		if (!at || at == list)
			return i;
		at = BPF_CORE_READ(at, next);
	}
	if (at && at != list)
		count_lost(LOST_LEDGER);
	return SUBFLOWS;
}

/*
 * The subflow with this number in the list. NULL: there is none. Nobody has locked the list: if a subflow is removed meanwhile, the
 * walk may leave the list, and `lost` is set.
 */
static __always_inline const struct sock *subflow_of(const struct sock *parent, __u64 number, bool *lost)
{
	const struct list_head *list = subflows_of(parent), *at;
	const struct mptcp_subflow_context *subflow;
	const struct sock *sk;

	if (!list)
		return NULL;
	at = BPF_CORE_READ(list, next);
#pragma unroll
	for (__u64 i = 0; i < SUBFLOWS - 1; i++) {
		if (!at || at == list || i == number)
			break;
		at = BPF_CORE_READ(at, next);
	}
	if (at == list)
		return NULL;
	subflow = (const void *)at - bpf_core_field_offset(struct mptcp_subflow_context, node);
	sk = at ? BPF_CORE_READ(subflow, tcp_sock) : NULL;
	*lost = !sk;
	return sk;
}

#endif
