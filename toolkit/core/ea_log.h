/* Natural logarithm of 64-bit integers by table. */
#ifndef EA_LOG_H
#define EA_LOG_H

#include "ea_tables.h"

/* log_q24[i] = max(ln(mel[i] * 2^exponent), floor) in nat, Q7.24, for mel [n_mels] >= 0.
 * 128 segments, linear in between: the error is below 1e-5 nat. */
void ea_log_natural(const ea_tables *tables, const int64_t *mel, int exponent, int32_t *log_q24);

#endif
