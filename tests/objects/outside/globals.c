/* Variables in every section that libbpf makes a map of, some of them for this file alone; and a map of a type to come. */
#include "../core.h"

struct {
	int (*type)[99];
	int (*key_size)[4];
	int (*value_size)[4];
	int (*max_entries)[1];
} to_come SEC(".maps");

int shared = 1;
static volatile int own;
const volatile long constant = 7;
static const volatile char hidden SEC(".rodata.own") = 3;

extern int LINUX_KERNEL_VERSION SEC(".kconfig");
extern _Bool CONFIG_PREEMPT SEC(".kconfig") __attribute__((weak));
extern char CONFIG_DEFAULT_HOSTNAME[5] SEC(".kconfig") __attribute__((weak));
extern unsigned long CONFIG_HZ SEC(".kconfig") __attribute__((weak));

SEC("socket") long program(void *context)
{
	own++;
	return shared + own + constant + hidden + LINUX_KERNEL_VERSION + CONFIG_PREEMPT + CONFIG_DEFAULT_HOSTNAME[0] +
	       CONFIG_HZ;
}
