/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* The kernel's error numbers that the programs compare (include/uapi/asm-generic/errno-base.h, errno.h). BTF has no macros. */
#ifndef XCTL_ERRNO_BPF_H
#define XCTL_ERRNO_BPF_H

#define ENOENT 2
#define E2BIG 7
#define EAGAIN 11
#define ENOMEM 12
#define EBUSY 16
#define EEXIST 17
#define EINVAL 22
#define ENOSPC 28
#define ENOBUFS 105
#define EHOSTUNREACH 113

#endif
