/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Tests an event against the user's filters: --netns, --port, -4, -6, --pid, --cgroup, --comm, --kind. `xctl sockets` has no
 * events: loader/src/commands/filters.rs tests each socket of its list.
 */
#ifndef XCTL_FILTER_BPF_H
#define XCTL_FILTER_BPF_H

static __always_inline bool wanted_flow(const struct flow *flow)
{
	if (settings.netns && flow->netns != settings.netns)
		return false;
	if (settings.port && flow->sport != settings.port && flow->dport != settings.port)
		return false;
	return !settings.family || flow_is_ipv4(flow) == (settings.family == 4);
}

static __always_inline bool wanted_owner(const struct owner *owner)
{
	if (settings.tgid && owner->tgid != settings.tgid)
		return false;
	if (settings.cgroup && !owner->in_cgroup)
		return false;
	if (settings.comm[0] && !same_name(settings.comm, owner->comm))
		return false;
	return true;
}

static __always_inline bool has_owner(const struct owner *owner)
{
	return owner->how != HOW_UNKNOWN && owner->how != HOW_SHARED;
}

/* As wanted(), for an event that only counts in the totals: a missing owner is no loss here. */
static __always_inline bool wanted_in_totals(const struct flow *flow, const struct owner *owner)
{
	bool for_anybody = !settings.tgid && !settings.cgroup && !settings.comm[0];

	return wanted_flow(flow) && (has_owner(owner) ? wanted_owner(owner) : for_anybody);
}

/* With --pid, --comm or --cgroup, an event whose owner is unknown or shared is not emitted, but counted. */
static __always_inline bool wanted(const struct flow *flow, const struct owner *owner)
{
	if (!wanted_flow(flow))
		return false;
	if (has_owner(owner))
		return wanted_owner(owner);
	if (settings.tgid || settings.cgroup || settings.comm[0]) {
		count_lost(LOST_UNATTRIBUTED);
		return false;
	}
	if (owner->how == HOW_UNKNOWN)
		count_lost(LOST_UNKNOWN);
	return true;
}

static __always_inline bool wanted_kind(__u8 kind)
{
	return !settings.kinds || settings.kinds & (1 << kind);
}

#endif
