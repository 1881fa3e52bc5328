#include "ea_mel.h"

#include "ea_fixed.h"

uint64_t ea_mel_magnitude(const ea_tables *tables, int64_t *spectrum)
{
    uint64_t bits = 0;
    int32_t k;
    for (k = 0; k <= tables->n_fft / 2; k++) {
        spectrum[k] = ea_sqrt(spectrum[k]);
        bits |= (uint64_t)spectrum[k];
    }
    return bits;
}

int ea_mel_filter(const ea_tables *tables, const int64_t *spectrum, uint64_t bits, int64_t *mel)
{
    const uint16_t *start = tables->mel_segment_start;
    const int16_t *rise = tables->mel_rise_q15;
    const int excess = ea_bit_length(bits) - tables->spectrum_bits;
    const int shift = excess > 0 ? excess : 0;
    int64_t sum, rising;
    int32_t i, k;

    /* A bin of segment i rises in filter i and falls, with the rest of its weight, in filter i - 1. */
    for (i = 0; i <= tables->n_mels; i++) {
        sum = rising = 0;
        for (k = start[i]; k < start[i + 1]; k++) {
            const int64_t value = spectrum[k] >> shift;
            sum = ea_add64(sum, value);
            rising = ea_add64(rising, ea_mul64(value, rise[k]));
        }
        if (i > 0)
            mel[i - 1] = ea_add64(mel[i - 1], ea_add64(ea_mul64(sum, 32768), -rising));
        if (i < tables->n_mels)
            mel[i] = rising;
    }
    return shift - 15;
}
