/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What C and Rust share of exitless-guest.ko. */
#ifndef EXG_H
#define EXG_H

#include <linux/types.h>

/* From defs/pv-abi. */
#define EXG_FEATURE_LAZY_DEADLINE (1u << 0)
#define EXG_FEATURE_HOST_TICKS (1u << 3)
#define EXG_OTHER_VERSION (1u << 31)
#define EXG_MSR_LAZY_DEADLINE 0x45584c00
#define EXG_ENABLED 1
#define EXG_HOST_TICKS 2

/* `Cpu` of guest/core: the first 64 bytes are the page, and the host writes `armed` and `offset`. */
struct exg_cpu {
	u64 armed;
	u64 pending;
	u64 offset;
	u64 reserved[5];
	u64 written;
	u64 spared;
	u64 asked;
	u64 rest[5];
} __aligned(64);

u32 ex_rs_find(void);
bool ex_rs_set(const struct exg_cpu *cpu, u64 deadline);
void ex_rs_write(const struct exg_cpu *cpu, u64 deadline);
bool ex_rs_wrote(const struct exg_cpu *cpu, u64 deadline, u64 now, u64 second);
void ex_rs_asks(const struct exg_cpu *cpu, u64 now, u64 second);
/* What Rust calls. */
void exg_wrmsr_deadline(u64 value);

#endif
