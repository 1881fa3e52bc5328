#include "ea_fft.h"

#include "ea_fixed.h"

typedef struct {
    int32_t *re, *im;
} split_complex;

static int32_t quarter(int32_t x)
{
    return ea_add32(x, 2) >> 2;
}

/* One radix-4 butterfly: reads points i, i+step, i+2 step, i+3 step of x, writes points o, o+s, o+2s, o+3s of y. */
static inline void butterfly(split_complex x, int32_t i, int32_t step, split_complex y, int32_t o, int32_t s,
                             const int32_t *twiddle, int32_t m, int32_t p)
{
    const int32_t a_re = x.re[i], b_re = x.re[i + step], c_re = x.re[i + 2 * step], d_re = x.re[i + 3 * step];
    const int32_t a_im = x.im[i], b_im = x.im[i + step], c_im = x.im[i + 2 * step], d_im = x.im[i + 3 * step];
    const int32_t ac_re = ea_add32(a_re, c_re), ac_im = ea_add32(a_im, c_im);
    const int32_t bd_re = ea_add32(b_re, d_re), bd_im = ea_add32(b_im, d_im);
    const int32_t amc_re = ea_sub32(a_re, c_re), amc_im = ea_sub32(a_im, c_im);
    const int32_t bmd_re = ea_sub32(b_re, d_re), bmd_im = ea_sub32(b_im, d_im);
    const int32_t u1_re = ea_add32(amc_re, bmd_im), u1_im = ea_sub32(amc_im, bmd_re); /* (a - c) - j(b - d) */
    const int32_t u2_re = ea_sub32(ac_re, bd_re), u2_im = ea_sub32(ac_im, bd_im);
    const int32_t u3_re = ea_sub32(amc_re, bmd_im), u3_im = ea_add32(amc_im, bmd_re); /* (a - c) + j(b - d) */

    y.re[o] = quarter(ea_add32(ac_re, bd_re));
    y.im[o] = quarter(ea_add32(ac_im, bd_im));
    if (m > 1) {
        const int32_t *w_re = twiddle + p, *w_im = twiddle + 3 * m + p;
        y.re[o + s] = ea_rotate_quarter(u1_re, w_re[0], u1_im, w_im[0]);
        y.im[o + s] = ea_rotate_quarter(u1_im, w_re[0], u1_re, -w_im[0]);
        y.re[o + 2 * s] = ea_rotate_quarter(u2_re, w_re[m], u2_im, w_im[m]);
        y.im[o + 2 * s] = ea_rotate_quarter(u2_im, w_re[m], u2_re, -w_im[m]);
        y.re[o + 3 * s] = ea_rotate_quarter(u3_re, w_re[2 * m], u3_im, w_im[2 * m]);
        y.im[o + 3 * s] = ea_rotate_quarter(u3_im, w_re[2 * m], u3_re, -w_im[2 * m]);
    } else { /* the last stage: all twiddles are 1 */
        y.re[o + s] = quarter(u1_re);
        y.im[o + s] = quarter(u1_im);
        y.re[o + 2 * s] = quarter(u2_re);
        y.im[o + 2 * s] = quarter(u2_im);
        y.re[o + 3 * s] = quarter(u3_re);
        y.im[o + 3 * s] = quarter(u3_im);
    }
}

static void radix4_stage(split_complex x, split_complex y, int32_t m, int32_t s, const int32_t *twiddle)
{
    int32_t p, q;
    for (p = 0; p < m; p++) {
        for (q = 0; q < s; q++)
            butterfly(x, q + s * p, s * m, y, q + s * 4 * p, s, twiddle, m, p);
    }
}

static void radix2_stage(split_complex x, split_complex y, int32_t s)
{
    int32_t q;
    for (q = 0; q < s; q++) {
        y.re[q] = ea_add32(ea_add32(x.re[q], x.re[q + s]), 1) >> 1;
        y.im[q] = ea_add32(ea_add32(x.im[q], x.im[q + s]), 1) >> 1;
        y.re[q + s] = ea_add32(ea_sub32(x.re[q], x.re[q + s]), 1) >> 1;
        y.im[q + s] = ea_add32(ea_sub32(x.im[q], x.im[q + s]), 1) >> 1;
    }
}

int ea_fft_complex(const ea_tables *tables, int32_t *re, int32_t *im, int32_t *work)
{
    const int32_t n = tables->n_fft / 2;
    const int32_t *twiddle = tables->fft_twiddle_q30;
    split_complex x = {re, im}, y = {work, work + n}, swap;
    int32_t length, s = 1;
    int in_work = 0;

    for (length = n; length > 1; length /= 4, s *= 4) {
        if (length == 2) {
            radix2_stage(x, y, s);
        } else {
            radix4_stage(x, y, length / 4, s, twiddle);
            if (length > 4)
                twiddle += 6 * (length / 4);
        }
        swap = x, x = y, y = swap;
        in_work = !in_work;
    }
    return in_work;
}

static int64_t squared(int32_t re, int32_t im)
{
    return ea_add64((int64_t)re * re, (int64_t)im * im);
}

uint64_t ea_fft_split_power(const ea_tables *tables, const int32_t *re, const int32_t *im, int64_t *power)
{
    const int32_t n = tables->n_fft / 2, half = n / 2;
    const int32_t *w_re = tables->split_twiddle_q30, *w_im = w_re + half + 1;
    uint64_t bits;
    int32_t k;

    /* k = 0 and n: the sum and the difference of both parts, both real */
    power[0] = squared(ea_narrow32(2 * ((int64_t)re[0] + im[0])), 0);
    power[n] = squared(ea_narrow32(2 * ((int64_t)re[0] - im[0])), 0);
    bits = (uint64_t)(power[0] | power[n]);
    for (k = 1; k <= half; k++) {
        const int32_t e_re = ea_add32(re[k], re[n - k]), e_im = ea_sub32(im[k], im[n - k]); /* Z[k] + Z*[n-k] */
        const int32_t o_re = ea_add32(im[k], im[n - k]), o_im = ea_sub32(re[n - k], re[k]); /* -j (Z[k] - Z*[n-k]) */
        const int32_t t_re = ea_narrow32(ea_round_shift((int64_t)o_re * w_re[k] - (int64_t)o_im * w_im[k], 30));
        const int32_t t_im = ea_narrow32(ea_round_shift((int64_t)o_re * w_im[k] + (int64_t)o_im * w_re[k], 30));

        power[k] = squared(ea_add32(e_re, t_re), ea_add32(e_im, t_im));
        power[n - k] = squared(ea_sub32(e_re, t_re), ea_sub32(e_im, t_im));
        bits |= (uint64_t)(power[k] | power[n - k]);
    }
    return bits;
}
