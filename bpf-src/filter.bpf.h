/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Tests an event against the user's filters: --netns, --port, --addr, -4, -6, --pid, --cgroup, --comm, --kind. An event passes
 * a filter if it has one of the filter's values. `xctl sockets` has no events: loader/src/commands/filters.rs tests each socket
 * of its list.
 */
#ifndef XCTL_FILTER_BPF_H
#define XCTL_FILTER_BPF_H

/* Linux 5.2 takes no loops, so the compiler unrolls them. The verifier removes what is behind the end of a list. */
static __always_inline bool is_listed(const volatile __u32 *list, __u32 value)
{
#pragma unroll
	for (int i = 0; i < FILTER_VALUES && list[i]; i++)
		if (list[i] == value)
			return true;
	return false;
}

static __always_inline bool has_listed_name(const struct owner *owner)
{
#pragma unroll
	for (int i = 0; i < FILTER_VALUES && settings.comms[i][0]; i++)
		if (same_name(settings.comms[i], owner->comm))
			return true;
	return false;
}

static __always_inline bool in_listed_network(const __u8 address[16], __u64 family)
{
	const __u64 *bits = (const void *)address;

#pragma unroll
	for (int i = 0; i < FILTER_VALUES && settings.networks[i].family; i++) {
		const volatile __u64 *first = (const volatile void *)settings.networks[i].first;
		const volatile __u64 *mask = (const volatile void *)settings.networks[i].mask;

		if (settings.networks[i].family == family && (bits[0] & mask[0]) == first[0] && (bits[1] & mask[1]) == first[1])
			return true;
	}
	return false;
}

/*
 * Without filters the verifier must not look at this function and has_wanted_owner(): each way through them would make it look
 * at the rest of the program once more, and a start would take a third longer.
 */
static __noinline bool is_wanted_flow(const struct flow *flow)
{
	__u64 family = flow_is_ipv4(flow) ? 4 : 6;

	if (settings.netns[0] && !is_listed(settings.netns, flow->netns))
		return false;
	if (settings.ports[0] && !is_listed(settings.ports, flow->sport) && !is_listed(settings.ports, flow->dport))
		return false;
	if (settings.networks[0].family && !in_listed_network(flow->saddr, family) && !in_listed_network(flow->daddr, family))
		return false;
	return !settings.family || family == settings.family;
}

static __always_inline bool wanted_flow(const struct flow *flow)
{
	bool any = !settings.netns[0] && !settings.ports[0] && !settings.networks[0].family && !settings.family;

	return any || is_wanted_flow(flow);
}

/* Whether a filter asks for the owner. */
static __always_inline bool asks_for_owner(void)
{
	return settings.tgids[0] || settings.cgroups[0] || settings.comms[0][0];
}

static __noinline bool has_wanted_owner(const struct owner *owner)
{
	if (settings.tgids[0] && !is_listed(settings.tgids, owner->tgid))
		return false;
	if (settings.cgroups[0] && !owner->in_cgroup)
		return false;
	return !settings.comms[0][0] || has_listed_name(owner);
}

static __always_inline bool wanted_owner(const struct owner *owner)
{
	return !asks_for_owner() || has_wanted_owner(owner);
}

static __always_inline bool has_owner(const struct owner *owner)
{
	return owner->how != HOW_UNKNOWN && owner->how != HOW_SHARED;
}

/* As wanted(), for an event that only counts in the totals: a missing owner is no loss here. */
static __always_inline bool wanted_in_totals(const struct flow *flow, const struct owner *owner)
{
	return wanted_flow(flow) && (has_owner(owner) ? wanted_owner(owner) : !asks_for_owner());
}

/* With --pid, --comm or --cgroup, an event whose owner is unknown or shared is not emitted, but counted. */
static __always_inline bool wanted(const struct flow *flow, const struct owner *owner)
{
	if (!wanted_flow(flow))
		return false;
	if (has_owner(owner))
		return wanted_owner(owner);
	if (asks_for_owner()) {
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
