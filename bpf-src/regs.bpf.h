/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * The registers that a kprobe sees, in the names that libbpf's PT_REGS_* macros use.
 *
 * CO-RE does not relocate a program's context, whose layout each architecture fixes. So these structs are not in vmlinux.h,
 * which serves all architectures.
 */
#ifndef XCTL_REGS_BPF_H
#define XCTL_REGS_BPF_H

#if defined(__TARGET_ARCH_x86)
/* arch/x86/include/asm/ptrace.h, 64 bit */
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di, orig_ax;
	unsigned long ip, cs, flags, sp, ss;
};
#elif defined(__TARGET_ARCH_arm64)
/* arch/arm64/include/uapi/asm/ptrace.h; the kernel's struct pt_regs begins with it */
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp, pc, pstate;
};
struct pt_regs {
	struct user_pt_regs user_regs;
};
#else
#error "xctl knows the registers of x86 and arm64: build with -D__TARGET_ARCH_x86 or -D__TARGET_ARCH_arm64"
#endif

#endif
