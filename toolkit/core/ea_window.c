#include "ea_window.h"

#include <string.h>

#include "ea_fixed.h"
#include "ea_loops.h"

/* y[n] = x[n] - a x[n-1] in Q1.30: |y| <= 2^30 + 32767^2 + ... < 2^31, exact. */
static int32_t emphasized(const int16_t *samples, int32_t i, int32_t pre_emphasis_q15)
{
    return ea_sub32(samples[i] * 32768, samples[i - 1] * pre_emphasis_q15);
}

static int window_emphasized(const ea_tables *t, const int16_t *samples, int32_t *even, int32_t *odd)
{
    uint32_t bits = 0;
    int32_t i, y;
    int shift;

    for (i = 0; i < t->win_length; i++) {
        y = emphasized(samples, i, t->pre_emphasis_q15);
        bits |= (uint32_t)(y ^ (y >> 31));
    }
    shift = EA_FRAME_BITS - 15 - ea_bit_length(bits); /* -18 .. 13 */
    for (i = 0; i < t->win_length; i++) {
        y = emphasized(samples, i, t->pre_emphasis_q15);
        y = ea_narrow32(ea_scale(ea_mul64(y, t->window_q15[i]), shift));
        (i & 1 ? odd : even)[i >> 1] = y;
    }
    return -(15 + 15 + 15 + shift);
}

static int window_plain(const ea_tables *t, const int16_t *samples, int32_t *even, int32_t *odd)
{
    const int16_t *window = t->window_q15;
    const int32_t pairs = t->win_length / 2;
    int16_t bits = 0;
    int32_t i;
    int shift;

    for (i = 0; i < t->win_length; i++)
        bits |= (int16_t)(samples[i] ^ (samples[i] >> 15));
    shift = EA_FRAME_BITS - 15 - ea_bit_length((uint64_t)bits); /* -2 .. 13; the products fit int32: |x w| < 2^30 */
    if (shift >= 0) {
        for (i = 0; i < pairs; i++) {
            even[i] = samples[2 * i] * window[2 * i] * (1 << shift);
            odd[i] = samples[2 * i + 1] * window[2 * i + 1] * (1 << shift);
        }
    } else {
        for (i = 0; i < pairs; i++) {
            even[i] = (samples[2 * i] * window[2 * i] + (1 << (-shift - 1))) >> -shift;
            odd[i] = (samples[2 * i + 1] * window[2 * i + 1] + (1 << (-shift - 1))) >> -shift;
        }
    }
    if (t->win_length & 1)
        even[pairs] = ea_narrow32(ea_scale(samples[2 * pairs] * window[2 * pairs], shift));
    return -(15 + 15 + shift);
}

EA_CLONES
int ea_window_apply(const ea_tables *tables, const int16_t *samples, int32_t *even, int32_t *odd)
{
    const int32_t n_even = (tables->win_length + 1) / 2, n_odd = tables->win_length / 2, n = tables->n_fft / 2;

    memset(even + n_even, 0, sizeof *even * (size_t)(n - n_even));
    memset(odd + n_odd, 0, sizeof *odd * (size_t)(n - n_odd));
    if (tables->pre_emphasis_q15 != 0)
        return window_emphasized(tables, samples, even, odd);
    return window_plain(tables, samples, even, odd);
}
