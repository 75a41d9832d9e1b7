/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * SK_CACHE tells whether SOCKET_TO_PID already names the current process as the sender on a socket.
 *
 * Every send on the host runs current_is_cached(): one lookup in an array, which the kernel inlines, and one comparison. A slot
 * holds the socket and the process in one word, so no CPU sees half of a change. Any other word in the slot means "unknown":
 * the caller then asks SOCKET_TO_PID, which decides. So a missing word costs only work. One condition must hold: while a word
 * is in its slot, SOCKET_TO_PID names that process as the sender on that socket. In each of these cases it holds:
 *
 * - Two sockets have the same slot: each word names its socket. The later word replaces the other one. The next send on the
 *   other socket writes its word again.
 * - Another process takes the socket: the slot does not have the word of that process. So the process asks SOCKET_TO_PID, and
 *   then writes its word. Two processes may do so on two CPUs at once, since not every hook holds the socket's lock. vouch()
 *   writes the word between two operations on the entry's bucket in SOCKET_TO_PID, which has a lock. Suppose that Q's entry
 *   replaces P's. If Q updates the map after P's second operation, Q's word also replaces P's word. If Q updates the map before
 *   that operation, P then reads Q's entry, and drops the word.
 * - The socket ends: forget() removes the entry and then drops the word. A sender that has not locked the socket may write its
 *   word later. Then vouch() takes the bucket's lock after forget() has taken it. So the sender sees that the socket is closed
 *   (remember_until_closed()), and forgets it again.
 * - Another socket gets the address: a new connection drops the word before it can send, when connect() or accept() shows it
 *   and when it becomes established. This does not rely on the end of the old socket.
 * - One of several threads, or a CPU, stops between its lookup and its store. That does no harm: a send that finds its word
 *   stores only pid_tgid, which holds thread and process together.
 */
#ifndef XCTL_OWNER_CACHE_BPF_H
#define XCTL_OWNER_CACHE_BPF_H

#define TGID_BITS 22		/* PID_MAX_LIMIT is 1 << 22 */
#define HAS_OWNER 0		/* in place of a tgid: the idle task sends nothing */

struct cached {
	/*
	 * The sender that SOCKET_TO_PID names: see cached_word(). With HAS_OWNER it names some process, which is all that a
	 * reader needs to know.
	 *
	 * The PID alone identifies the process here, since more would cost time at every send. A later process may get the PID
	 * of one that has exited, and send on the same socket, which a third process kept open. Then the owner stays the first
	 * process, as one that has exited.
	 */
	__u64 sender;
	__u64 pid_tgid;		/* the last thread that sent; it counts only if it is of the sender's process */
};

/* The loader gives it eight slots for each entry of SOCKET_TO_PID, so that few active sockets share one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct cached);
} SK_CACHE SEC(".maps");

/* Sockets that SOCKET_TO_PID had no room for, and that have been counted. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, __u8);
} NO_ROOM SEC(".maps");

/*
 * The socket's address as a number. In fentry programs and iterators the verifier knows that it is a pointer, and refuses to
 * shift it (adjust_ptr_min_max_vals()). After a conversion of the byte order it is a number to the verifier (check_alu_op()).
 * A conversion to this machine's own order does nothing.
 */
static __always_inline __u64 number_of(const struct sock *sk)
{
	__u64 address = (__u64)sk;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	asm("%0 = le64 %0"
	    : "+r"(address));
#else
	asm("%0 = be64 %0"
	    : "+r"(address));
#endif
	return address;
}

/*
 * The socket's line of 64 bytes and a tgid. A struct sock is larger than that, so no two sockets begin in one line. Bits 48 to
 * 63 of the address are lost, and would matter between sockets 256 TB apart.
 */
static __always_inline __u64 cached_word(const struct sock *sk, __u32 tgid)
{
	return number_of(sk) >> 6 << TGID_BITS | tgid;
}

/*
 * The array's size is a power of two. Sockets lie side by side in slabs, more than 2 KiB apart. So those of one slab have
 * slots side by side, which share lines and pages of memory: in a busy host a line that is not in the CPU's cache costs more
 * than everything else here. The higher bits spread slabs.
 */
static __always_inline struct cached *slot_of(const struct sock *sk)
{
	__u64 address = number_of(sk);
	__u32 slot = (address >> 11 ^ address >> 26) & settings.cache_mask;

	return bpf_map_lookup_elem(&SK_CACHE, &slot);
}

/* Whether the current process is the known sender on this socket. The thread may be another one, which is recorded. */
static __always_inline bool current_is_cached(const struct sock *sk)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct cached *slot = slot_of(sk);

	if (!slot || slot->sender != cached_word(sk, pid_tgid >> 32))
		return false;
	if (slot->pid_tgid != pid_tgid)
		slot->pid_tgid = pid_tgid;
	return true;
}

static __always_inline bool is_slot_of(const struct cached *slot, const struct sock *sk)
{
	return slot && slot->sender >> TGID_BITS == cached_word(sk, 0) >> TGID_BITS;
}

/* Whether SOCKET_TO_PID has an owner for this socket, whichever it is. */
static __always_inline bool owner_is_cached(const struct sock *sk)
{
	return is_slot_of(slot_of(sk), sk);
}

/* The thread of this process that sent last on the socket; `tid` if none is known. */
static __always_inline __u32 last_thread(const struct sock *sk, __u32 tgid, __u32 tid)
{
	struct cached *slot = slot_of(sk);
	__u64 pid_tgid;

	if (!slot || slot->sender != cached_word(sk, tgid))
		return tid;
	pid_tgid = slot->pid_tgid;
	return pid_tgid >> 32 == tgid ? (__u32)pid_tgid : tid;
}

/* For readers. This may replace a sender's word. Then that sender's next send looks in SOCKET_TO_PID. */
static __always_inline void cache_some_owner(const struct sock *sk)
{
	struct cached *slot = slot_of(sk);

	if (slot)
		slot->sender = cached_word(sk, HAS_OWNER);
}

static __always_inline void drop_cached(const struct sock *sk)
{
	struct cached *slot = slot_of(sk);

	if (is_slot_of(slot, sk))
		slot->sender = 0;
}

/*
 * Cache that SOCKET_TO_PID names the current process, which `owner` describes, as the sender of this socket. The update serves
 * only to take the lock of the entry's bucket (see above): normally it fails, since the socket has an entry. If it succeeds,
 * the entry was removed meanwhile. Then the caller sees that the socket is closed, and forgets the new entry.
 */
static __always_inline void vouch(const struct sock *sk, const struct flow *flow, const struct flow *by_address,
				  const struct owner *owner)
{
	struct cached *slot = slot_of(sk);
	struct owner *entry;

	if (!slot)
		return;
	if (!own_entry(sk, flow))	/* a twin */
		flow = by_address;
	slot->pid_tgid = bpf_get_current_pid_tgid();
	slot->sender = cached_word(sk, owner->tgid);
	if (bpf_map_update_elem(&SOCKET_TO_PID, flow, owner, BPF_NOEXIST) == -EEXIST) {
		entry = own_entry(sk, flow);
		if (entry && entry->tgid == owner->tgid)
			return;
	}
	drop_cached(sk);
}

/* Count a socket that SOCKET_TO_PID did not take: once for each socket, since every further send tries again. */
static __always_inline void no_room(const struct sock *sk, int err)
{
	__u64 address = (__u64)sk;
	__u8 counted = 1;

	if (bpf_map_lookup_elem(&NO_ROOM, &address))
		return;
	count_lost(err == -E2BIG ? LOST_MAP_FULL : LOST_REFUSED);
	bpf_map_update_elem(&NO_ROOM, &address, &counted, BPF_ANY);
}

/* The next socket with this address counts again. */
static __always_inline void drop_no_room(const struct sock *sk)
{
	__u64 address = (__u64)sk;

	refused(bpf_map_delete_elem(&NO_ROOM, &address));
}

#endif
