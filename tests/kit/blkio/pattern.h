/*
 * pattern.h: what a sector holds, and which writes a run makes.
 *
 * Every 512-byte sector that blkio writes describes itself:
 *   word 0     MAGIC
 *   word 1     the sector's own address on the device
 *   word 2     the version, 1 … 2^32 - 1: the number of the write that put it there
 *   word 3…63  filler that depends on both
 * so that a stale, misplaced, torn or foreign sector is told apart from a right
 * one without any other record. A sector of zeros has version 0.
 *
 * A run is a plan: write number i is a pure function of (seed, i). The log of a
 * run therefore only needs the plan and how far it got, and whoever verifies can
 * tell for each version which sectors it may stand in. All integers are native
 * (little-endian on every machine SPDK runs on with Linux bcache images).
 */
#ifndef BLKIO_PATTERN_H
#define BLKIO_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

#define SECTOR 512
#define SECTOR_WORDS (SECTOR / 8)

/* What decode() found in a sector that is no version of it. */
enum {
	FOUND_FOREIGN = -1,   /* neither zeros nor this tool's layout */
	FOUND_MISPLACED = -2, /* right layout, another sector's address */
	FOUND_TORN = -3,      /* right header, damaged filler */
};

enum plan_kind { PLAN_WRITE, PLAN_ZERO };

struct plan {
	uint64_t seed;
	uint32_t first; /* the version of write number 0 */
	uint32_t count; /* writes in the plan */
	uint64_t at;    /* first sector of the region written to */
	uint64_t span;  /* its length in sectors */
	uint32_t align; /* starts and lengths are multiples of this, in sectors */
	uint32_t min;   /* shortest write, sectors */
	uint32_t max;   /* longest write, sectors */
	uint32_t hot;   /* percent of the writes that go to the region's first eighth */
	uint32_t zero;  /* percent of the writes that write zeroes */
};

struct plan_op {
	enum plan_kind kind;
	uint64_t sector;
	uint32_t count; /* sectors */
	uint32_t version;
};

/* A 64-bit finaliser: every bit of x changes about half of the result's. */
static inline uint64_t mix64(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* Fills count sectors, the first of which has the address sector, with version. */
void pattern_fill(void *buf, uint64_t sector, uint32_t count, uint32_t version);

/* The version in one sector (0 for zeros), or one of the negative FOUND_ codes. */
int64_t pattern_decode(const void *buf, uint64_t sector);

/* What a decode() result means, in words. The string is static. */
const char *pattern_found(int64_t found);

/* The write that carries version plan->first + i. */
struct plan_op plan_op(const struct plan *plan, uint32_t i);

/* True when the plan is one that plan_op can carry out. */
bool plan_valid(const struct plan *plan);

#endif
