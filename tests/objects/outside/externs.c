/*
 * What an object expects from outside, and only its loader knows: the kernel's configuration, its variables, its
 * functions. Nobody can prove a program with these from the object and the BTF alone.
 */
#include "../core.h"

#define KCONFIG __attribute__((section(".kconfig")))
#define KSYM __attribute__((section(".ksyms")))
#define WEAK __attribute__((weak))

extern int LINUX_KERNEL_VERSION KCONFIG;
extern _Bool CONFIG_PREEMPT KCONFIG WEAK;
extern const int bpf_prog_active KSYM;
extern void bpf_rcu_read_lock(void) KSYM;
extern void bpf_rcu_read_unlock(void) KSYM WEAK;

static __attribute__((noinline)) int version(int x)
{
	return LINUX_KERNEL_VERSION * x;
}

SEC("socket") long by_configuration(long *context)
{
	return version(context[0]) + version(context[1]) + CONFIG_PREEMPT;
}

SEC("socket") long by_variable(void *context)
{
	return (long)&bpf_prog_active;
}

SEC("socket") long by_function(void *context)
{
	bpf_rcu_read_lock();
	if (bpf_rcu_read_unlock)
		bpf_rcu_read_unlock();
	return 0;
}

SEC("socket") long by_itself(void *context)
{
	return 0;
}
