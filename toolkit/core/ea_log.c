#include "ea_log.h"

#include "ea_fixed.h"

#define LN2_Q24 11629080

static int32_t natural_log(const int32_t *table, int64_t x, int exponent)
{
    const int top = ea_bit_length((uint64_t)x) - 1;
    const uint64_t mantissa = (uint64_t)x << (63 - top); /* 1.f in Q1.63 */
    const uint32_t segment = (uint32_t)(mantissa >> 56) & (EA_LOG_SEGMENTS - 1);
    const int32_t within_q16 = (int32_t)((mantissa >> 40) & 0xffff);
    const int32_t rise = table[segment + 1] - table[segment];
    const int32_t fraction = ea_narrow32(table[segment] + ea_round_shift((int64_t)rise * within_q16, 16));

    return ea_narrow32((int64_t)(top + exponent) * LN2_Q24 + fraction);
}

void ea_log_natural(const ea_tables *tables, const int64_t *mel, int exponent, int32_t *log_q24)
{
    int32_t i;
    for (i = 0; i < tables->n_mels; i++) {
        const int32_t value = mel[i] > 0 ? natural_log(tables->log_q24, mel[i], exponent) : tables->log_floor_q24;
        log_q24[i] = value > tables->log_floor_q24 ? value : tables->log_floor_q24;
    }
}
