/* Integer arithmetic of the whole core: every rounding, shift and saturation has its name here.
 *
 * Twin: toolkit/fixedpoint.py, function by function.
 * Rounding is "half up": floor(x + 1/2). Right shifts of negative numbers are arithmetic (checked below).
 * -DEA_CHECK builds trap on any result that does not fit; without it they are plain machine operations.
 */
#ifndef EA_FIXED_H
#define EA_FIXED_H

#include <stdint.h>

typedef char ea_right_shift_is_arithmetic[(-3 >> 1) == -2 ? 1 : -1];

/* The value as int32; the caller has shown that it fits. */
static inline int32_t ea_narrow32(int64_t x)
{
#ifdef EA_CHECK
    if (x < INT32_MIN || x > INT32_MAX)
        __builtin_trap();
#endif
    return (int32_t)x;
}

static inline int32_t ea_add32(int32_t a, int32_t b)
{
#ifdef EA_CHECK
    return ea_narrow32((int64_t)a + b);
#else
    return a + b;
#endif
}

static inline int32_t ea_sub32(int32_t a, int32_t b)
{
#ifdef EA_CHECK
    return ea_narrow32((int64_t)a - b);
#else
    return a - b;
#endif
}

static inline int64_t ea_add64(int64_t a, int64_t b)
{
#ifdef EA_CHECK
    int64_t sum;
    if (__builtin_add_overflow(a, b, &sum))
        __builtin_trap();
    return sum;
#else
    return a + b;
#endif
}

static inline int64_t ea_mul64(int64_t a, int64_t b)
{
#ifdef EA_CHECK
    int64_t product;
    if (__builtin_mul_overflow(a, b, &product))
        __builtin_trap();
    return product;
#else
    return a * b;
#endif
}

/* floor(x / 2^n + 1/2) for 0 <= n <= 62. */
static inline int64_t ea_round_shift(int64_t x, int n)
{
    return n > 0 ? ea_add64(x, (int64_t)1 << (n - 1)) >> n : x;
}

/* x * 2^n for n >= 0, rounded half up for n < 0. The product fits int64. */
static inline int64_t ea_scale(int64_t x, int n)
{
    return n >= 0 ? ea_mul64(x, (int64_t)1 << n) : ea_round_shift(x, -n);
}

/* ea_round_shift for 1 <= n <= 32 and a result that fits int32. The shift is unsigned: the bits that it brings in from
 * the left are cut off again, and vector units have no arithmetic shift of 64 bits. */
static inline int32_t ea_round_shift32(int64_t x, int n)
{
    const int64_t sum = ea_add64(x, (int64_t)1 << (n - 1));
#ifdef EA_CHECK
    return ea_narrow32(sum >> n);
#else
    return (int32_t)((uint64_t)sum >> n);
#endif
}

static inline int16_t ea_saturate16(int64_t x)
{
    return (int16_t)(x < INT16_MIN ? INT16_MIN : x > INT16_MAX ? INT16_MAX : x);
}

static inline int8_t ea_saturate8(int64_t x)
{
    return (int8_t)(x < INT8_MIN ? INT8_MIN : x > INT8_MAX ? INT8_MAX : x);
}

/* Number of bits of x >= 0: the least b with x < 2^b. */
static inline int ea_bit_length(uint64_t x)
{
    return x == 0 ? 0 : 64 - __builtin_clzll(x);
}

/* floor(sqrt(x)) for 0 <= x < 2^62. Each step doubles the number of right bits, so only the last one is a 64-bit
 * division. M. Dickinson's method; its proof is in CPython, Modules/mathmodule.c, _approximate_isqrt. */
static inline int64_t ea_sqrt(int64_t x)
{
    uint64_t normal, root;
    uint32_t r;
    int spread;
    if (x == 0)
        return 0;
    spread = (64 - ea_bit_length((uint64_t)x)) / 2;
    normal = (uint64_t)x << (2 * spread); /* 2^62 .. 2^64 - 1 */
    r = 1 + (uint32_t)(normal >> 62);
    r = (r << 1) + (uint32_t)(normal >> 59) / r;
    r = (r << 3) + (uint32_t)(normal >> 53) / r;
    r = (r << 7) + (uint32_t)(normal >> 41) / r;
    root = (((uint64_t)r << 15) + (normal >> 17) / r) >> spread; /* the root, or one more */
    return (int64_t)(root * root > (uint64_t)x ? root - 1 : root);
}

#endif
