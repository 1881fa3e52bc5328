#include "ea_layers.h"

#include <string.h>

#include "ea_fixed.h"
#include "ea_loops.h"

/* Before a loop over a block: gcc makes vectors of the loop, rather than single steps and then vectors of some. */
#if defined(__GNUC__) && !defined(__clang__)
#define BLOCK _Pragma("GCC unroll 1")
#else
#define BLOCK
#endif

/* x * 2^-right, rounded half away from zero. */
static inline int32_t shift_right(int32_t x, int32_t right)
{
    const int32_t mask = (int32_t)(((uint32_t)1 << right) - 1);
    const int32_t threshold = (mask >> 1) + (x < 0);
    return (x >> right) + ((x & mask) > threshold);
}

/* x * multiplier * 2^(-31 - right), rounded after the product and after the shift. */
static inline int32_t multiply(int32_t x, int32_t multiplier, int32_t right)
{
    return shift_right(ea_round_shift32((int64_t)x * multiplier, 31), right);
}

/* multiply(x * 2^20, ...) for |x| < 2^8. The product, (x m 2^20 + 2^30) >> 31 = (x m + 2^10) >> 11, fits 32 bits in two
 * halves of the multiplier; that of the upper one is a multiple of 2^11. */
static inline int32_t multiply_raised(int32_t x, int32_t multiplier, int32_t right)
{
    return shift_right(x * (multiplier >> 16) * 32 + ((x * (multiplier & 0xffff) + 1024) >> 11), right);
}

static inline int32_t clamp(int32_t x, int32_t low, int32_t high)
{
    return x < low ? low : x > high ? high : x;
}

/* The first n of a block of results. */
static inline void store(int8_t *output, const int8_t *block, int32_t n)
{
    if (n >= EA_LANES)
        memcpy(output, block, EA_LANES);
    else
        memcpy(output, block, (size_t)n);
}

/* Sums of a block of channels -> the first n of its outputs. */
static inline void rescale_block(const ea_layer *layer, const int32_t *sums, const int32_t *rescale, int8_t *output,
                                 int32_t n)
{
    const int32_t *multiplier = rescale + EA_LANES, *left = rescale + 2 * EA_LANES, *right = rescale + 3 * EA_LANES;
    const int32_t zero_point = layer->zero_point, low = layer->low, high = layer->high;
    int32_t scaled[EA_LANES];
    int8_t block[EA_LANES];
    int32_t i;
    BLOCK
    for (i = 0; i < EA_LANES; i++)
        scaled[i] = clamp(multiply((int32_t)((uint32_t)(sums[i] + rescale[i]) << left[i]), multiplier[i], right[i])
                              + zero_point, low, high);
    BLOCK
    for (i = 0; i < EA_LANES; i++)
        block[i] = (int8_t)scaled[i];
    store(output, block, n);
}

/* The window at input as int16 [depth]; what lies behind it meets weights of zero. Returns it. */
static inline const int16_t *gather(const ea_layer *layer, const int8_t *input, int16_t *patch)
{
    const int32_t run = layer->run, depth = layer->depth;
    int8_t *bytes = (int8_t *)(patch + depth);
    int32_t r, c, i;
    if (layer->tap_rows * layer->tap_cols > 1) {
        int8_t *to = bytes;
        for (r = 0; r < layer->tap_rows; r++) {
            for (c = 0; c < layer->tap_cols; c++, to += run) {
                const int8_t *from = input + r * layer->tap_row_step + c * layer->tap_col_step;
                for (i = 0; i < run; i += EA_LANES) /* beyond its end, where the next one begins */
                    memcpy(to + i, from + i, EA_LANES);
            }
        }
        input = bytes;
    }
    for (i = 0; i < depth; i++)
        patch[i] = input[i];
    return patch;
}

static inline int32_t dot(const int16_t *x, const int8_t *w, int32_t n)
{
    int32_t sum = 0, i;
    for (i = 0; i < n; i++)
        sum += x[i] * w[i];
    return sum;
}

EA_CLONES
void ea_layer_conv(const ea_layer *layer, const int8_t *input, const int8_t *weights, const int32_t *rescale,
                   int16_t *patch, int8_t *output)
{
    const int32_t channels = layer->channels, depth = layer->depth;
    int32_t row, col, first, i;
    for (row = 0; row < layer->rows; row++) {
        for (col = 0; col < layer->cols; col++) {
            const int8_t *window = input + row * layer->input_row_step + col * layer->input_col_step, *w = weights;
            int8_t *to = output + row * layer->output_row_step + col * layer->output_col_step;
            const int32_t *scale = rescale;
            gather(layer, window, patch);
            for (first = 0; first < channels; first += EA_LANES, scale += EA_RESCALE_WORDS) {
                const int32_t n = channels - first < EA_LANES ? channels - first : EA_LANES;
                int32_t sums[EA_LANES] = {0};
                for (i = 0; i < n; i++, w += depth)
                    sums[i] = dot(patch, w, depth);
                rescale_block(layer, sums, scale, to + first, n);
            }
        }
    }
}

EA_CLONES
void ea_layer_depthwise(const ea_layer *layer, const int8_t *input, const int8_t *weights, const int32_t *rescale,
                        int8_t *output)
{
    const int32_t channels = layer->channels;
    int32_t row, col, first, r, c, i;
    for (first = 0; first < channels; first += EA_LANES, rescale += EA_RESCALE_WORDS) {
        for (row = 0; row < layer->rows; row++) {
            for (col = 0; col < layer->cols; col++) {
                const int8_t *window = input + row * layer->input_row_step + col * layer->input_col_step + first;
                const int8_t *w = weights;
                int32_t sums[EA_LANES] = {0};
                for (r = 0; r < layer->tap_rows; r++, window += layer->tap_row_step) {
                    const int8_t *x = window;
                    for (c = 0; c < layer->tap_cols; c++, x += layer->tap_col_step, w += EA_LANES)
                        BLOCK
                        for (i = 0; i < EA_LANES; i++)
                            sums[i] += x[i] * w[i];
                }
                rescale_block(layer, sums, rescale,
                              output + row * layer->output_row_step + col * layer->output_col_step + first,
                              channels - first);
            }
        }
        weights += layer->tap_rows * layer->tap_cols * EA_LANES;
    }
}

EA_CLONES
void ea_layer_add(const ea_layer *layer, const int8_t *input, const int8_t *other, const int32_t *terms,
                  int8_t *output)
{
    const int32_t zero_a = terms[0], multiplier_a = terms[1], right_a = terms[2], zero_b = terms[3];
    const int32_t multiplier_b = terms[4], right_b = terms[5], multiplier_sum = terms[6], right_sum = terms[7];
    const int32_t zero_point = layer->zero_point, low = layer->low, high = layer->high;
    int32_t row, col, first, i;
    for (row = 0; row < layer->rows; row++) {
        for (col = 0; col < layer->cols; col++) {
            const int8_t *a = input + row * layer->input_row_step + col * layer->input_col_step;
            const int8_t *b = other + row * layer->other_row_step + col * layer->other_col_step;
            int8_t *to = output + row * layer->output_row_step + col * layer->output_col_step;
            for (first = 0; first < layer->channels; first += EA_LANES) {
                int32_t x[EA_LANES], y[EA_LANES];
                int8_t block[EA_LANES];
                BLOCK
                for (i = 0; i < EA_LANES; i++)
                    x[i] = a[first + i];
                BLOCK
                for (i = 0; i < EA_LANES; i++)
                    y[i] = b[first + i];
                BLOCK
                for (i = 0; i < EA_LANES; i++) {
                    const int32_t sum = multiply_raised(x[i] - zero_a, multiplier_a, right_a)
                                      + multiply_raised(y[i] - zero_b, multiplier_b, right_b);
                    x[i] = clamp(multiply(sum, multiplier_sum, right_sum) + zero_point, low, high);
                }
                BLOCK
                for (i = 0; i < EA_LANES; i++)
                    block[i] = (int8_t)x[i];
                store(to + first, block, layer->channels - first);
            }
        }
    }
}

void ea_layer_average(const ea_layer *layer, const int8_t *input, int8_t *output)
{
    const int32_t taps = layer->tap_rows * layer->tap_cols;
    int32_t row, col, first, r, c, i;
    for (row = 0; row < layer->rows; row++) {
        for (col = 0; col < layer->cols; col++) {
            for (first = 0; first < layer->channels; first += EA_LANES) {
                const int32_t left = layer->channels - first, n = left < EA_LANES ? left : EA_LANES;
                const int8_t *window = input + row * layer->input_row_step + col * layer->input_col_step + first;
                int8_t *to = output + row * layer->output_row_step + col * layer->output_col_step + first;
                int32_t sums[EA_LANES] = {0};
                for (r = 0; r < layer->tap_rows; r++)
                    for (c = 0; c < layer->tap_cols; c++)
                        BLOCK
                        for (i = 0; i < EA_LANES; i++)
                            sums[i] += window[r * layer->tap_row_step + c * layer->tap_col_step + i];
                for (i = 0; i < n; i++)
                    to[i] = (int8_t)clamp((sums[i] + (sums[i] > 0 ? taps / 2 : -(taps / 2))) / taps, layer->low,
                                          layer->high);
            }
        }
    }
}

void ea_layer_max(const ea_layer *layer, const int8_t *input, int8_t *output)
{
    int32_t row, col, r, c, i;
    for (row = 0; row < layer->rows; row++) {
        for (col = 0; col < layer->cols; col++) {
            const int8_t *window = input + row * layer->input_row_step + col * layer->input_col_step;
            int8_t *to = output + row * layer->output_row_step + col * layer->output_col_step;
            for (i = 0; i < layer->channels; i++) {
                int32_t greatest = INT8_MIN;
                for (r = 0; r < layer->tap_rows; r++)
                    for (c = 0; c < layer->tap_cols; c++) {
                        const int32_t x = window[r * layer->tap_row_step + c * layer->tap_col_step + i];
                        greatest = x > greatest ? x : greatest;
                    }
                to[i] = (int8_t)clamp(greatest, layer->low, layer->high);
            }
        }
    }
}

void ea_layer_copy(const ea_layer *layer, const int8_t *input, int8_t *output)
{
    int32_t row, col;
    for (row = 0; row < layer->rows; row++)
        for (col = 0; col < layer->cols; col++)
            memmove(output + row * layer->output_row_step + col * layer->output_col_step,
                    input + row * layer->input_row_step + col * layer->input_col_step, (size_t)layer->channels);
}
