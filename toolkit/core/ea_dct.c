#include "ea_dct.h"

#include "ea_fixed.h"
#include "ea_loops.h"

EA_CLONES
void ea_dct_apply(const ea_tables *tables, const int32_t *log_q24, int16_t *out)
{
    const int16_t *row = tables->dct_q15;
    int32_t i, k;
    for (k = 0; k < tables->n_mfcc; k++, row += tables->n_mels) {
        int64_t sum = 0;
        for (i = 0; i < tables->n_mels; i++)
            sum = ea_add64(sum, (int64_t)log_q24[i] * row[i]);
        out[k] = ea_saturate16(ea_round_shift(sum, 24 + 15 - tables->output_fraction_bits));
    }
}
