/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * The ledger: the counters of each connection and each listener, and the process that they belong to. An account has the
 * counters since the socket was made, so user space takes differences: from the start of xctl, and from one owner to the next.
 */
#ifndef XCTL_LEDGER_BPF_H
#define XCTL_LEDGER_BPF_H

#define LEDGER_BYTES (1024 * 1024)

/*
 * The accounts of connections and listeners that ended or got another owner. It has room for more than 2,000 accounts. The map
 * needs Linux 5.8, and is not created on older kernels, nor without settings.ledger. There a CO-RE relocation cuts off the code
 * that uses it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, LEDGER_BYTES);
} LEDGER SEC(".maps");

/* Space for an account, or NULL. */
static __always_inline struct account *begin_account(void)
{
	struct account *account = bpf_ringbuf_reserve(&LEDGER, sizeof(*account), 0);

	if (!account)
		count_lost(LOST_LEDGER);
	return account;
}

/*
 * User space reads the ring with every round. The reader is woken only when a quarter of the ring is full: short connections
 * are common, and a wakeup costs more than an account. With settings.connections each account wakes a reader that waits.
 */
static __always_inline void end_account(struct account *account)
{
	bool much = bpf_ringbuf_query(&LEDGER, BPF_RB_AVAIL_DATA) > LEDGER_BYTES / 4;

	if (settings.connections)
		bpf_ringbuf_submit(account, 0);
	else
		bpf_ringbuf_submit(account, much ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

static __always_inline bool has_ledger(void)
{
	return settings.ledger && bpf_core_type_exists(struct bpf_ringbuf);
}

/*
 * Whether the owner passes --pid, --comm and --cgroup. Unlike wanted(), this function does not count a missing owner as a loss:
 * wanted() counts it at each event.
 */
static __always_inline bool wanted_account(const struct owner *owner)
{
	if (owner->how == HOW_UNKNOWN || owner->how == HOW_SHARED)
		return !asks_for_owner();
	return wanted_owner(owner);
}

static __always_inline void fill_account(struct account *account, const struct sock *sk, enum account_why why, __u8 state)
{
	account->socket = (__u64)sk;
	account->mono_ns = bpf_ktime_get_ns();
	account->why = why;
	account->state = state;
	account->err = why == ACCOUNT_ENDED ? BPF_CORE_READ(sk, sk_err) : 0;
	account->wanted = wanted_account(&account->owner) && wanted_flow(&account->flow) &&
			  (state != TCP_LISTEN || !mptcp_parent(sk));
	account->rtnl = settings.by_netns ? rtnl_inode(&sk->__sk_common) : 0;
	account->mptcp = settings.by_netns && mptcp_parent(sk);
	__builtin_memset(account->zero, 0, sizeof(account->zero));
	__builtin_memset(&account->reading, 0, sizeof(account->reading));
	if (state == TCP_LISTEN)
		read_listener(sk, &account->reading);
	else
		read_counters(sk, &account->reading);
	read_shut_windows(sk, state, &account->reading);
	account->reading.locked = why == ACCOUNT_ENDED;
}

/*
 * Copy the owner until now from the entry to the account. False if the kernel has given the entry's memory to another socket.
 * `flow` is NULL if the account has its flow already.
 */
static __always_inline bool is_account_of(struct account *account, const struct sock *sk, const struct flow *flow,
					  const struct owner *entry)
{
	if (flow)
		account->flow = *flow;
	account->owner = *entry;
	if (account->owner.socket != (__u64)sk)
		return false;
	if (is_shared(&account->owner))
		share(&account->owner);
	account->owner.born = born_for_totals(account->owner.born);
	return true;
}

static __always_inline void write_ended(const struct sock *sk, const struct flow *flow, __u8 state)
{
	/* Not in the ring: owner_of() may move a seeded entry, and Linux 5.10 lets no map take a value from a ring. */
	struct owner owner = {};
	struct account *account;

	owner_of(sk, flow, &owner);
	account = begin_account();
	if (!account)
		return;
	account->flow = *flow;
	account->owner = owner;
	fill_account(account, sk, ACCOUNT_ENDED, state);
	end_account(account);
}

/*
 * A connection or a listener ends. The kernel zeroes no counter before it sets TCP_CLOSE (tcp_disconnect()), and empties the
 * accept queue after that (inet_csk_listen_stop()). This runs before forget(), so the owner is still known. --verify compares
 * the sums of all sockets, whatever the filters.
 */
static __noinline void connection_ended(const struct sock *sk, __u8 state)
{
	struct under_way *under_way = NULL;
	struct flow flow;

	if (!has_ledger() || state == TCP_CLOSE)
		return;
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) != IPPROTO_TCP || !flow_of_closing(sk, &flow))
		return;
	if (!settings.by_netns && !wanted_flow(&flow))
		return;
	if (settings.connections)
		under_way = begin_record();
	write_ended(sk, &flow, state);
	if (under_way)
		end_record(under_way);
}

/*
 * Write an account of the counters until now, for the owner until now: another process takes the socket. If the kernel has
 * given the entry's memory to another socket, nothing is written. For a listener `flow` is NULL, since its key is its address.
 * Its four-tuple then goes straight into the account: the stack has no room for another flow here.
 */
static __noinline void connection_taken(const struct sock *sk, const struct flow *flow, const struct owner *entry)
{
	struct account *account = begin_account();
	bool known = true;

	if (!account)
		return;
	if (!flow)
		known = flow_of(&sk->__sk_common, &account->flow) && wanted_flow(&account->flow);
	if (!known || !is_account_of(account, sk, flow, entry)) {
		bpf_ringbuf_discard(account, BPF_RB_NO_WAKEUP);
		return;
	}
	fill_account(account, sk, ACCOUNT_TAKEN, BPF_CORE_READ(sk, __sk_common.skc_state));
	end_account(account);
}

/*
 * The process in `owner` is about to own the socket. If the socket has an entry, `owner` takes over the time of the first entry
 * (`since`). If the entry names another process, an account is written: the counters until now belong to that process.
 */
static __always_inline void settle(const struct sock *sk, const struct flow *flow, const struct flow *by_address,
				   struct owner *owner)
{
	const struct owner *entry = own_entry(sk, flow) ?: own_entry(sk, by_address);

	if (!entry)
		return;
	owner->since = entry->since;
	if (!has_ledger())
		return;
	if (!is_shared(entry) && entry->tgid == owner->tgid &&
	    born_for_totals(entry->born) == born_for_totals(owner->born))
		return;
	if (flow->known_by == BY_FLOW && wanted_flow(flow))
		connection_taken(sk, flow, entry);
	else if (flow->known_by != BY_FLOW && BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN)
		connection_taken(sk, NULL, entry);
}

/*
 * Write the account of an open connection or listener. `holder` is the socket that the entry is about: `sk` itself, or the parent
 * of this subflow of MPTCP. Nobody has locked the socket, and it may end meanwhile. As long as `holder` has its entry, its memory is
 * its own: forget() comes before the end of the socket. A subflow may be freed meanwhile: if its memory was used again, it names
 * another parent; if not, the account of its end came before this one.
 */
static __noinline void write_open(const struct sock *sk, const struct sock *holder, const struct flow *key,
				  const struct owner *entry)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	struct account *account;
	struct flow flow;

	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) != IPPROTO_TCP || state == TCP_CLOSE)
		return;
	/* The key of a twin, or of a listener, is its address. A socket without a port is about to end (is_closed()). */
	if (!flow_of(&sk->__sk_common, &flow) || !flow.sport || !wanted_flow(&flow))
		return;
	account = begin_account();
	if (!account)
		return;
	if (!is_account_of(account, holder, &flow, entry)) {
		bpf_ringbuf_discard(account, BPF_RB_NO_WAKEUP);
		return;
	}
	fill_account(account, sk, ACCOUNT_OPEN, state);
	if (own_entry(holder, key) != entry || (sk != holder && mptcp_parent(sk) != holder)) {
		bpf_ringbuf_discard(account, BPF_RB_NO_WAKEUP);
		return;
	}
	bpf_ringbuf_submit(account, BPF_RB_NO_WAKEUP);
}

/*
 * Write the account of the open connection or listener whose key the first words are. A connection of MPTCP has no account of its
 * own. If the last word is COUNT_SUBFLOWS, return the number of its subflows. Else write the account of the subflow with that
 * number; 1: the number is to be asked for again, and all below it.
 */
static __always_inline int account_of_open(const __u64 *words)
{
	const struct sock *sk, *holder;
	const struct owner *entry;
	bool lost = false;
	struct flow key;
	unsigned int i;

	if (!has_ledger())
		return 0;
#pragma unroll
	for (i = 0; i < sizeof(key) / sizeof(*words); i++)
		((__u64 *)&key)[i] = words[i];
	entry = bpf_map_lookup_elem(&SOCKET_TO_PID, &key);
	if (!entry || entry->known_by != BY_ADDRESS)
		return 0;
	sk = holder = (const void *)entry->socket;
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) == IPPROTO_MPTCP) {
		if (words[i] == COUNT_SUBFLOWS)
			return count_subflows(holder);
		sk = subflow_of(holder, words[i], &lost);
	}
	if (sk)
		write_open(sk, holder, &key, entry);
	return lost;
}

/*
 * Describe a connection, a request or a listener, for --verify: its counters now, and no owner. False for every other entry of
 * the kernel's tables. Once a request has become a connection, its SYN-ACKs that were sent again are in the connection's
 * total_retrans.
 */
static __always_inline bool list_account(const struct sock_common *skc, struct account *account)
{
	const struct request_sock *req = (const void *)skc;
	__u8 state = BPF_CORE_READ(skc, skc_state);

	__builtin_memset(account, 0, sizeof(*account));
	account->mono_ns = bpf_ktime_get_ns();
	account->socket = (__u64)skc;
	account->state = state;
	account->why = ACCOUNT_OPEN;
	if (state == TCP_CLOSE || state == TCP_TIME_WAIT || !flow_of(skc, &account->flow))
		return false;
	account->rtnl = rtnl_inode(skc);
	if (state == TCP_LISTEN)
		read_listener((const void *)skc, &account->reading);
	else if (state == TCP_NEW_SYN_RECV)
		account->reading.total_retrans = BPF_CORE_READ_BITFIELD_PROBED(req, num_retrans);
	else
		read_counters((const void *)skc, &account->reading);
	return true;
}

#endif
