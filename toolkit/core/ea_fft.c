#include "ea_fft.h"

#include "ea_fixed.h"
#include "ea_loops.h"

typedef struct {
    int32_t re, im;
} point;

typedef struct {
    int32_t *re, *im;
} points;

static inline point load(points x, int32_t i)
{
    const point a = {x.re[i], x.im[i]};
    return a;
}

static inline void store(points y, int32_t i, point a)
{
    y.re[i] = a.re;
    y.im[i] = a.im;
}

static inline point add(point a, point b)
{
    const point sum = {ea_add32(a.re, b.re), ea_add32(a.im, b.im)};
    return sum;
}

static inline point subtract(point a, point b)
{
    const point difference = {ea_sub32(a.re, b.re), ea_sub32(a.im, b.im)};
    return difference;
}

static inline point conjugate(point a)
{
    const point mirrored = {a.re, ea_sub32(0, a.im)};
    return mirrored;
}

static inline point times_minus_j(point a)
{
    const point turned = {a.im, ea_sub32(0, a.re)};
    return turned;
}

static inline point half(point a)
{
    const point halved = {ea_add32(a.re, 1) >> 1, ea_add32(a.im, 1) >> 1};
    return halved;
}

static inline point quarter(point a)
{
    const point quartered = {ea_add32(a.re, 2) >> 2, ea_add32(a.im, 2) >> 2};
    return quartered;
}

/* a * w * 2^-bits, each component rounded once. */
static inline point rotate(point a, int32_t w_re, int32_t w_im, int bits)
{
    const point turned = {ea_round_shift32((int64_t)a.re * w_re - (int64_t)a.im * w_im, bits),
                          ea_round_shift32((int64_t)a.re * w_im + (int64_t)a.im * w_re, bits)};
    return turned;
}

/* s FFTs of 4m points, one after the other in x, become 4s FFTs of m points in y. */
static inline void radix4_stage(points x, points y, int32_t m, int32_t s, const int32_t *w_re)
{
    const int32_t *w_im = w_re + 3 * m;
    int32_t p, q;
    EA_INDEPENDENT
    for (q = 0; q < s; q++) {
        EA_INDEPENDENT
        for (p = 0; p < m; p++) {
            const int32_t i = p + 4 * m * q, o = p + m * q;
            const point a = load(x, i), b = load(x, i + m), c = load(x, i + 2 * m), d = load(x, i + 3 * m);
            const point ac = add(a, c), bd = add(b, d), amc = subtract(a, c);
            const point minus_j_bmd = times_minus_j(subtract(b, d));
            const point u0 = add(ac, bd), u1 = add(amc, minus_j_bmd);
            const point u2 = subtract(ac, bd), u3 = subtract(amc, minus_j_bmd);

            store(y, o, quarter(u0));
            if (m == 1) { /* the last stage: all twiddles are 1 */
                store(y, o + s, quarter(u1));
                store(y, o + 2 * s, quarter(u2));
                store(y, o + 3 * s, quarter(u3));
            } else { /* by a Q1.30 twiddle, and divided by 4 */
                store(y, o + m * s, rotate(u1, w_re[p], w_im[p], 32));
                store(y, o + 2 * m * s, rotate(u2, w_re[p + m], w_im[p + m], 32));
                store(y, o + 3 * m * s, rotate(u3, w_re[p + 2 * m], w_im[p + 2 * m], 32));
            }
        }
    }
}

/* s FFTs of 2 points: the last stage where log2 n is odd. */
static inline void radix2_stage(points x, points y, int32_t s)
{
    int32_t q;
    EA_INDEPENDENT
    for (q = 0; q < s; q++) {
        const point a = load(x, 2 * q), b = load(x, 2 * q + 1);
        store(y, q, half(add(a, b)));
        store(y, q + s, half(subtract(a, b)));
    }
}

EA_CLONES
int ea_fft_complex(const ea_tables *tables, int32_t *re, int32_t *im, int32_t *work)
{
    const int32_t n = tables->n_fft / 2;
    const int32_t *twiddle = tables->fft_twiddle_q30;
    points x = {re, im}, y = {work, work + n}, swap;
    int32_t m, s;
    int in_work = 0;

    for (s = 1, m = n / 4; s < n; s *= 4, m /= 4) {
        if (m == 0)
            radix2_stage(x, y, s);
        else if (m == 1)
            radix4_stage(x, y, 1, s, twiddle); /* constants, so that the compiler vectorizes the short loops */
        else if (m == 4)
            radix4_stage(x, y, 4, s, twiddle);
        else
            radix4_stage(x, y, m, s, twiddle);
        twiddle += 6 * m;
        swap = x, x = y, y = swap;
        in_work = !in_work;
    }
    return in_work;
}

static inline int64_t squared(int32_t re, int32_t im)
{
    return ea_add64((int64_t)re * re, (int64_t)im * im);
}

/* In place: points k and n-k of the complex FFT of the even and odd samples become 2 X[k] and 2 conj(X[n-k]). */
static inline void split(const ea_tables *tables, points z)
{
    const int32_t n = tables->n_fft / 2, middle = n / 2;
    const int32_t *w_re = tables->split_twiddle_q30, *w_im = w_re + middle + 1;
    int32_t k;
    EA_INDEPENDENT
    for (k = 1; k <= middle; k++) { /* the middle is its own mirror image: of its two results the second one stays */
        const point a = load(z, k), b = conjugate(load(z, n - k));
        const point even = add(a, b), odd = rotate(times_minus_j(subtract(a, b)), w_re[k], w_im[k], 30);

        store(z, k, add(even, odd));
        store(z, n - k, subtract(even, odd));
    }
}

EA_CLONES
uint64_t ea_fft_split_power(const ea_tables *tables, int32_t *re, int32_t *im, int64_t *power)
{
    const int32_t n = tables->n_fft / 2;
    const points z = {re, im};
    uint64_t bits;
    int32_t k;

    split(tables, z);
    /* k = 0 and n: the sum and the difference of both parts, both real */
    power[0] = squared(ea_narrow32(2 * ((int64_t)re[0] + im[0])), 0);
    power[n] = squared(ea_narrow32(2 * ((int64_t)re[0] - im[0])), 0);
    bits = (uint64_t)(power[0] | power[n]);
    for (k = 1; k < n; k++) {
        power[k] = squared(re[k], im[k]);
        bits |= (uint64_t)power[k];
    }
    return bits;
}
