/* pattern.c: see pattern.h. Pure functions, no I/O. */
#include "pattern.h"

#include <string.h>

#define MAGIC 0x314f494b4c426b63ull /* "ckBLKIO1" */
#define STEP 0x9e3779b97f4a7c15ull

void pattern_fill(void *buf, uint64_t sector, uint32_t count, uint32_t version)
{
	uint64_t *w = buf;

	if (version == 0) {
		memset(buf, 0, (size_t)count * SECTOR);
		return;
	}
	for (uint32_t n = 0; n < count; n++, sector++, w += SECTOR_WORDS) {
		uint64_t x = mix64(sector ^ mix64(version));

		w[0] = MAGIC;
		w[1] = sector;
		w[2] = version;
		for (int k = 3; k < SECTOR_WORDS; k++)
			w[k] = x += STEP;
	}
}

static bool all_zero(const uint64_t *w)
{
	for (int k = 0; k < SECTOR_WORDS; k++)
		if (w[k])
			return false;
	return true;
}

int64_t pattern_decode(const void *buf, uint64_t sector)
{
	const uint64_t *w = buf;
	uint64_t want[SECTOR_WORDS];

	if (w[0] != MAGIC)
		return all_zero(w) ? 0 : FOUND_FOREIGN;
	if (w[1] != sector)
		return FOUND_MISPLACED;
	if (w[2] == 0 || w[2] > UINT32_MAX)
		return FOUND_TORN;
	pattern_fill(want, sector, 1, (uint32_t)w[2]);
	return memcmp(want, w, SECTOR) ? FOUND_TORN : (int64_t)w[2];
}

const char *pattern_found(int64_t found)
{
	switch (found) {
	case FOUND_FOREIGN:
		return "foreign data";
	case FOUND_MISPLACED:
		return "another sector's data";
	case FOUND_TORN:
		return "a torn sector";
	case 0:
		return "zeros";
	default:
		return "a version";
	}
}

bool plan_valid(const struct plan *p)
{
	return p->count && p->first && p->first <= UINT32_MAX - p->count && p->align && p->min &&
	       p->min % p->align == 0 && p->max % p->align == 0 && p->at % p->align == 0 &&
	       p->min <= p->max && p->max <= p->span && p->hot <= 100 && p->zero <= 100;
}

/*
 * Lengths are spread evenly over their powers of two, so that small and large
 * writes both occur often; a longest possible one comes up in one of some dozen.
 */
static uint32_t plan_length(const struct plan *p, uint64_t r)
{
	uint32_t top = p->max / p->align, low = p->min / p->align, limit = low, steps = 0;

	for (uint32_t n = low; n < top; n *= 2)
		steps++;
	for (uint32_t k = (uint32_t)(r % (steps + 1)); k; k--)
		limit *= 2;
	if (limit > top)
		limit = top;
	r = mix64(r);
	return ((r & 3) == 0 ? limit : low + (uint32_t)((r >> 2) % (limit - low + 1))) * p->align;
}

struct plan_op plan_op(const struct plan *p, uint32_t i)
{
	uint64_t r = mix64(p->seed ^ mix64(i)), span = p->span;
	struct plan_op op = { .version = p->first + i };

	op.count = plan_length(p, r);
	r = mix64(r);
	op.kind = r % 100 < p->zero ? PLAN_ZERO : PLAN_WRITE;
	if ((r >> 32) % 100 < p->hot && p->span / 8 >= op.count)
		span = p->span / 8;
	r = mix64(r);
	op.sector = p->at + r % ((span - op.count) / p->align + 1) * p->align;
	return op;
}
