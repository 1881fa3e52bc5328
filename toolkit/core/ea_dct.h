/* DCT-II with sqrt(2/n_mels): log-mel to MFCC. */
#ifndef EA_DCT_H
#define EA_DCT_H

#include "ea_tables.h"

/* out[k] = sum over i of dct_q15[k][i] * log_q24[i], rounded to output_fraction_bits and saturated; out [n_mfcc]. */
void ea_dct_apply(const ea_tables *tables, const int32_t *log_q24, int16_t *out);

#endif
